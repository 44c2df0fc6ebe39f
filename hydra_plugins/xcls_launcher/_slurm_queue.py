"""Talks to Slurm: submits jobs through submitit, asks what is queued, and how a job that is gone has ended.

Only `squeue` is asked whether a job is there. Slurm calls a job COMPLETED whose run failed, and `sacct` needs a database
that many clusters do not have, so how a run ended is read from its record.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Iterator, Sequence

from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

from xcls.config.schema import UserError

MOST_TASKS = 1000  # of one array: Slurm's default limit is 1001
INHERITED = ("SLURM_", "SRUN_", "SUBMITIT_")  # variables of a job, which must not reach the jobs that it submits


def submit(jobs: Sequence[Any], parameters: dict[str, Any], folder: Path, *, after: Sequence[str]) -> list[str]:
    """Submits `jobs` (callables) as an array that starts when the jobs `after` have ended. Gives their ids.

    Raises UserError with Slurm's own words where it refuses.
    """
    import submitit

    own = {"max_num_timeout", "submitit_folder"}
    general = set(BaseQueueConf.__dataclass_fields__)
    named = {key if key in general else f"slurm_{key}": value for key, value in parameters.items() if key not in own}
    if after:
        named["slurm_dependency"] = ":".join(["afterany", *after])
    handles: list[Any] = []
    words = io.StringIO()
    try:
        with _outside_a_job(), contextlib.redirect_stderr(words):  # submitit prints what it raises
            executor = submitit.AutoExecutor(
                cluster="slurm", folder=folder, slurm_max_num_timeout=parameters["max_num_timeout"]
            )
            executor.update_parameters(**named)
            for start in range(0, len(jobs), MOST_TASKS):
                with executor.batch():
                    part = [executor.submit(job) for job in jobs[start : start + MOST_TASKS]]
                handles += part
    except (RuntimeError, OSError) as error:  # submitit's errors are RuntimeErrors
        cancel([handle.job_id for handle in handles])
        said = " ".join(re.sub(r"\b(sbatch|error):\s*", "", str(error)).split())
        raise UserError(
            f"Slurm does not take these jobs: {said}. The settings are hydra.launcher.* (conf/hydra/launcher/slurm.yaml); "
            "sinfo -o '%P %G %l' lists partitions, their GPUs and time limits."
        ) from error
    return [handle.job_id for handle in handles]


@contextlib.contextmanager
def _outside_a_job() -> Iterator[None]:
    """Hides what belongs to the job that we may be in ourselves, and the GPUs of this machine: Slurm gives the jobs theirs."""
    inside = "SLURM_JOB_ID" in os.environ
    hidden = [name for name in os.environ if inside and name.startswith(INHERITED) and name != "SLURM_CONF"]
    before = {name: os.environ.pop(name) for name in (*hidden, "CUDA_VISIBLE_DEVICES") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def queued() -> dict[str, str] | None:
    """State (PENDING, RUNNING, …) of each of our jobs in the queue, by id (`12` or `12_3`); None where Slurm does not answer."""
    answer = _ask(["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i %T"])
    if answer is None:
        return None
    return dict(line.split(maxsplit=1) for line in answer.splitlines() if len(line.split(maxsplit=1)) == 2)


def fate(job_id: str) -> str:
    """What Slurm says of a job that has left the queue, in words; what it still knows, if anything."""
    answer = _ask(["scontrol", "--oneliner", "show", "job", job_id]) or ""
    found = dict(re.findall(r"\b(JobState|Reason|ExitCode)=(\S+)", answer))
    parts = [found[key] for key in ("JobState", "Reason") if found.get(key) not in (None, "None")]
    return f"Slurm ended job {job_id}" + (f" ({', '.join(parts)})" if parts else "")


def cancel(job_ids: Sequence[str]) -> None:
    """Takes jobs out of the queue; whether Slurm hears it or not."""
    if job_ids:
        _ask(["scancel", *job_ids])


def without_places(job_ids: Sequence[str]) -> list[str]:
    """The ids without the places in their arrays, each once: what a person types."""
    return list(dict.fromkeys(job_id.partition("_")[0] for job_id in job_ids))


def _ask(command: list[str]) -> str | None:
    """The output of one of Slurm's commands; None where it failed or took too long."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None

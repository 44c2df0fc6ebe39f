"""Submits the jobs of a sweep to Slurm through submitit, and follows them until they have left the queue.

`squeue` says whether a job is in the queue; the record says how its run ended. Slurm would call a job COMPLETED even if
its run failed, and many clusters have no database for `sacct`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import time
from typing import Any, Iterator

from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

from hydra_plugins.xcls_launcher._job import RUNNING, WAITING, Job, noted_signals
from hydra_plugins.xcls_launcher._progress import Progress
from hydra_plugins.xcls_launcher._slurm_job import SlurmJob, ask, exit_file
from hydra_plugins.xcls_launcher._sweep import Sweep
from xcls.config.schema import UserError

MARK = "slurm:"  # prefix of a Slurm id in the field `device` of sweep.json
OURS = ("gpu_type", "poll_s", "max_num_timeout", "submitit_folder")  # parameters that are not for sbatch
MOST_TASKS = 1000  # of one array: Slurm's default limit is 1001
INHERITED = ("SLURM_", "SRUN_", "SUBMITIT_")  # prefixes of variables of a job that new jobs must not inherit
MOMENT = 0.2  # seconds until a signal is noticed


def submit_sweep(sweep: Sweep, params: dict[str, Any]) -> dict[Job, str]:
    """Submits the waiting jobs that are not queued yet. Returns the Slurm ids of all queued jobs. Raises UserError.

    Jobs that need a pretraining form their own array, which depends on all pretrainings, so that no job holds a GPU
    while it waits. No job waits for a baseline, because only the report needs it.
    """
    ids = still_queued(sweep)
    fresh: list[str] = []
    waiting = [job for job in sweep.jobs if job.state == WAITING and job not in ids]
    wanted = {job: [need for need in job.pretrainings if need.state == WAITING] for job in waiting}
    for jobs in ([job for job in waiting if not wanted[job]], [job for job in waiting if wanted[job]]):
        if not jobs:
            continue
        for job in jobs:
            sweep.prepare(job)
            exit_file(sweep.log(job)).unlink(missing_ok=True)
        began = time.time()
        after = dict.fromkeys(ids[need] for job in jobs for need in wanted[job])
        try:
            found = _submit([_packed(sweep, job) for job in jobs], sweep, params, list(after))
        except UserError:
            ask("scancel", *fresh)
            raise
        fresh += found
        for job, name in zip(jobs, found):
            ids[job], job.device, job.began = name, MARK + name, began
        sweep.write()
    sweep.write()
    return ids


def still_queued(sweep: Sweep) -> dict[Job, str]:
    """The Slurm ids of the jobs that an earlier launcher has submitted and that have not ended.

    Raises UserError if squeue does not answer.
    """
    try:
        before = json.loads((sweep.folder / "sweep.json").read_text(encoding="utf-8"))
        began = float(before["started"])
        devices = {entry["folder"]: str(entry["device"]) for entry in before["jobs"] if entry["folder"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    named = {folder: name[len(MARK) :] for folder, name in devices.items() if name.startswith(MARK)}
    there = queued() if named else {}
    if there is None:
        raise UserError("squeue does not answer, so the queued jobs of this sweep are unknown. Try again later.")
    found = {}
    for job in sweep.jobs:
        name = named.get(job.folder, "")
        if job.state == WAITING and name in there:
            found[job], job.device, job.began = name, MARK + name, began
    return found


def _packed(sweep: Sweep, job: Job) -> SlurmJob:
    """What Slurm runs for `job`. A job has its GPU alone, but shares the processors of a node."""
    return SlurmJob(
        command=job.command(sweep.root),
        directory=os.getcwd(),
        log=str(sweep.log(job)),
        variables={**job.variables(shared=not job.spec.gpu), "XCLS_RUNS": str(sweep.runs)},
        folder=str(sweep.runs / job.folder),
        record=job.spec.record,
        needs=[str(sweep.runs / need.folder) for need in job.pretrainings],
    )


def _submit(jobs: list[SlurmJob], sweep: Sweep, params: dict[str, Any], after: list[str]) -> list[str]:
    """Submits `jobs` as arrays that start when the jobs `after` have ended. Returns their ids.

    Raises UserError with Slurm's message if Slurm refuses them.
    """
    import submitit

    given = {key: value for key, value in params.items() if key not in OURS}
    given.update(name=f"xcls-{sweep.name}", gpus_per_node=params["gpus_per_node"] or None)
    if params["gpu_type"]:
        given.update(gres=f"gpu:{params['gpu_type']}:{params['gpus_per_node']}", gpus_per_node=None)
    threads = "${SLURM_CPUS_PER_TASK:-1}"
    given["setup"] = [
        f"export PYTHONPATH={shlex.quote(str(sweep.root))}${{PYTHONPATH:+:$PYTHONPATH}}",  # to find SlurmJob
        f"export SRUN_CPUS_PER_TASK={threads}",  # since Slurm 22.05 srun does not inherit it from the job
        f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{threads}}}",
        *(params["setup"] or []),
    ]
    general = set(BaseQueueConf.__dataclass_fields__) | {"name"}
    named = {key if key in general else f"slurm_{key}": value for key, value in given.items()}
    if after:
        named["slurm_dependency"] = ":".join(["afterany", *after])
    handles: list[Any] = []
    try:
        with _outside_a_job(), contextlib.redirect_stderr(io.StringIO()):  # submitit also prints its errors
            executor = submitit.AutoExecutor(
                folder=sweep.folder / params["submitit_folder"],
                cluster="slurm",
                slurm_max_num_timeout=params["max_num_timeout"],
            )
            executor.update_parameters(**named)
            for start in range(0, len(jobs), MOST_TASKS):
                with executor.batch():
                    part = [executor.submit(job) for job in jobs[start : start + MOST_TASKS]]
                handles += part
    except (RuntimeError, OSError) as error:  # submitit's errors are RuntimeErrors
        ask("scancel", *[handle.job_id for handle in handles])
        said = " ".join(re.sub(r"\b(sbatch|error):\s*", "", str(error)).split())
        raise UserError(
            f"Slurm refuses these jobs: {said}. The settings are hydra.launcher.* "
            "(conf/hydra/launcher/slurm.yaml); sinfo -o '%P %G %l' lists partitions, their GPUs and time limits."
        ) from error
    return [handle.job_id for handle in handles]


@contextlib.contextmanager
def _outside_a_job() -> Iterator[None]:
    """Hides this machine's GPUs, and the Slurm variables if this process runs in a job itself."""
    inside = "SLURM_JOB_ID" in os.environ
    hidden = [name for name in os.environ if inside and name.startswith(INHERITED) and name != "SLURM_CONF"]
    before = {name: os.environ.pop(name) for name in (*hidden, "CUDA_VISIBLE_DEVICES") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def queued() -> dict[str, str] | None:
    """Job id (`12` or `12_3`) -> state (PENDING, RUNNING, …) of the user's queued jobs; None if squeue fails."""
    answer = ask("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i %T")
    if answer is None:
        return None
    return dict(line.split(maxsplit=1) for line in answer.splitlines() if len(line.split(maxsplit=1)) == 2)


def follow(sweep: Sweep, ids: dict[Job, str], poll_s: float) -> int:
    """Waits until none of these jobs (by their Slurm ids) is in the queue; checks every `poll_s` seconds.

    Returns 0, or the number of the signal that ended the wait; the jobs continue then.
    """
    progress = Progress(sweep)
    progress.begin()
    with noted_signals() as signals:
        while (left := [job for job in ids if job.state in (WAITING, RUNNING)]) and not signals:
            if (there := queued()) is not None:  # None: Slurm is busy or restarts
                for job in left:
                    _look(sweep, job, ids[job], there.get(ids[job]), progress)
            progress.tick()
            until = time.monotonic() + poll_s
            while not signals and time.monotonic() < until:
                time.sleep(min(MOMENT, poll_s))
    if not signals:
        progress.end(0)
        return 0
    arrays = dict.fromkeys(ids[job].partition("_")[0] for job in left)
    progress.line(
        f"\n{len(left)} jobs continue in Slurm: see make status, or squeue --me. The same command waits for them "
        f"again.\nCancel them: scancel {' '.join(arrays)}"
    )
    return signals[0]


def _look(sweep: Sweep, job: Job, name: str, state: str | None, progress: Progress) -> None:
    """Updates `job`, whose Slurm id is `name`, from its state in the queue; None: it has left the queue."""
    if state is None:
        found = dict(re.findall(r"\b(JobState|Reason)=(\S+)", ask("scontrol", "-o", "show", "job", name) or ""))
        job.cause = f"Slurm ended job {name} ({', '.join(value for value in found.values() if value != 'None')})"
        path = exit_file(sweep.log(job))
        sweep.end(job, int(path.read_text() or 1) if path.is_file() else None)
        progress.ended(job)
    elif (state in ("RUNNING", "COMPLETING")) != (job.state == RUNNING):
        job.state = WAITING if job.state == RUNNING else RUNNING  # it may go back into the queue
        sweep.write()

"""From a sweep to Slurm's queue. Jobs that need a pretraining are an array of their own that depends on all of these, so that
nothing holds a GPU while it waits and the mechanisms run in turn; a baseline is needed by the report alone, and nobody waits."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from typing import Any

from hydra_plugins.xcls_launcher._slurm_job import SlurmJob
from hydra_plugins.xcls_launcher._slurm_queue import cancel, queued, submit
from hydra_plugins.xcls_launcher.sweep import WAITING, Job, Sweep
from xcls.config.schema import UserError

MARK = "slurm:"  # before the id of a job, where sweep.json has its device
OURS = ("gpu_type", "poll_s")  # parameters that submitit does not know


def submit_sweep(sweep: Sweep, params: dict[str, Any]) -> dict[int, str]:
    """Submits what waits and is not queued yet; gives the Slurm ids of all jobs to wait for, by number. Raises UserError."""
    ids = still_queued(sweep)
    arrays: dict[bool, list[Job]] = {False: [], True: []}  # whether they wait for a pretraining
    needs: dict[bool, set[int]] = {False: set(), True: set()}
    for job in sweep.jobs:
        if job.state == WAITING and job.number not in ids:
            wanted = {number for number in pretrainings(sweep, job) if sweep.jobs[number].state == WAITING}
            arrays[bool(wanted)].append(job)
            needs[bool(wanted)] |= wanted
    fresh: list[str] = []
    for waits, jobs in arrays.items():
        if not jobs:
            continue
        for job in jobs:
            sweep.prepare(job)
            sweep.log(job).parent.mkdir(exist_ok=True)
            sweep.log(job).write_bytes(b"")
        began = time.time()
        try:
            found = submit(
                [packed(sweep, job) for job in jobs],
                for_submitit(sweep, params),
                sweep.folder / params["submitit_folder"],
                after=[ids[number] for number in sorted(needs[waits])],
            )
        except UserError:
            cancel(fresh)
            raise
        fresh += found
        for job, name in zip(jobs, found):
            ids[job.number], job.device, job.began = name, MARK + name, began
        sweep.write()
    sweep.write()
    return ids


def still_queued(sweep: Sweep) -> dict[int, str]:
    """The Slurm ids of the jobs that an earlier launcher has submitted and that have not ended, by number.

    Raises UserError where Slurm does not say what is in its queue.
    """
    try:
        before = json.loads((sweep.folder / "sweep.json").read_text(encoding="utf-8"))
        named = {
            entry["folder"]: entry["device"][len(MARK) :]
            for entry in before["jobs"]
            if str(entry["device"]).startswith(MARK)
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    there = queued()
    if there is None:
        raise UserError(
            "squeue does not answer, so it is unknown which jobs of this sweep are queued already. Try again later."
        )
    found = {}
    for job in sweep.jobs:
        name = named.get(job.folder)
        if job.state == WAITING and job.folder and name in there:
            found[job.number], job.device, job.began = name, MARK + name, float(before["started"])
    return found


def packed(sweep: Sweep, job: Job) -> SlurmJob:
    """What Slurm runs for `job`."""
    several = (
        job.outline is not None and job.outline.file is not None
    )  # sweeps may need it: one makes it, the others wait
    return SlurmJob(
        command=[sys.executable, str(sweep.root / "run.py"), *job.overrides, "hydra.mode=RUN"],
        directory=os.getcwd(),
        log=str(sweep.log(job)),
        # A GPU is the job's own; the processors and the memory bus of a node are others' too.
        variables={
            "XCLS_PROGRESS": "0",
            "XCLS_SHARED": str(int(not job.gpu)),
            "XCLS_WAIT": str(int(several)),
            "XCLS_BASELINE": "queued",
            "XCLS_RUNS": str(sweep.runs),
            "XCLS_HASH": job.hash or "",
        },
        folder=str(sweep.runs / job.folder),
        record=job.outline.record if job.outline is not None else None,
        needs=[str(sweep.runs / sweep.jobs[n].folder) for n in pretrainings(sweep, job)],
    )


def pretrainings(sweep: Sweep, job: Job) -> list[int]:
    """The numbers of the pretraining runs that `job` needs."""
    return [number for number in job.needs if sweep.jobs[number].kind == "pretrain"]


def for_submitit(sweep: Sweep, params: dict[str, Any]) -> dict[str, Any]:
    """The parameters as submitit has them."""
    given = {key: value for key, value in params.items() if key not in OURS}
    given["gpus_per_node"] = params["gpus_per_node"] or None
    if params["gpu_type"]:
        given.update(gres=f"gpu:{params['gpu_type']}:{params['gpus_per_node']}", gpus_per_node=None)
    given["name"] = f"xcls-{sweep.name}"
    threads = "${SLURM_CPUS_PER_TASK:-1}"
    given["setup"] = [
        f"export PYTHONPATH={shlex.quote(str(sweep.root))}${{PYTHONPATH:+:$PYTHONPATH}}",  # where submitit finds SlurmJob
        f"export SRUN_CPUS_PER_TASK={threads}",  # since Slurm 22.05 srun does not take it from the job by itself
        f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{threads}}}",
        *(params["setup"] or []),
    ]
    return given

"""A sweep on any launcher: its jobs, their dependencies and states, and `sweep.json` with all of them.

Hashes and folders come from `xcls.build.job_specs(cfg)`, called here for each job before the first one starts.
"""

from __future__ import annotations

import copy
import json
import os
import socket
import sys
import time
from abc import abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, Sequence

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hydra_plugins.xcls_launcher._job import (
    DONE,
    FAILED,
    INTERRUPTED,
    RUNNING,
    SKIPPED,
    WAITING,
    Job,
    cause_of,
    write_end,
)
from xcls.config.schema import UserError, check_name, flatten
from xcls.runs.identity import runs_root
from xcls.runs.record import Record, plain, read_record, without_secrets, write_atomic


@dataclass
class Sweep:
    """The jobs of one sweep. Every change of state is in `multirun/<name>/sweep.json` before the method returns."""

    name: str
    root: Path  # the project
    launcher: str
    jobs: list[Job] = field(default_factory=list)
    equal: int = 0  # duplicate cells of the grid, which are skipped
    started: float = field(default_factory=time.time)

    @property
    def runs(self) -> Path:
        """The folder of pretrain/, finetune/ and multirun/."""
        return runs_root(self.root)

    @property
    def folder(self) -> Path:
        """The folder of the sweep's own files."""
        return self.runs / "multirun" / self.name

    def log(self, job: Job) -> Path:
        """The file for the output of `job`."""
        return self.folder / "logs" / f"{job.number:03d}.txt"

    def write(self) -> None:
        """Writes sweep.json, completely or not at all."""
        content = {
            "name": self.name,
            "started": self.started,
            "launcher": self.launcher,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "jobs": plain([job.entry for job in self.jobs]),
        }
        write_atomic(self.folder / "sweep.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def ready(self) -> list[Job]:
        """The waiting jobs whose needs have ended, in order. A failed baseline blocks no job."""
        ended = (DONE, SKIPPED, FAILED)
        return [job for job in self.jobs if job.state == WAITING and all(need.state in ended for need in job.needs)]

    def fail_blocked(self) -> list[Job]:
        """Marks the waiting jobs whose pretraining failed as failed. Returns them."""
        found = []
        for job in self.jobs:
            bad = next((need for need in job.pretrainings if need.state == FAILED), None)
            if job.state == WAITING and bad is not None:
                self._fail(job, f"its pretraining {bad.folder} did not complete: {bad.cause}", "interrupted")
                found.append(job)
        if found:
            self.write()
        return found

    def prepare(self, job: Job) -> None:
        """Writes the config.yaml of `job`, and empties its log. Call it before its process starts."""
        if job.spec.file is not None and job.spec.folder is not None:
            job.spec.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(job.spec.folder / "config.yaml", job.spec.file)
        self.log(job).parent.mkdir(parents=True, exist_ok=True)
        self.log(job).write_bytes(b"")

    def start(self, job: Job, device: str) -> None:
        """Marks `job` as running on `device`."""
        job.state, job.device, job.began = RUNNING, device, time.time()
        self.write()

    def end(self, job: Job, exit_code: int | None) -> None:
        """Marks `job` as done, or failed with a cause from its record, its output or its exit code (128 + signal).

        With exit_code None (unknown) only the record decides. If a job died without a final status, writes one.
        """
        job.exit_code = exit_code
        record = self._record(job)
        status = None if record is None else record.status
        if exit_code == 0 and job.spec.hash is None or exit_code in (0, None) and status == "completed":
            job.state, job.cause = DONE, None
        elif record is not None and status in ("failed", "interrupted") and (record.ended or 0) >= job.began - 1:
            job.state, job.cause, job.stopped = FAILED, record.cause or status, status == "interrupted"
        elif exit_code is None:
            self._fail(job, job.cause or "it ended without a result", "interrupted")
        else:
            self._fail(job, cause_of(exit_code, self.log(job)), "interrupted" if exit_code in INTERRUPTED else "failed")
        self.write()

    @property
    def exit_code(self) -> int:
        """0 if every job is done or was done before, else 1."""
        return int(any(job.state not in (DONE, SKIPPED) for job in self.jobs))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Locks the sweep against a second process that runs the same one. Raises UserError."""
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(self.folder / ".sweep.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            text = f"multirun/{self.name}: this sweep is already running. Wait for it, or choose another exp=…."
            raise UserError(text) from error
        try:
            yield
        finally:
            lock.release()

    def _record(self, job: Job) -> Record | None:
        """The job's record; None if there is none, or it belongs to another run."""
        try:
            record = read_record(self.runs / job.folder) if job.spec.hash else None
        except ValueError:
            return None
        return record if record is not None and record.hash == job.spec.hash else None

    def _fail(self, job: Job, cause: str, status: str) -> None:
        """Marks `job` as failed; writes a final record for its run if it has none, so that the report shows it."""
        job.state, job.cause = FAILED, cause
        if job.spec.record is not None:
            write_end(self.runs / job.folder, job.spec.record, status, cause)


class SweepLauncher(Launcher):
    """Base of both launchers: plan the sweep, lock it, run it, and end the process with its exit code."""

    def __init__(self, **params: Any) -> None:
        self.params: dict[str, Any] = {
            key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for key, value in params.items()
        }

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Hydra's hook before `launch`."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    @abstractmethod
    def check(self) -> None:
        """Refuses settings that cannot work. Raises UserError."""

    @abstractmethod
    def check_jobs(self, sweep: Sweep) -> None:
        """Refuses jobs that cannot run on this launcher, before any begins. Raises UserError."""

    @abstractmethod
    def run(self, sweep: Sweep) -> int:
        """Runs every waiting job to its end. Returns 0, or the number of the signal that ended it early."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs every job that is not done. Ends the process with 1 if a job did not complete, 128 + signal if stopped.

        Raises UserError or Hydra's errors for a bad configuration or bad data of any job, before any job has run.
        """
        if self.config.hydra.sweeper.get("max_batch_size"):
            raise UserError(
                "hydra.sweeper.max_batch_size: the launcher has its own queue. "
                "Use hydra.launcher.jobs, jobs_per_gpu or array_parallelism."
            )
        self.check()
        sweep = self.plan(job_overrides)
        self.check_jobs(sweep)
        with sweep.held():
            stopped = self.run(sweep)
        if stopped or sweep.exit_code:
            sys.exit(128 + stopped if stopped else sweep.exit_code)
        return [
            JobReturn(overrides=list(words), _return_value=0, status=JobStatus.COMPLETED) for words in job_overrides
        ]

    def plan(self, job_overrides: Sequence[Sequence[str]]) -> Sweep:
        """The sweep of these jobs and of the jobs that they need, without duplicates. Writes nothing."""
        from xcls.build import job_specs

        choices = self.config.hydra.runtime.choices
        name = str(self.config.exp or choices.get("experiment") or "sweep")  # Hydra reads exp=5 as a number
        check_name("exp", name)
        refuse_secrets({"hydra.launcher": self.params})
        root = Path(str(sys.modules[self.task_function.__module__].__file__)).resolve().parent
        sweep = Sweep(name=name, root=root, launcher=choices.get("hydra/launcher") or type(self).__name__)
        known: dict[str, Job] = {}
        for overrides in job_overrides:
            words = [*overrides, f"sweep={name}"]
            config = self._compose(words)
            specs = job_specs(config)
            for spec in specs:
                if spec.hash in known:
                    sweep.equal += spec is specs[-1]  # count only the cell itself: several cells may need the same job
                    continue
                job = Job(
                    overrides=spec.overrides or words,
                    folder=os.path.relpath(spec.folder, sweep.runs) if spec.folder else "",
                    spec=spec,
                    needs=[known[digest] for digest in spec.needs],
                    threads=OmegaConf.select(config, "hardware.threads"),
                )
                if spec.action == "done" and spec.found is not None:
                    done = spec.found.status == "completed"
                    job.state = SKIPPED if done else FAILED
                    job.cause = None if done else f"{spec.found.cause} (earlier; retry_failed=true runs it again)"
                sweep.jobs.append(job)
                if spec.hash is not None:
                    known[spec.hash] = job
        sweep.jobs = in_order(sweep.jobs)
        return sweep

    def _compose(self, overrides: list[str]) -> DictConfig:
        """A job's configuration, as its process will compose it. Raises UserError if it contains a secret."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.num = 0
        HydraConfig.instance().set_config(config)
        task = copy.deepcopy(config)
        with read_write(task), open_dict(task):
            del task["hydra"]
        refuse_secrets(OmegaConf.to_container(task, resolve=True))
        return task


def refuse_secrets(tree: Any) -> None:
    """Refuses a configuration with the value of a secret of the environment. Raises UserError that names the keys.

    The files of a sweep (sweep.json, Slurm's scripts) would contain it.
    """
    values = flatten(tree)
    wrong = [key for key, value in values.items() if without_secrets(f"{key}={value}") != f"{key}={value}"]
    if wrong:
        raise UserError(
            f"{', '.join(wrong)}: this is an API key, a token or a password; the files of the sweep would contain it. "
            "Set it only in the environment, which every job inherits: WANDB_API_KEY, HF_TOKEN."
        )


def in_order(jobs: list[Job]) -> list[Job]:
    """The jobs in starting order, numbered: first the needed ones, pretraining before baselines; then, for each seed
    and cell, the mechanisms one after another, so that a slow phase of the machine affects all mechanisms."""
    rank = {"pretrain": 0, "baseline": 1}
    needed = {need for job in jobs for need in job.needs}
    seeds = {part: place for place, part in enumerate(dict.fromkeys(_seed(job) for job in jobs))}
    cells = {part: place for place, part in enumerate(dict.fromkeys(_cell(job) for job in jobs))}

    def turn(job: Job) -> tuple[int, int, int]:
        if job in needed:
            return rank.get(job.spec.kind, 2), 0, 0
        return 3, seeds[_seed(job)], cells[_cell(job)]

    jobs = sorted(jobs, key=turn)
    for number, job in enumerate(jobs):
        job.number = number
    return jobs


def _seed(job: Job) -> tuple[str, ...]:
    """The override of the seed of this job, if any."""
    return tuple(word for word in job.overrides if _key(word) == "seed")


def _cell(job: Job) -> tuple[str, ...]:
    """The sorted overrides of this job, without seed and mechanism."""
    return tuple(sorted(word for word in job.overrides if _key(word) not in ("seed", "attention")))


def _key(word: str) -> str:
    """`attention` of `attention=sdpa` and of `+attention.dropout=0.1`."""
    return word.partition("=")[0].lstrip("+~").partition(".")[0]

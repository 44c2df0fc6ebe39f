"""What a sweep is, wherever it runs: its jobs, what each needs first, how each stands, and `sweep.json`, which says so.

The jobs' hashes and folders come from `outline(cfg)`, a function of the script that has `main`: this module knows no
model and no data. It is called in this process, once for each job, before the first one starts.
"""

# No postponed annotations here: Hydra's scan for plugins executes this file outside sys.modules, where dataclasses cannot
# look them up. Modules with an underscore are left out of that scan.

import copy
import json
import os
import signal
import socket
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Iterator, Sequence

from hydra.core.hydra_config import HydraConfig
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hydra_plugins.xcls_launcher._causes import cause_of
from hydra_plugins.xcls_launcher._discretion import refuse_secrets
from xcls.config.schema import UserError, check_name
from xcls.runs.identity import runs_root
from xcls.runs.record import plain, read_record, write_atomic, write_record

WAITING, RUNNING, DONE, SKIPPED, FAILED = "waiting", "running", "done", "skipped", "failed"
STOPPED = (
    "stopped"  # what a user reads of a job that has FAILED because it was asked to end; in sweep.json it is no state
)
INTERRUPTED = (
    128 + signal.SIGINT,
    128 + signal.SIGTERM,
    128 + signal.SIGHUP,
    128 + signal.SIGKILL,
)  # ends from outside


@dataclass
class Job:
    """One job: a run, or what a run needs first. The first nine fields are its entry in sweep.json."""

    number: int  # its place in the sweep's list, from 0
    overrides: list[str]  # what composes it
    folder: str  # relative to Sweep.runs; empty where it makes no run folder
    kind: str  # pretrain, finetune, baseline (or another mode)
    needs: list[int]  # numbers of the jobs that come first
    device: str | None = None
    state: str = WAITING
    cause: str | None = None
    exit_code: int | None = None
    hash: str | None = None
    gpu: bool = False  # it computes on a GPU
    threads: int | None = None  # hardware.threads as configured
    stopped: bool = (
        False  # of those that FAILED: it was asked to end, saved, and says so; the same command goes on with it
    )
    began: float = 0.0  # seconds since the epoch
    outline: Any = None

    @property
    def entry(self) -> dict[str, Any]:
        """What sweep.json says of it."""
        names = ("number", "overrides", "folder", "kind", "needs", "device", "state", "cause", "exit_code")
        return {name: getattr(self, name) for name in names}

    @property
    def label(self) -> str:
        """Its run's name without the data set, or what was typed."""
        return self.folder.rpartition("/")[2] or " ".join(
            word for word in self.overrides if not word.startswith("sweep=")
        )


@dataclass
class Sweep:
    """The jobs of one sweep. Every change of state is in `multirun/<name>/sweep.json` before the method returns."""

    name: str
    root: Path  # the project
    launcher: str
    jobs: list[Job] = field(default_factory=list)
    equal: int = 0  # cells of the grid that are equal to others, and left out
    started: float = field(default_factory=time.time)

    @property
    def runs(self) -> Path:
        """The folder of pretrain/, finetune/ and multirun/."""
        return runs_root(self.root)

    @property
    def folder(self) -> Path:
        """Where the sweep's own files are."""
        return self.runs / "multirun" / self.name

    def log(self, job: Job) -> Path:
        """The file for what `job` prints."""
        return self.folder / "logs" / f"{job.number:03d}.txt"

    def write(self) -> None:
        """Writes sweep.json, whole or not at all."""
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
        """The waiting jobs whose needs are settled, in order. A baseline that failed stops no run: only the report misses it."""
        unsettled = {job.number for job in self.jobs if job.state in (WAITING, RUNNING)}
        return [job for job in self.jobs if job.state == WAITING and not unsettled & set(job.needs)]

    def blocked(self) -> list[Job]:
        """Fails the waiting jobs whose pretraining failed, with that as their cause, and gives them."""
        found = []
        for job in self.jobs:
            needed = [self.jobs[number] for number in job.needs]
            bad = [other for other in needed if other.state == FAILED and other.kind == "pretrain"]
            if job.state == WAITING and bad:
                status = "interrupted" if bad[0].exit_code in INTERRUPTED else "failed"
                self._fail(job, f"its pretraining {bad[0].folder} did not complete: {bad[0].cause}", status)
                found.append(job)
        if found:
            self.write()
        return found

    def prepare(self, job: Job) -> None:
        """Lays down what `job` reads in its folder. Call it before its process starts."""
        if job.outline is not None and job.outline.file is not None:
            job.outline.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(job.outline.folder / "config.yaml", job.outline.file)

    def start(self, job: Job, device: str | None = None) -> None:
        """`job` runs now, on `device`."""
        job.state, job.device, job.began = RUNNING, device, time.time()
        self.write()

    def end(self, job: Job, exit_code: int | None) -> None:
        """`job` has ended: done, or failed with a cause from its record, its output or its exit code (128 + signal).

        With exit_code None (the caller cannot know it) the record alone decides. A job that died before it could write
        its end gets a record that says so.
        """
        job.exit_code = exit_code
        status, cause = self._found(job)
        if exit_code == 0 and job.hash is None or exit_code in (0, None) and status == "completed":
            job.state, job.cause = DONE, None
        elif status in ("failed", "interrupted") and self._is_news(job):
            job.state, job.cause, job.stopped = FAILED, cause or status, status == "interrupted"
        else:
            self._fail(job, self._cause(job), "interrupted" if exit_code in (None, *INTERRUPTED) else "failed")
        self.write()

    def skip(self, job: Job) -> bool:
        """Whether a run that somebody else has meanwhile completed makes `job` unnecessary; it is skipped then."""
        if self._found(job)[0] != "completed":
            return False
        job.state = SKIPPED
        self.write()
        return True

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state, the stopped ones by themselves; states without a job are left out."""
        states = [STOPPED if job.stopped else job.state for job in self.jobs]
        return {
            state: states.count(state)
            for state in (DONE, SKIPPED, STOPPED, FAILED, RUNNING, WAITING)
            if state in states
        }

    @property
    def exit_code(self) -> int:
        """0 where every job is done or was so before."""
        return int(any(job.state not in (DONE, SKIPPED) for job in self.jobs))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the sweep against a second process that runs the same one. Raises UserError."""
        from filelock import FileLock, Timeout  # slow to import; the scan for plugins comes by here at every start

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(self.folder / ".sweep.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            text = f"multirun/{self.name}: this sweep is running already. Wait for it, or choose another exp=…."
            raise UserError(text) from error
        try:
            yield
        finally:
            lock.release()

    def _found(self, job: Job) -> tuple[str | None, str | None]:
        """Status and cause in the job's record; None where there is none of this job."""
        try:
            record = read_record(self.runs / job.folder) if job.hash else None
        except ValueError:
            return None, None
        return (record.status, record.cause) if record is not None and record.hash == job.hash else (None, None)

    def _is_news(self, job: Job) -> bool:
        """Whether the job's record was written since it began; before that it tells of an earlier time."""
        return (self.runs / job.folder / "record.json").stat().st_mtime >= job.began - 1

    def _cause(self, job: Job) -> str:
        """Why a job without a word in its record ended."""
        if job.exit_code is None:
            return job.cause or "it ended without a result"
        return cause_of(job.exit_code, self.log(job))

    def _fail(self, job: Job, cause: str, status: str) -> None:
        """`job` is a failure. Its record, where it says nothing of that, gets `status` and `cause`, so that it is a row."""
        job.state, job.cause = FAILED, cause
        if job.hash is None or job.outline.record is None:
            return
        folder = self.runs / job.folder
        try:
            record = read_record(folder)
            if record.hash != job.hash:
                return  # somebody else's run
        except ValueError:
            record = replace(job.outline.record, started=self.started)
        if record.status == "running":
            record.status, record.cause, record.ended = status, cause, time.time()
            folder.mkdir(parents=True, exist_ok=True)
            write_record(record, folder)


def compose(launcher: Launcher, overrides: Sequence[str]) -> DictConfig:
    """A job's configuration, Hydra's node included, as its process will compose it. Raises Hydra's errors."""
    config = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, list(overrides))
    with open_dict(config):
        config.hydra.job.num = 0
    return config


def sweep_name(config: DictConfig) -> str:
    """The sweep's folder under multirun/: `exp`, else the experiment's name, else `sweep`. Raises UserError."""
    name = str(config.exp or config.hydra.runtime.choices.get("experiment") or "sweep")  # exp=5 is a number to Hydra
    check_name("exp", name)
    return name


def plan_sweep(launcher: Launcher, job_overrides: Sequence[Sequence[str]]) -> Sweep:
    """The sweep of these jobs: what they need first, equal cells once, what is finished. Writes nothing.

    `launcher` has been set up by Hydra. Raises UserError or Hydra's errors for a bad configuration, or bad data, of any job.
    """
    script = sys.modules[launcher.task_function.__module__]
    name = sweep_name(launcher.config)
    choice = launcher.config.hydra.runtime.choices.get("hydra/launcher") or type(launcher).__name__
    sweep = Sweep(name=name, root=Path(script.__file__).resolve().parent, launcher=choice)
    known: dict[str, Job] = {}
    refuse_secrets({"hydra.launcher": OmegaConf.to_container(launcher.config.hydra.launcher, resolve=True)})
    for overrides in job_overrides:
        words = [*overrides, f"sweep={name}"]
        config = compose(launcher, words)
        HydraConfig.instance().set_config(config)
        task = copy.deepcopy(config)
        with read_write(task), open_dict(task):
            del task["hydra"]
        refuse_secrets(OmegaConf.to_container(task, resolve=True))
        threads = OmegaConf.select(task, "hardware.threads")
        found = script.outline(task)
        for outline in found:
            if outline.hash in known:
                sweep.equal += outline is found[-1]  # the cell itself; several may need what comes before it
                continue
            job = _job(sweep, outline, words, known)
            job.threads = threads
            sweep.jobs.append(job)
            if job.hash is not None:
                known[job.hash] = job
    order(sweep)
    return sweep


def _job(sweep: Sweep, outline: Any, words: list[str], known: dict[str, Job]) -> Job:
    """The job of `outline`, as it stands before the sweep starts."""
    folder = "" if outline.folder is None else Path(os.path.relpath(outline.folder, sweep.runs)).as_posix()
    job = Job(
        number=len(sweep.jobs),
        overrides=outline.overrides or words,
        folder=folder,
        kind=outline.kind,
        needs=[known[digest].number for digest in outline.needs],
        hash=outline.hash,
        gpu=outline.gpu,
        outline=outline,
    )
    if outline.action == "done":
        job.state = SKIPPED if outline.found.status == "completed" else FAILED
        job.cause = (
            None
            if job.state == SKIPPED
            else f"{outline.found.cause} (an earlier time; retry_failed=true runs it again)"
        )
    return job


def order(sweep: Sweep) -> None:
    """Puts first what others need, pretraining (the longest) before baselines; then the mechanisms of a seed in turn, before
    those of the next seed, whatever order the axes were typed in: what slows the machine for a while slows all of them.
    Numbers the jobs by their place."""
    rank = {"pretrain": 0, "baseline": 1}
    needed = {number for job in sweep.jobs for number in job.needs}
    seeds, cells = (list(dict.fromkeys(part(job) for job in sweep.jobs)) for part in (_seed, _cell))

    def turn(job: Job) -> tuple[int, int, int]:
        """What a job is sorted by; equals keep the order of the grid."""
        first = rank.get(job.kind, 2) if job.number in needed else 3
        return (first, seeds.index(_seed(job)), cells.index(_cell(job))) if first == 3 else (first, 0, 0)

    jobs = sorted(sweep.jobs, key=turn)
    place = {job.number: position for position, job in enumerate(jobs)}
    for job in jobs:
        job.number, job.needs = place[job.number], [place[number] for number in job.needs]
    sweep.jobs = jobs


def _seed(job: Job) -> tuple[str, ...]:
    """What was typed of the seed for this job."""
    return tuple(word for word in job.overrides if _key(word) == "seed")


def _cell(job: Job) -> tuple[str, ...]:
    """What was typed for this job, in any order, but for its seed and its mechanism."""
    return tuple(sorted(word for word in job.overrides if _key(word) not in ("seed", "attention")))


def _key(word: str) -> str:
    """`attention` of `attention=sdpa` and of `+attention.dropout=0.1`."""
    return word.partition("=")[0].lstrip("+~").partition(".")[0]

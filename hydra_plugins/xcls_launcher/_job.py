"""One job of a sweep, its command, and how it ended."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator

from xcls.runs.record import Record, read_record, write_record
from xcls.runs.spec import JobSpec

WAITING, RUNNING, DONE, SKIPPED, FAILED = "waiting", "running", "done", "skipped", "failed"
INTERRUPTED = tuple(128 + n for n in (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM))  # exit codes
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # signals that ask a launcher to end
SHOWN = 400  # characters of a cause


@dataclass(eq=False)
class Job:
    """One job: a run, or what a run needs first."""

    overrides: list[str]  # its command line
    folder: str  # relative to Sweep.runs; empty if the mode has no run folder
    spec: JobSpec
    needs: list[Job]  # the jobs that must be done first
    number: int = 0  # its place in the sweep
    threads: int | None = None  # hardware.threads as configured
    device: str | None = None
    state: str = WAITING
    cause: str | None = None
    exit_code: int | None = None
    stopped: bool = False  # it FAILED because a signal stopped it; the same command continues it
    began: float = 0.0  # seconds since the epoch

    @property
    def entry(self) -> dict[str, Any]:
        """Its entry in sweep.json."""
        own = {name: getattr(self, name) for name in ("number", "overrides", "folder", "device", "state", "cause")}
        return {**own, "kind": self.spec.kind, "needs": [job.number for job in self.needs], "exit_code": self.exit_code}

    @property
    def label(self) -> str:
        """The run's name without the data set, or its overrides."""
        return Path(self.folder).name or " ".join(word for word in self.overrides if not word.startswith("sweep="))

    @property
    def pretrainings(self) -> list[Job]:
        """The pretraining jobs that it needs."""
        return [job for job in self.needs if job.spec.kind == "pretrain"]

    def command(self, root: Path) -> list[str]:
        """The command that a user could type for this job; `root`: the project."""
        return [sys.executable, str(root / "run.py"), *self.overrides, "hydra.mode=RUN"]

    def variables(self, *, shared: bool) -> dict[str, str]:
        """Environment variables for its process; `shared`: other jobs use the same device."""
        return {"XCLS_PROGRESS": "0", "XCLS_SHARED": str(int(shared)), "XCLS_HASH": self.spec.hash or ""}


def cause_of(code: int, log: Path) -> str:
    """Why a job ended that wrote no cause: from its exit code (128 + signal) and its output in `log`."""
    if code > 128:
        name = next((item.name for item in signal.Signals if item == code - 128), f"signal {code - 128}")
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}; the same command continues from its last checkpoint"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    text = "\n".join(line for line in lines if line.strip())
    said = text.rpartition("run.py: ")[2] if "run.py: " in text else text.rpartition("\n")[2]
    return f"{' '.join(said.split())[:SHOWN]} (exit code {code})".strip()


def write_end(folder: Path, template: Record, status: str, cause: str, *, again: bool = False) -> None:
    """Writes the final status of a run that died before it could; without a record, `template` becomes the record.

    Does not change the record of another run, or one with a final status. `again`: adds the cause to an interruption.
    """
    try:
        record = read_record(folder)
    except ValueError:
        record = replace(template, started=time.time())
    if record.hash != template.hash or record.status not in ("running", "interrupted" if again else "running"):
        return
    record.cause = f"{record.cause}; {cause}" if again and record.cause else cause
    record.status, record.ended = status, time.time()
    folder.mkdir(parents=True, exist_ok=True)
    write_record(record, folder)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """A context in which stop signals are only added to the list that it yields."""
    came: list[int] = []
    wanted = [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN]  # ignored under nohup
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in wanted}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

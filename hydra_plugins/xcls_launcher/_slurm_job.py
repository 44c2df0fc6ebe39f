"""The code that Slurm runs for one job of a sweep: it starts the job's command as a child process.

If the child is killed, this process writes the cause into the record. After Slurm's warning it waits until the child
has saved, then puts the job back into the queue.
"""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra_plugins.xcls_launcher._job import cause_of, write_end
from xcls.runs.record import Record, read_record
from xcls.runs.subprocesses import run_child

WARNING = signal.SIGUSR2  # Slurm sends it before a time limit or preemption; submitit asks for it
STOPPED = tuple(128 + number for number in (signal.SIGINT, signal.SIGTERM, WARNING))  # exit codes of runs asked to stop


@dataclass
class SlurmJob:
    """One job; submitit pickles it and calls it on the node. Paths are absolute."""

    command: list[str]
    directory: str  # where the command runs
    log: str  # the file for its output; the exit code is written next to it
    variables: dict[str, str]  # added to its environment
    folder: str = ""  # the run's
    record: Record | None = None  # the record if the run dies before it writes one; None: no run
    needs: list[str] = field(default_factory=list)  # folders of the runs that must be completed

    def __call__(self) -> int:
        """Runs the command. Returns its exit code, 128 + signal if killed. After a warning it does not return."""
        back_into_queue = signal.getsignal(WARNING)  # submitit's handler, which ends this process
        for folder in self.needs:
            if not is_completed(Path(folder)):
                self._write_end("interrupted", f"its pretraining {folder} did not complete")
                return 1
        environment = {**os.environ, **self.variables}
        code, came = run_child(self.command, environment, cwd=self.directory, log=self.log)
        if code:
            self._write_end("interrupted" if code > 128 else "failed", cause_of(code, Path(self.log)))
        if code in STOPPED and (WARNING in came or signal.SIGTERM in came and is_kept()):
            try:
                assert callable(back_into_queue)
                back_into_queue(WARNING, None)
            except Exception as error:  # too many requeues, or Slurm refuses
                self._write_end("interrupted", f"not put back into the queue: {error}", again=True)
                raise
        exit_file(Path(self.log)).write_text(str(code))
        return code

    def checkpoint(self) -> Any:
        """What submitit runs when the job comes back: the same command, which resumes the run."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _write_end(self, status: str, cause: str, *, again: bool = False) -> None:
        if self.record is not None:
            write_end(Path(self.folder), self.record, status, cause, again=again)


def is_completed(folder: Path) -> bool:
    """Whether the run in `folder` is completed."""
    try:
        return read_record(folder).status == "completed"
    except ValueError:
        return False


def exit_file(log: Path) -> Path:
    """The file for the exit code of the job with this log."""
    return log.with_suffix(".exit")


def is_kept() -> bool:
    """Whether Slurm still counts this job as running, so that a SIGTERM was the warning of a preemption.

    A job that is cancelled or moved is CANCELLED or PENDING before it gets its SIGTERM.
    """
    answer = ask("scontrol", "--oneliner", "show", "job", os.environ.get("SLURM_JOB_ID", ""))
    return " JobState=RUNNING " in (answer or "")


def ask(*command: str) -> str | None:
    """The output of a Slurm command; None if it failed or took too long."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None

"""What Slurm runs: one job of a sweep as a process of its own, by the very command a user could type.

A process of its own, because this one then outlives it: it writes down what killed the run, and after a warning it waits
until the run has saved itself before it puts the job back into the queue. Standard library, and submitit where it is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra_plugins.xcls_launcher._causes import cause_of
from xcls.runs.record import Record, read_record, write_record

WARNING = signal.SIGUSR2  # what Slurm sends before the time is up or the place is taken, as submitit asks it to
STOPPED = tuple(128 + number for number in (signal.SIGINT, signal.SIGTERM, WARNING))  # exit codes of runs asked to stop


@dataclass
class SlurmJob:
    """One job; submitit packs it and calls it on the node. Paths are absolute; `record` is None where no run is made."""

    command: list[str]
    directory: str  # where the command runs
    log: str  # the file for what it prints
    variables: dict[str, str]  # of its environment
    folder: str = ""  # the run's
    record: Record | None = None  # what its record says if it dies before it writes one
    needs: list[str] = field(default_factory=list)  # folders of the runs that must be completed

    def __call__(self) -> int:
        """Runs the command to its end; gives its exit code, 128 + signal where it was killed. No return after a warning."""
        back_into_queue = signal.getsignal(WARNING)  # submitit's handler, which ends this process
        missing = self.missing()
        if missing is not None:
            self.note(*missing)
            return 1
        code, came = self.run()
        if code:
            self.note("interrupted" if code > 128 else "failed", cause_of(code, Path(self.log)))
        if code in STOPPED and (WARNING in came or signal.SIGTERM in came and is_kept()):
            try:
                back_into_queue(WARNING, None)
            except Exception as error:  # too often, or Slurm refuses
                self.note("interrupted", f"not put back into the queue: {error}", again=True)
                raise
        return code

    def run(self) -> tuple[int, list[int]]:
        """The command's exit code, and the signals that came. They are passed on: with cgroups Slurm tells only us."""
        came: list[int] = []
        process: subprocess.Popen[bytes] | None = None

        def pass_on(number: int, frame: Any) -> None:
            came.append(number)
            if process is not None:
                process.send_signal(number)

        before = {number: signal.signal(number, pass_on) for number in (WARNING, signal.SIGTERM, signal.SIGINT)}
        try:
            with open(self.log, "ab", buffering=0) as output:
                environment = {**os.environ, **self.variables}
                process = subprocess.Popen(
                    self.command,
                    cwd=self.directory,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            for number in list(came):  # while the process was being made
                process.send_signal(number)
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return (code if code >= 0 else 128 - code), came

    def missing(self) -> tuple[str, str] | None:
        """Status and cause of a run whose pretraining did not complete; None where nothing is missing."""
        for folder in self.needs:
            try:
                found = read_record(Path(folder))
            except ValueError as error:
                return "failed", f"its pretraining has no record: {error}"
            if found.status != "completed":
                status = "failed" if found.status == "failed" else "interrupted"
                return status, f"its pretraining {found.run} did not complete: {found.cause or found.status}"
        return None

    def note(self, status: str, cause: str, *, again: bool = False) -> None:
        """Puts an end into the run's record that the run could not write itself. `again`: adds to the end that it wrote."""
        if self.record is None:
            return
        folder = Path(self.folder)
        try:
            record = read_record(folder)
        except ValueError:
            record = self.record
        if record.hash != self.record.hash or record.status == "completed" or record.status != "running" and not again:
            return
        record.cause = f"{record.cause}; {cause}" if again and record.cause else cause
        record.status, record.started, record.ended = status, record.started or time.time(), time.time()
        folder.mkdir(parents=True, exist_ok=True)
        write_record(record, folder)

    def checkpoint(self) -> Any:
        """What submitit runs when the job comes back: the same command, which goes on from the run's last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def is_kept() -> bool:
    """Whether Slurm means to go on with the job that we are in, so that a SIGTERM was no end but the warning of a
    cluster that preempts without one: a job that is cancelled or moved is called CANCELLED or PENDING before it is told.
    """
    command = ["scontrol", "--oneliner", "show", "job", os.environ.get("SLURM_JOB_ID", "")]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return " JobState=RUNNING " in answer

"""What a run survives, where its configuration allows it: bad steps, by leaving them out or by restarts at a lower
rate, and lack of memory, by smaller micro-batches. Each is an entry of `faults` in the record and in every checkpoint.
"""

from __future__ import annotations

from typing import Any

from xcls.config.schema import Hardware, Training
from xcls.train.faults import BadNumbers, OutOfMemory
from xcls.train.progress import Progress
from xcls.train.run_logger import RunLogger

BAD_STEP, RESTART, HALVED = "bad_step", "restart", "halved"  # kinds of faults
RESTART_RATE = 0.5  # the learning rate after a restart, as a share of the one before
RESTARTS_PER_EPOCH = 2


class Recovery:
    """Decides what may be survived, and writes it down."""

    def __init__(self, *, training: Training, hardware: Hardware, journal: RunLogger, steps_per_epoch: int) -> None:
        self.training, self.hardware, self.journal = training, hardware, journal
        self.steps_per_epoch = steps_per_epoch

    @property
    def restarts(self) -> bool:
        """Does `on_nan` ask for restarts?"""
        return self.training.on_nan == "restart"

    @property
    def halves(self) -> bool:
        """Does `on_oom` ask for smaller micro-batches?"""
        return self.hardware.on_oom == "halve"

    def skip(self, progress: Progress, error: BadNumbers) -> None:
        """Notes that the step at hand is left out; raises `error` where `max_bad_steps` are already."""
        if _count(progress, BAD_STEP) >= self.training.max_bad_steps:
            raise error
        self._note(progress, BAD_STEP, progress.step, f"{error}; the step is left out", error.details)

    def may_restart(self, progress: Progress) -> bool:
        """Is a restart asked for, and one left in this epoch?"""
        epoch = progress.step // self.steps_per_epoch
        return self.restarts and _count(progress, RESTART, epoch) < RESTARTS_PER_EPOCH

    def restarted(self, failed: Progress, restored: Progress, error: BadNumbers) -> None:
        """Lowers the rate of `restored`, the checkpoint's progress, and notes the restart that `failed` led to."""
        restored.rate_factor *= RESTART_RATE
        restored.faults = list(failed.faults)
        again = f"back to the checkpoint of step {restored.step} with {restored.rate_factor:g} of the learning rate"
        self._note(restored, RESTART, failed.step, f"{error}; {again}", error.details)

    def halve(self, progress: Progress, rows: int, error: OutOfMemory) -> None:
        """Memory ran out with `rows` rows at once: half as many from now on, twice as often."""
        progress.micro_batch = (rows + 1) // 2
        self.show_micro_batch(progress)
        cause = f"{error} It goes on with micro-batch {progress.micro_batch}"
        self._note(progress, HALVED, progress.step, cause, {"micro_batch": progress.micro_batch})

    def show_micro_batch(self, progress: Progress) -> None:
        """The record names the micro-batch that is in use: costs are compared by it."""
        if progress.micro_batch is not None:
            self.journal.record.device["micro_batch"] = progress.micro_batch

    def _note(self, progress: Progress, kind: str, step: int, cause: str, details: dict[str, Any]) -> None:
        """Into the progress, the record and, with all details, the events; a warning says it aloud."""
        fault = {"kind": kind, "step": step, "epoch": step // self.steps_per_epoch, "cause": cause}
        progress.faults.append(fault)
        self.journal.record.faults = [dict(item) for item in progress.faults]
        self.journal.event("fault", {**details, **fault})
        self.journal.warn(f"{cause}.")
        self.journal.save()


def _count(progress: Progress, kind: str, epoch: int | None = None) -> int:
    """How many faults of a kind there were, in all or in an epoch."""
    return sum(fault["kind"] == kind and epoch in (None, fault["epoch"]) for fault in progress.faults)

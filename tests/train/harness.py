"""Small trainings with faults: bad numbers and lack of memory that come with a row of the data."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Iterator
from unittest import mock

import pytest
import torch

from tests.faults import runs
from tests.faults.runs import Case
from xcls.train.update import Updater

ROW = 7  # the row of the data that brings the faults of a run with `fault`
BAD_STEPS = Case("finetune", "sdpa", fault="bad", training={"max_bad_steps": 100})
LITTLE_MEMORY = Case("finetune", "performer", fault="memory")


@contextmanager
def injected(case: Case) -> Iterator[None]:
    """The faults of `case`; they depend on nothing but the batch, so that every process of a run meets the same.

    bad: a batch with ROW gives NaN. memory: of a batch with ROW no more than 4 rows fit, or `fits` of every batch.
    """
    fitting, gradients = Updater._gradients_that_fit, Updater._gradients

    def bad(self: Updater, batch: Any, progress: Any) -> Any:
        loss, terms = fitting(self, batch, progress)
        return (loss * float("nan") if ROW in batch["index"] else loss), terms

    def narrow(self: Updater, batch: Any, size: int | None) -> Any:
        found = gradients(self, batch, size)
        room = case.fits if case.fits is not None else 4 if ROW in batch["index"] else 2**60
        if (size or len(batch["index"])) > room:
            torch.empty(2**60, dtype=torch.uint8, device=self.amp.device)
        return found

    with ExitStack() as stack:
        if case.fault == "bad":
            stack.enter_context(mock.patch.object(Updater, "_gradients_that_fit", bad))
        if case.fault == "memory":
            stack.enter_context(mock.patch.object(Updater, "_gradients", narrow))
        yield


def live(folder: Path, case: Case, **changes: Any) -> None:
    """One process of a run in `folder`, as `resume=true` begins it. `changes`: settings of the training."""
    with injected(case):
        runs.live(folder, replace(case, training={**case.training, **changes}))


def terminate() -> None:
    """What stops a run from outside."""
    os.kill(os.getpid(), signal.SIGTERM)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, how: Callable[[], Any] = terminate) -> None:
    """Calls `how()` in the middle of step number `step` of the loop."""
    apply = Updater.apply

    def wrapped(self: Updater, batch: Any, progress: Any, *given: Any) -> Any:
        if progress.step + 1 == step:
            how()
        return apply(self, batch, progress, *given)

    monkeypatch.setattr(Updater, "apply", wrapped)

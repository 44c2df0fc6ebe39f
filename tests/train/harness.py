"""Small trainings with faults: bad numbers and lack of memory that come with a row of the data."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator
from unittest import mock

import torch

from tests.faults import runs
from xcls.config.schema import Hardware
from xcls.train.precision import Precision
from xcls.train.update import Updater

ROW = 7  # the row of the data that brings the faults of a run with `fault`


@dataclass(frozen=True)
class Case(runs.Case):
    """One kind of training. `fault`: bad (NaN with ROW), memory (with ROW no more than 4 rows fit)."""

    fault: str | None = None
    device: str = "cpu"


BAD_STEPS = Case("finetune", "sdpa", fault="bad", training={"max_bad_steps": 100})
LITTLE_MEMORY = Case("finetune", "performer", fault="memory")


@contextmanager
def injected(fault: str | None) -> Iterator[None]:
    """Faults that depend on nothing but the batch, so that every process of a run meets the same."""
    fitting, gradients = Updater._gradients_that_fit, Updater._gradients

    def bad(self: Updater, batch: Any, progress: Any) -> Any:
        loss, terms = fitting(self, batch, progress)
        return (loss * float("nan") if ROW in batch["index"] else loss), terms

    def narrow(self: Updater, batch: Any, size: int | None) -> Any:
        found = gradients(self, batch, size)
        if ROW in batch["index"] and (size or len(batch["index"])) > 4:
            torch.empty(2**60, dtype=torch.uint8, device=self.amp.device)
        return found

    with ExitStack() as stack:
        if fault == "bad":
            stack.enter_context(mock.patch.object(Updater, "_gradients_that_fit", bad))
        if fault == "memory":
            stack.enter_context(mock.patch.object(Updater, "_gradients", narrow))
        yield


def live(folder: Path, case: Case, **changes: Any) -> None:
    """One process of a run in `folder`, as `resume=true` begins it. `changes`: settings of the training."""
    device, oom = {"device": case.device}, {"on_oom": "halve" if case.fault == "memory" else "stop"}
    made = {
        "Hardware": lambda **given: Hardware(**{**given, **device, **oom}),
        "Precision": lambda **given: Precision(**{**given, **device}),
    }
    with injected(case.fault), mock.patch.multiple(runs, **made):
        runs.live(folder, replace(case, training={**case.training, **changes}))

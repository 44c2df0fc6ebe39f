"""Where a run stands: plain numbers that every checkpoint carries."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass, field, fields
from typing import Any

from tqdm import tqdm

Scores = dict[str, "float | None"]


@dataclass
class Progress:
    """What changes from step to step beside weights, optimizer and random states."""

    step: int = 0  # updates done, or left out for bad numbers
    loss_sum: float = 0.0  # since the last evaluation
    loss_terms: int = 0
    evaluated_at: int = 0
    best: float | None = None
    best_step: int | None = None
    since_best: int = 0  # evaluations
    validation: Scores | None = None  # the scores of the best step
    scheduled_at: int = -1  # the last checkpoint that was due by step, not by clock or signal: the same in every resume
    rate_factor: float = 1.0  # lowered by restarts
    micro_batch: int | None = None  # rows at once, where lack of memory has halved them
    faults: list[dict[str, Any]] = field(default_factory=list)  # what the run survived: kind, step, cause

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> Progress:
        """From a checkpoint, also an older one that does not have all of it."""
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in saved.items() if name in known})


def passes(step: int, *, steps: int | None, epochs: float | None, steps_per_epoch: int) -> bool:
    """Has the step just done, the `step`-th, completed `steps` steps or `epochs` epochs?"""
    if steps is not None and step % steps == 0:
        return True
    if epochs is None:
        return False
    interval = epochs * steps_per_epoch
    return math.floor(step / interval + 1e-9) > math.floor((step - 1) / interval + 1e-9)


def progress_bar(*, total: int, desc: str, unit: str, initial: int = 0) -> tqdm:
    """A bar on stderr, seldom drawn where nobody watches; none with XCLS_PROGRESS=0."""
    return tqdm(
        total=total,
        initial=initial,
        desc=desc,
        unit=unit,
        disable=os.environ.get("XCLS_PROGRESS") == "0",
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
        leave=False,
    )

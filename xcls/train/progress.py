"""The progress of a run: the numbers that every checkpoint carries, and what is shown of them while it trains."""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import dataclass

from tqdm import tqdm

from xcls.train.metrics import Scores
from xcls.train.run_logger import RunLogger

QUIET = 20.0  # seconds after which a step gets an event though it is no hundredth of all: steps may be slow


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
    micro_batch: int | None = None  # rows at once, where lack of memory has halved them


def progress_bar(*, total: int, desc: str, unit: str, initial: int = 0) -> tqdm:
    """A bar on stderr, seldom drawn where nobody watches; none with XCLS_PROGRESS=0."""
    hidden, interval = os.environ.get("XCLS_PROGRESS") == "0", 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, initial=initial, desc=desc, unit=unit, disable=hidden, mininterval=interval, leave=False)


class StepDisplay:
    """The bar of the steps, and an event for each hundredth of them."""

    def __init__(self, logger: RunLogger, *, total: int, initial: int) -> None:
        self.logger, self.total = logger, total
        self.bar = progress_bar(total=total, initial=initial, desc=logger.record.mode, unit="step")
        self.event_time = time.monotonic()

    def close(self) -> None:
        """Takes the bar away."""
        self.bar.close()

    def show(self, done: int, *, loss: float, norm: float, lr: float, speed: float | None) -> None:
        """`done` steps are done: the last one's mean loss, gradient norm and learning rate; speed in tokens/s."""
        pace = "" if speed is None else f", {speed:,.0f} tokens/s"
        self.bar.set_postfix_str(f"loss {loss:.3f}{pace}", refresh=False)
        self.bar.update()
        quiet = time.monotonic() - self.event_time >= QUIET
        if math.isfinite(loss) and (quiet or done % max(1, self.total // 100) == 0):
            self.event_time = time.monotonic()
            self.logger.event("step", {"step": done, "step_loss": loss, "grad_norm": norm, "lr": lr})

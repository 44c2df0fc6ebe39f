"""The progress of a run: the numbers that every checkpoint contains, and their display during training."""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import dataclass

from tqdm import tqdm

from xcls.train.metrics import Scores
from xcls.train.run_logger import RunLogger

QUIET = 20.0  # seconds after which the next step gets an event in any case: steps may be slow


@dataclass
class Progress:
    """What changes from step to step, besides weights, optimizer and random states."""

    step: int = 0  # updates done, or skipped because of non-finite numbers
    loss_sum: float = 0.0  # since the last evaluation
    loss_terms: int = 0
    evaluated_at: int = 0
    best: float | None = None
    best_step: int | None = None
    since_best: int = 0  # evaluations
    validation: Scores | None = None  # the scores of the best step
    micro_batch: int | None = None  # rows at once, if lack of memory has halved them


def progress_bar(*, total: int, desc: str, unit: str, initial: int = 0) -> tqdm:
    """A bar on stderr, drawn every 30 s if stderr is no terminal; hidden with XCLS_PROGRESS=0."""
    hidden, interval = os.environ.get("XCLS_PROGRESS") == "0", 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, initial=initial, desc=desc, unit=unit, disable=hidden, mininterval=interval, leave=False)


class StepDisplay:
    """The progress bar of the steps, and one event per 1 % of the steps."""

    def __init__(self, logger: RunLogger, *, total: int, initial: int) -> None:
        self.logger, self.total = logger, total
        self.bar = progress_bar(total=total, initial=initial, desc=logger.record.mode, unit="step")
        self.event_time = time.monotonic()

    def close(self) -> None:
        """Removes the bar."""
        self.bar.close()

    def show(self, done: int, *, loss: float, norm: float, lr: float, speed: float | None) -> None:
        """Shows step `done` with its mean loss, gradient norm and learning rate; speed in tokens/s."""
        pace = "" if speed is None else f", {speed:,.0f} tokens/s"
        self.bar.set_postfix_str(f"loss {loss:.3f}{pace}", refresh=False)
        self.bar.update()
        quiet = time.monotonic() - self.event_time >= QUIET
        if math.isfinite(loss) and (quiet or done % max(1, self.total // 100) == 0):
            self.event_time = time.monotonic()
            self.logger.event("step", {"step": done, "step_loss": loss, "grad_norm": norm, "lr": lr})

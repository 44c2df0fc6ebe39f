"""What a run shows while it trains: a progress bar, and now and then a line of the events."""

from __future__ import annotations

import math
import time
from types import TracebackType

from xcls.train.progress import progress_bar
from xcls.train.run_logger import RunLogger

QUIET = 20.0  # seconds after which a step is told of, though it is no hundredth of all: steps may be slow


class StepDisplay:
    """The bar of the steps, and an event for each hundredth of them."""

    def __init__(self, journal: RunLogger, *, total: int, initial: int) -> None:
        self.journal, self.total = journal, total
        self.bar = progress_bar(total=total, initial=initial, desc=journal.record.mode, unit="step")
        self.told_time = time.monotonic()

    def __enter__(self) -> StepDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def show(self, done: int, *, loss: float, norm: float, lr: float, speed: float | None) -> None:
        """`done` steps are done: the last one's mean loss, gradient norm and learning rate; speed in tokens/s."""
        self.bar.set_postfix_str(
            f"loss {loss:.3f}" + ("" if speed is None else f", {speed:,.0f} tokens/s"), refresh=False
        )
        self.bar.update()
        quiet = time.monotonic() - self.told_time >= QUIET
        if math.isfinite(loss) and (quiet or done % max(1, self.total // 100) == 0):
            self.told_time = time.monotonic()
            self.journal.event("step", {"step": done, "step_loss": loss, "grad_norm": norm, "lr": lr})

    def go_back(self, step: int) -> None:
        """The run goes on from `step`."""
        self.bar.n = step

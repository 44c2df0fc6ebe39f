"""Stop signals: a run finishes its current step and saves before it ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")  # Ctrl-C, a time limit, Slurm, Colab, a spot machine


class Interrupted(BaseException):
    """A signal asked the run to stop; `resume=true` continues from its last checkpoint.

    No subclass of Exception, like KeyboardInterrupt, so that no `except Exception` catches it.
    """


class StopSignals:
    """While entered, records stop signals instead of ending the process; a second Ctrl-C ends it at once.

    With `at_once` a signal raises Interrupted where it arrives: for the parts of a run that have nothing to save.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.at_once = at_once
        self.requested: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for name in NAMES:
                number = getattr(signal, name, None)
                if number is not None:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT" and self.requested == "SIGINT":
            raise KeyboardInterrupt
        self.requested = name
        if self.at_once:
            self.check()

    def check(self) -> None:
        """Raises Interrupted if a signal has come."""
        if self.requested is not None:
            raise Interrupted(f"stopped by {self.requested}")

"""Being stopped from outside: the step under way is finished and saved first."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")  # Ctrl-C, a time limit, Slurm, Colab, a spot machine


class Interrupted(BaseException):
    """The run was asked to stop; `resume=true` goes on from its last checkpoint.

    Like KeyboardInterrupt no Exception: it may come anywhere, and nobody who handles errors may swallow it.
    """


class StopSignals:
    """While entered, notes the signals instead of dying of them; a second Ctrl-C stops at once.

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
        """Raises Interrupted where a signal has come."""
        if self.requested is not None:
            raise Interrupted(f"stopped by {self.requested}")

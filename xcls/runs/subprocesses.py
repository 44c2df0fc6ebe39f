"""A run that another one needs first, in a process of its own. Standard library only."""

from __future__ import annotations

import signal
import subprocess
import threading
from types import FrameType
from typing import Mapping, Sequence

PASSED_ON = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")


def run_child(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, bool]:
    """Runs a command to its end: its exit code, and whether a signal meanwhile asked this process to end.

    Such a signal is passed on, and the child waited for: it saves before it ends, where `subprocess.run` would kill it
    after a quarter of a second. Ctrl-C reaches both processes and is passed on as SIGTERM, for a second Ctrl-C means
    "end at once".
    """
    asked: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if child is not None and child.poll() is None:
            child.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
        numbers = [getattr(signal, name) for name in PASSED_ON if hasattr(signal, name)]
        before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        child = subprocess.Popen(command, env=dict(environment))
        if asked:  # while it was made
            child.terminate()
        return child.wait(), bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

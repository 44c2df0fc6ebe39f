"""Starts a run as a child process and waits for it. Standard library only."""

from __future__ import annotations

import signal
import subprocess
import threading
from types import FrameType
from typing import Any, Mapping, Sequence

PASSED_ON = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")


def run_child(
    command: Sequence[str], environment: Mapping[str, str], *, cwd: str | None = None, log: str | None = None
) -> tuple[int, list[int]]:
    """Runs a command to its end. Returns its exit code (128 + signal if killed) and the signals that came meanwhile.

    It passes signals on and waits for the child, which saves before it ends; `subprocess.run` would kill it after a
    quarter of a second. Ctrl-C reaches both processes, so it is passed on as SIGTERM: a second Ctrl-C would end the
    child at once. `log`: the file for the child's output; without it the child uses this terminal.
    """
    came: list[int] = []
    early: list[int] = []  # those that came before there was a child: it gets each of them once
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int) -> None:
        if child is None:
            early.append(number)
        else:
            child.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    def receive(number: int, frame: FrameType | None) -> None:
        came.append(number)
        pass_on(number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
        numbers = [getattr(signal, name) for name in PASSED_ON if hasattr(signal, name)]
        before = {number: signal.signal(number, receive) for number in numbers}
    try:
        if log is None:
            child = subprocess.Popen(command, env=dict(environment), cwd=cwd)
        else:
            with open(log, "ab") as output:
                streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
                child = subprocess.Popen(command, env=dict(environment), cwd=cwd, **streams)
        for number in early:
            pass_on(number)
        code = child.wait()
        return (code if code >= 0 else 128 - code), came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

"""Processes that can be killed: forks of one that has imported everything.

A thousand kills would else be a thousand imports of torch. A fork is a fair stand-in for a fresh process here because the
parent has one thread and has opened none of the files in question, so the child has a life of its own: what it has
written when it dies is what the kernel has been told, and what it holds in its memory is gone, as with any process.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, Callable

KILLED = 137
PATIENCE = 60.0  # seconds within which a run must end after a signal
CALLS = {  # of posix and io: what changes files, or could be the last thing that does not
    "open",
    "write",
    "writelines",
    "flush",
    "fsync",
    "close",
    "seek",
    "truncate",
    "replace",
    "rename",
    "link",
    "unlink",
    "remove",
    "mkdir",
    "rmdir",
    "copyfile",
    "sendfile",
    "copy_file_range",
    "__exit__",
}


def spawn(action: Callable[[], Any], log: Path) -> int:
    """Runs `action` in a fork, its output in `log`. Returns the process id."""
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    if len(threads) > 1:
        raise RuntimeError(f"this process has threads, so that a fork of it is not a whole process: {threads}")
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        action()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(process: int, seconds: float = PATIENCE) -> int:
    """Waits for a fork. Returns its exit code, minus the signal's number where it died of one. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise TimeoutError(f"it did not end within {seconds:.0f} s")


class LastCall:
    """A profiler that ends its process, as SIGKILL would, right before call number `fatal` of `CALLS`."""

    def __init__(self, fatal: int) -> None:
        self.left = fatal

    def __call__(self, frame: FrameType, event: str, function: Any) -> None:
        if event != "c_call" or function.__name__ not in CALLS:
            return
        owner = type(getattr(function, "__self__", None)).__module__
        if owner == "_io" or function.__module__ in ("posix", "nt", "_io", "io"):
            if self.left == 0:
                os._exit(KILLED)
            self.left -= 1

    def during(self, action: Callable[[], Any]) -> None:
        """Runs `action` under it."""
        sys.setprofile(self)
        try:
            action()
        finally:
            sys.setprofile(None)

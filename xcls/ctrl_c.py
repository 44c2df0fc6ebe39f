"""Ctrl-C where no run takes note of it: one line and exit code 130. Standard library only, for run.py needs it first."""

from __future__ import annotations

import os
import sys
from types import TracebackType

EARLY = "Interrupted before the run began; nothing was written."


def stopped(stop: BaseException) -> int:
    """Says in one line what a Ctrl-C that no run has taken note of came into, and gives the exit code 130."""
    print(f"run.py: {stop if stop.args else EARLY}", file=sys.stderr)
    return 130


def end_early(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """sys.excepthook while run.py imports: a Ctrl-C is no fault."""
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    code = stopped(error)
    sys.stderr.flush()
    os._exit(code)  # Python itself would end by the signal, with a traceback

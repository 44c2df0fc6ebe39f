"""What run.py and report.py owe to the terminal: Ctrl-C before a run, missing packages, readers that leave, encodings.

Standard library only, for both need it first.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType

EARLY = "Interrupted before the run began; nothing was written."


def stopped(stop: BaseException) -> int:
    """Says in one line what a Ctrl-C that no run has taken note of came into, and gives the exit code 130."""
    print(f"run.py: {stop if stop.args else EARLY}", file=sys.stderr)
    return 130


def end_early(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """sys.excepthook while a script imports: a Ctrl-C is no fault, and packages are missing where .venv is not in use."""
    if isinstance(error, ModuleNotFoundError) and str(error.name).split(".")[0] not in ("xcls", "hydra_plugins"):
        print(
            f"{Path(sys.argv[0]).name}: {sys.executable} has no package '{error.name}'. Type `make setup`, then "
            "`source .venv/bin/activate` and the same command again.",
            file=sys.stderr,
        )
        code = 2
    elif issubclass(kind, KeyboardInterrupt):
        code = stopped(error)
    else:
        return sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    os._exit(code)  # Python itself would end with a traceback


def any_encoding() -> None:
    """Standard output takes every text: what its encoding lacks becomes a question mark."""
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's has no encoding
        sys.stdout.reconfigure(errors="replace")


def reader_left(*, asked: bool) -> int:
    """The exit code where the reader of standard output has left (`… | head`): 0 where it asked for help and the like, else 141."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python would try once more to write what is left
    return 0 if asked else 141

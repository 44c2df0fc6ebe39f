"""Terminal behaviour of run.py and report.py: exit codes, Ctrl-C, missing packages, closed pipes, encodings.

Standard library only, because both import it first.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Callable

from xcls.runs.redact import hide_secrets


def end_early(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """sys.excepthook of a script: one line for Ctrl-C during imports, and for packages missing outside .venv."""
    script = Path(sys.argv[0]).name
    if isinstance(error, ModuleNotFoundError) and str(error.name).split(".")[0] not in ("xcls", "hydra_plugins"):
        remedy = "Type `make setup`, then `source .venv/bin/activate` and the same command again."
        text, code = f"{sys.executable} has no package '{error.name}'. {remedy}", 2
    elif issubclass(kind, KeyboardInterrupt):
        text, code = "interrupted before the run started.", 130
    else:
        return sys.__excepthook__(kind, error, trace)
    print(f"{script}: {text}", file=sys.stderr, flush=True)
    os._exit(code)  # a normal exit would print a traceback


def exit_code(run: Callable[[], int], describe: Callable[[Exception], str | None]) -> int:
    """Runs `run` and returns its exit code: 2 for an error that `describe` has a message for, 130 after Ctrl-C.

    141 if the reader of standard output has closed it (`… | head`). Raises every other error.
    """
    hide_secrets()
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's stdout has no encoding
        sys.stdout.reconfigure(errors="replace")
    script = Path(sys.argv[0]).name
    try:
        code = run()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:
        print(f"{script}: {stop if stop.args else 'interrupted.'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python tries to write the rest at exit
        return 141
    except Exception as error:
        text = describe(error)
        if text is None:
            raise
        print(f"{script}: {text}", file=sys.stderr)
        return 2

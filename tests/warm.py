"""Commands in processes that have their imports done: the fork server of multiprocessing has loaded what a run needs.

Such a process has its own working directory, environment, output and exit code; what it lacks of a fresh one is the
imports. `Project.run` uses it, except where the start itself is the matter (`fresh=True`) and for sweeps.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import NoReturn
from unittest import mock

from xcls.runs.allocator import RETAIN

LOADED = [
    "datasets",
    "hydra.main",
    "pandas",
    "sklearn.feature_extraction.text",
    "sklearn.linear_model",
    "torch._dynamo",
]
# Without a thread of pyarrow.
ALONE = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "ARROW_DEFAULT_MEMORY_POOL": "system"}
context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
context.set_forkserver_preload(LOADED)


def run(
    command: list[str], folder: Path, environment: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run(command, capture_output=True): `command` begins with the interpreter. Raises TimeoutExpired."""
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        given = (command[1:], folder, {**environment, **RETAIN}, out, err)
        process = context.Process(target=become, args=given)
        with mock.patch.dict(os.environ, {**environment, **RETAIN, **ALONE}):
            process.start()  # with the first one the server starts
        process.join(timeout)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        texts = [path.read_text(errors="replace") for path in (out, err)]
        return subprocess.CompletedProcess(command, process.exitcode, *texts)


def become(words: list[str], folder: Path, environment: dict[str, str], out: Path, err: Path) -> NoReturn:
    """In the new process: runs the script as `python words` does, and ends without tidying the imports away."""
    os.setsid()
    for path, number in ((Path(os.devnull), 0), (out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), number)
    sys.stdin = open(0, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = words
    sys.path[0] = str(Path(words[0]).parent)
    code = 0
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

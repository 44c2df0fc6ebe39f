"""A process that has imported what run.py imports, once, and forks a child for each command: seconds of start-up become tenths.

A child is a process of its own, with its own working directory, environment, output and exit code; what it lacks of a fresh one is
the imports. `Project.run` uses it, except where the start itself is the matter (`fresh=True`) and for sweeps, whose jobs start anew anyway.
"""

from __future__ import annotations

import atexit
import gc
import json
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

from xcls.runs.allocator import RETAIN

ROOT = Path(__file__).resolve().parent.parent
ALONE = {
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}  # no thread of pyarrow's
AT_START = (
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "PYTHONPATH",
    "PYTHONHASHSEED",
    "TOKENIZERS_PARALLELISM",
)  # what libraries read when they are imported


class Warm:
    """The parent's side."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.fixed = {name: environment.get(name) for name in AT_START}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"],
            cwd=ROOT,
            env={**environment, **RETAIN, **ALONE},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        atexit.register(self.close)

    def serves(self, environment: dict[str, str]) -> bool:
        """Whether a process with this environment would have imported the same."""
        return {name: environment.get(name) for name in AT_START} == self.fixed

    def run(
        self, command: list[str], folder: Path, environment: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """As subprocess.run(command, capture_output=True): `command` begins with the interpreter. Raises TimeoutExpired."""
        with tempfile.TemporaryDirectory() as place:
            out, err = Path(place, "out"), Path(place, "err")
            request = {
                "words": command[1:],
                "folder": str(folder),
                "environment": {**environment, **RETAIN},
                "out": str(out),
                "err": str(err),
                "timeout": timeout,
            }
            try:
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
                code = json.loads(self.process.stdout.readline())
            except BaseException:  # whatever it was: a later answer must not be taken for this one
                self.process.kill()
                raise
            if code is None:
                raise subprocess.TimeoutExpired(command, timeout)
            return subprocess.CompletedProcess(
                command, code, out.read_text(errors="replace"), err.read_text(errors="replace")
            )

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def run(
    command: list[str], folder: Path, environment: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run(command, capture_output=True), by the warm process of this session, which the first call starts."""
    if not hasattr(os, "fork"):
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)
    global ours
    if ours is None or ours.process.poll() is not None or not ours.serves(environment):
        ours = Warm(environment)
    return ours.run(command, folder, environment, timeout)


ours: Warm | None = None


def child(request: dict) -> NoReturn:
    """In the forked process: becomes what was asked for, runs it, and ends as Python ends, without the second that its tidying takes."""
    os.setsid()
    for name, number in ((os.devnull, 0), (request["out"], 1), (request["err"], 2)):
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = request["words"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
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


def wait(pid: int, timeout: float) -> int | None:
    """The child's exit code (negative: its signal), or None where it had to be killed at its time limit."""

    def late(*_: object) -> None:
        os.killpg(pid, signal.SIGKILL)
        told.append(True)

    told: list[bool] = []
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    _, status = os.waitpid(pid, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return None if told else os.waitstatus_to_exitcode(status)


def serve() -> None:
    """Forks a child for each line of standard input and answers with its exit code; in a child, runs the script."""
    lines, answers = sys.stdin, sys.stdout
    for line in iter(lines.readline, ""):
        request = json.loads(line)
        threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
        assert len(threads) <= 1, f"an import has started a thread, so a fork is not safe: {threads}"
        pid = os.fork()
        if pid == 0:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            child(request)
        print(json.dumps(wait(pid, request["timeout"])), file=answers, flush=True)


def load() -> None:
    """Imports what a run does."""
    import datasets  # noqa: F401
    import hydra.main  # noqa: F401
    import pandas  # noqa: F401
    import sklearn.feature_extraction.text
    import sklearn.linear_model  # noqa: F401
    import torch._decomp
    import torch._dynamo  # noqa: F401


if __name__ == "__main__":
    load()
    gc.freeze()  # the children leave its memory alone
    serve()

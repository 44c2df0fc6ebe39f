"""Starts the processes that measure, and asks them.

A process of its own keeps one measurement's memory, crash or death by the out-of-memory killer from the others and from
the bench. The two ends send pickled objects over standard input and output: (task, arguments) to the process, events
and one answer back. `worker.py` is the other end.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xcls.runs.allocator import environment_with


@dataclass
class Outcome:
    """What came of a question: an answer, or the cause why there is none. `last`: the case that it was at."""

    answer: Any = None
    cause: str | None = None
    last: int | None = None


def environment(allocator: str, threads: int | None = None) -> dict[str, str]:
    """The environment of every measuring process: this package on the path, the allocator's settings, one GPU."""
    root = str(Path(__file__).resolve().parents[2])
    return {
        **environment_with(allocator, dict(os.environ)),
        **({"OMP_NUM_THREADS": str(threads)} if threads else {}),
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": first_gpu(os.environ.get("CUDA_VISIBLE_DEVICES")),
        "XCLS_PROGRESS": "0",
    }


def first_gpu(visible: str | None) -> str:
    """The value of CUDA_VISIBLE_DEVICES that leaves the first GPU of `visible` (None: all).

    With several, transformers' Trainer would spread each batch over all of them (DataParallel).
    """
    return "0" if visible is None else visible.split(",")[0].strip()


def allocator_settings(variables: dict[str, str]) -> dict[str, str]:
    """The variables that decide how memory and threads are handled: conditions of the measurement."""
    prefixes = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "OMP_", "MKL_", "KMP_", "PYTORCH_CUDA_ALLOC_CONF")
    return {key: value for key, value in sorted(variables.items()) if key.startswith(prefixes)}


class Worker:
    """A measuring process, which answers one question after the other until it is closed. Use it in a `with`."""

    def __init__(self, variables: dict[str, str]) -> None:
        """variables: its environment."""
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        command = [sys.executable, "-W", "ignore", "-m", "xcls.bench.worker"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors, env=variables)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, task: str, **changes: Any) -> Outcome:
        """Gives the process a task, with `changes` as its arguments, and waits for what comes of it.

        Never raises for what happens in there: see `Outcome.cause`.
        """
        outcome = Outcome()
        try:
            pickle.dump((task, changes), self.input)
            self.input.flush()
            while True:
                kind, value = pickle.load(self.output)
                if kind == "answer":
                    outcome.answer = value
                    return outcome
                if kind == "failed":
                    outcome.cause = value
                    return outcome
                outcome.last = value
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            outcome.cause = self._last_words()
        return outcome

    def close(self) -> None:
        """Ends the process at once."""
        self.process.kill()
        self.process.wait()
        for stream in (self.input, self.output, self.errors):
            try:
                stream.close()
            except BrokenPipeError:  # a question that it did not live to read
                pass

    def _last_words(self) -> str:
        """Why the process is gone."""
        code = self.process.wait()
        if code == -signal.SIGKILL:
            return "out of memory: killed by the system (SIGKILL)"
        if code < 0:
            return f"killed by signal {-code}"
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors if line.strip()]
        return lines[-1][:300] if lines else f"exit code {code}"

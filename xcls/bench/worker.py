"""Measuring processes: `Worker` starts one and gives it tasks, `main` is the process.

Separate processes keep the memory of one measurement, its crash, or its end by the out-of-memory killer away from the
others. The connection carries (task, arguments) to the process and (kind, value) back: `at` with the number of the next
case, any number of times, then one `answer`, or `failed` with a cause.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from xcls.runs.allocator import environment_with
from xcls.train.faults import is_out_of_memory

# task -> its function: function(connection, **arguments) -> answer
TASKS = {
    "rates": "xcls.bench.machine.measure_rates",
    "memory": "xcls.bench.measure.measure_memory",
    "time": "xcls.bench.measure.measure_time",
    "error": "xcls.bench.error.measure_error",
    "trained": "xcls.bench.trained.measure_trained",
    "training": "xcls.bench.training.measure_training",
}


@dataclass
class Outcome:
    """The outcome of a task: an answer, or the cause why there is none. `last`: number of the last case begun."""

    answer: Any = None
    cause: str | None = None
    last: int | None = None


def environment(allocator: str, threads: int | None = None) -> dict[str, str]:
    """The environment variables of a measuring process: this package on the path, allocator settings, one GPU."""
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
    """The value of CUDA_VISIBLE_DEVICES with only the first GPU of `visible` (None: all GPUs).

    With several, transformers' Trainer would spread each batch over all of them (DataParallel).
    """
    return "0" if visible is None else visible.split(",")[0].strip()


def allocator_settings(variables: dict[str, str]) -> dict[str, str]:
    """The variables that decide how memory and threads are handled: conditions of the measurement."""
    prefixes = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "OMP_", "MKL_", "KMP_", "PYTORCH_CUDA_ALLOC_CONF")
    return {key: value for key, value in sorted(variables.items()) if key.startswith(prefixes)}


class Worker:
    """A measuring process that does one task after the other until it is closed. Use it in a `with`."""

    def __init__(self, variables: dict[str, str]) -> None:
        """variables: its environment."""
        self.output = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # what libraries print
        self.connection, other = Pipe()
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "xcls.bench.worker", str(other.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self.output,
                stderr=self.output,
                env=variables,
                pass_fds=[other.fileno()],
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, task: str, **changes: Any) -> Outcome:
        """Gives the process a task, with `changes` as its arguments, and waits for the outcome.

        An error in the process does not raise here: see `Outcome.cause`.
        """
        outcome = Outcome()
        try:
            self.connection.send((task, changes))
            while True:
                kind, value = self.connection.recv()
                if kind == "answer":
                    outcome.answer = value
                    return outcome
                if kind == "failed":
                    outcome.cause = value
                    return outcome
                outcome.last = value
        except (EOFError, OSError, pickle.UnpicklingError):
            outcome.cause = self._exit_cause()
        return outcome

    def close(self) -> None:
        """Ends the process at once."""
        self.process.kill()
        self.process.wait()
        self.connection.close()
        self.output.close()

    def _exit_cause(self) -> str:
        """Why the process ended."""
        code = self.process.wait()
        if code == -signal.SIGKILL:
            return "out of memory: killed by the system (SIGKILL)"
        if code < 0:
            return f"killed by signal {-code}"
        self.output.seek(0)
        lines = [line.strip() for line in self.output if line.strip()]
        return lines[-1][:300] if lines else f"exit code {code}"


def cause_of(error: BaseException) -> str:
    """The error as one line: type and the first two lines of its text, because the second often has the details."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = f"{type(error).__name__}: {' '.join(lines[:2])[:300]}" if lines else type(error).__name__
    return f"out of memory: {message}" if is_out_of_memory(error) else message


def main(connection: Connection) -> None:
    """Does tasks until the other end is closed. If memory runs out, the kernel kills this process first."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900", encoding="ascii")
    with contextlib.suppress(EOFError):
        while True:
            task, arguments = connection.recv()
            try:
                module, _, name = TASKS[task].rpartition(".")
                connection.send(("answer", getattr(import_module(module), name)(connection, **arguments)))
            except EOFError:  # no further segment was requested
                raise
            except Exception as error:
                traceback.print_exc()
                connection.send(("failed", cause_of(error)))


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))

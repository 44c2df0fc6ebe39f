"""The process that measures: answers tasks from standard input, one after the other. `process.py` is the other end."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from xcls.train.faults import is_out_of_memory

# task -> the function that does it: task(channel, **arguments) -> answer
TASKS = {
    "rates": "xcls.bench.machine.measure_rates",
    "memory": "xcls.bench.measure.measure_memory",
    "time": "xcls.bench.measure.measure_time",
    "error": "xcls.bench.error.measure_error",
    "trained": "xcls.bench.trained.measure_trained",
    "training": "xcls.bench.training.measure_training",
}


class Channel:
    """This process's end. What libraries print goes to standard error."""

    def __init__(self) -> None:
        self.input, self.output = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def receive(self) -> tuple[str, dict[str, Any]]:
        """The next task and its arguments. Raises EOFError when there will be none."""
        return pickle.load(self.input)

    def send(self, kind: str, value: Any) -> None:
        """answer, failed (a cause), or at (the number of the case that comes next)."""
        pickle.dump((kind, value), self.output)
        self.output.flush()


def cause_of(error: BaseException) -> str:
    """The error in one line; the second line of its text often says what it was about."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = f"{type(error).__name__}: {' '.join(lines[:2])[:300]}" if lines else type(error).__name__
    return f"out of memory: {told}" if is_out_of_memory(error) else told


def main() -> None:
    """Answers until standard input ends; first in line for the kernel where memory runs out."""
    channel = Channel()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900", encoding="ascii")
    with contextlib.suppress(EOFError):
        while True:
            task, arguments = channel.receive()
            try:
                module, _, name = TASKS[task].rpartition(".")
                channel.send("answer", getattr(import_module(module), name)(channel, **arguments))
            except EOFError:  # a training that was not asked to go on
                raise
            except Exception as error:
                traceback.print_exc()
                channel.send("failed", cause_of(error))


if __name__ == "__main__":
    main()

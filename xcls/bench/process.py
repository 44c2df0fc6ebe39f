"""Starts the processes that measure, and hears what they have to say."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from xcls.runs.allocator import environment_with


@dataclass
class Outcome:
    """How a process ended. `cause` is None when it came to its end; `last` is the case that it was at."""

    cause: str | None = None
    killed: bool = False
    last: int | None = None
    events: list[dict[str, Any]] = field(default_factory=list)

    def of(self, event: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [item for item in self.events if item["event"] == event]


def environment(allocator: str) -> dict[str, str]:
    """The environment of every measuring process: this one's, this package on the path, the allocator's settings."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {
        **environment_with(allocator, dict(os.environ)),
        "PYTHONPATH": path,
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": first_gpu(os.environ.get("CUDA_VISIBLE_DEVICES")),
    }


def first_gpu(visible: str | None) -> str:
    """The value of CUDA_VISIBLE_DEVICES that leaves one GPU of those of `visible` (None: all): the one that this process calls
    cuda:0. With several, transformers' Trainer would spread each batch over all of them (DataParallel)."""
    return "0" if visible is None else visible.split(",")[0].strip()


def allocator_settings(variables: dict[str, str]) -> dict[str, str]:
    """Those variables that decide how memory and threads are handled: part of what was measured."""
    prefixes = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "OMP_", "MKL_", "KMP_", "PYTORCH_CUDA_ALLOC_CONF")
    return {key: value for key, value in sorted(variables.items()) if key.startswith(prefixes)}


def measure(
    job: dict[str, Any],
    variables: dict[str, str],
    hear: Callable[[dict[str, Any]], None],
    module: str = "xcls.bench.worker",
) -> Outcome:
    """Runs a job (of worker.py, or another `module`) to its end; hear(event) is called for each event as it comes.

    An interruption ends the process as well. Never raises for what happens in there: see `Outcome.cause`.
    """
    outcome = Outcome()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        command = [sys.executable, "-W", "ignore", "-m", module]
        pipe = subprocess.PIPE
        worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, env=variables, text=True)
        try:
            with contextlib.suppress(BrokenPipeError):  # it died at once: its exit code and last words tell why
                worker.stdin.write(json.dumps(job))
                worker.stdin.close()
            for line in worker.stdout:
                event = json.loads(line)
                outcome.events.append(event)
                outcome.last = event.get("case", outcome.last)
                hear(event)
            code = worker.wait()
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
            worker.stdout.close()
        stopped = outcome.of("stopped")
        if stopped:
            outcome.cause = stopped[0]["cause"]
        elif code < 0:
            outcome.killed, outcome.cause = True, killed_by(-code)
        elif code > 0 or not outcome.of("end"):
            errors.seek(0)
            lines = [line.strip() for line in errors if line.strip()]
            outcome.cause = lines[-1][:300] if lines else f"exit code {code}"
    return outcome


def killed_by(number: int) -> str:
    """The cause of death by a signal; SIGKILL from nowhere is the kernel, out of memory."""
    if number == signal.SIGKILL:
        return "out of memory: killed by the system (SIGKILL)"
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"

"""How long until something happens: `run.py --help`, and the first training step of the default run, caches warm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from xcls.bench.results import COMPLETED, Row, fail

LINKED = ("conf", "xcls", "hydra_plugins")
PATIENCE = 600.0  # seconds for a first step; the first of all may make the data set
RUN = ("finetuning.max_steps=100",)  # few enough that every step is an event


def mirror(root: Path, folder: Path) -> None:
    """A project in `folder` with the code of the one at `root`, whose runs come to lie in `folder`."""
    for name in LINKED:
        (folder / name).symlink_to(root / name)
    shutil.copy(root / "run.py", folder / "run.py")


def help_seconds(folder: Path, variables: dict[str, str]) -> float:
    """Seconds of `run.py --help`, the start of Python included. Raises RuntimeError."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "run.py", "--help"], cwd=folder, env=variables, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"run.py --help ended with {done.returncode}: {last_line(done.stderr)}")
    return time.perf_counter() - began


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing said")


def first_step_time(events: Path) -> float | None:
    """When the first step was done (seconds since 1970), None while it is not."""
    try:
        lines = events.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.endswith("}") and (event := json.loads(line))["event"] == "step":
            return event["time"]
    return None


def step_seconds(folder: Path, name: str, words: list[str], variables: dict[str, str]) -> float:
    """Seconds from the start of a process to the end of its first training step. Raises RuntimeError."""
    command = [sys.executable, "run.py", f"exp={name}", *RUN, *words]
    events = folder / "finetune" / name / "events.jsonl"
    began, found = time.time(), None
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        run = subprocess.Popen(command, cwd=folder, env=variables, stdout=errors, stderr=errors)
        try:
            while found is None and run.poll() is None and time.time() < began + PATIENCE:
                time.sleep(0.02)
                found = first_step_time(events)
            run.terminate()
            run.wait(60)
        finally:
            if run.poll() is None:
                run.kill()
                run.wait()
        found = first_step_time(events)
        if found is None:
            errors.seek(0)
            raise RuntimeError(f"no step of {' '.join(command[1:])}: {last_line(errors.read())}")
    return found - began


def startup_rows(root: Path, *, starts: int, words: list[str]) -> list[Row]:
    """The rows of the axis `startup`: medians over `starts` fresh processes. words: overrides of the run that trains.

    Each is started once more before, so that what is read lies in the caches.
    """
    variables = {**os.environ, "XCLS_PROGRESS": "0"}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        mirror(root, folder)
        kinds = {
            "run.py --help": lambda number: help_seconds(folder, variables),
            "first training step": lambda number: step_seconds(folder, f"start{number}", words, variables),
        }
        for what, seconds in kinds.items():
            row: Row = {"axis": "startup", "contender": what, "status": COMPLETED, "cause": None}
            rows.append(row)
            try:
                times = [seconds(number) for number in range(starts + 1)][1:]
                row.update(seconds=median(times), seconds_min=min(times), seconds_max=max(times), rounds=len(times))
            except RuntimeError as error:
                fail(row, str(error))
    return rows

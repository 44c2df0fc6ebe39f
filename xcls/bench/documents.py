"""bench=growth, axes `startup` and `rows`: how long until something happens, and what a larger file costs.

Each point is a process of `run.py`, as a user starts it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Iterator, Sequence

import numpy as np

from xcls.bench.results import COMPLETED, FAILED, Row

PATIENCE = 1800.0  # seconds for a first step; the first of all may make the data set
RUN = ("finetuning.max_steps=100", "wandb=disabled")  # few enough steps that each is an event
WORDS, WORDS_A_TEXT, CLASSES = 5000, 25, 4
WRITTEN = 10_000  # rows of the file that are made at once


def write_rows(file: Path, rows: int, *, seed: int = 0) -> None:
    """A csv file of `rows` short texts in CLASSES classes: 25 invented words each, the frequent ones often (Zipf)."""
    draws = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(draws.choice(letters, draws.integers(2, 9))) for _ in range(WORDS)], dtype=object)
    shares = 1.0 / np.arange(1, WORDS + 1)
    with open(file, "w", encoding="utf-8") as out:
        out.write("text,label\n")
        for start in range(0, rows, WRITTEN):
            count = min(WRITTEN, rows - start)
            texts = words[draws.choice(WORDS, (count, WORDS_A_TEXT), p=shares / shares.sum())]
            labels = draws.integers(0, CLASSES, count)
            out.writelines(f"{' '.join(text)},class {label}\n" for text, label in zip(texts, labels))


def first_step_time(events: Path) -> float | None:
    """When the first step was done (seconds since 1970), None while it is not."""
    try:
        lines = events.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    steps = (json.loads(line) for line in lines if line.endswith("}") and '"step"' in line)
    return next((event["time"] for event in steps if event["event"] == "step"), None)


def first_step(root: Path, words: Sequence[str], variables: dict[str, str]) -> tuple[float, float]:
    """Seconds from the start of `run.py words` to the end of its first step, and its highest resident memory, MiB.

    root: the project whose run.py it is. Raises RuntimeError where there is no step.
    """
    command, found, signalled = [sys.executable, "run.py", "exp=bench", *RUN, *words], None, False
    with tempfile.TemporaryDirectory() as runs, tempfile.TemporaryFile("w+", errors="replace") as errors:
        events, began = Path(runs) / "finetune" / "bench" / "events.jsonl", time.time()
        environment = {**variables, "XCLS_RUNS": runs}
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=errors, stderr=errors)
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            found = found or first_step_time(events)
            if ended:
                process.returncode = os.waitstatus_to_exitcode(status)
                break
            if not signalled and (found or time.time() > began + PATIENCE):
                signalled = True
                process.send_signal(signal.SIGTERM)
            time.sleep(0.02)
        if found is None:
            errors.seek(0)
            said = [line.strip() for line in errors if line.strip()]
            raise RuntimeError(f"no step of {' '.join(command[1:])}: {said[-1] if said else process.returncode}")
    return found - began, usage.ru_maxrss / 1024


def help_seconds(root: Path, variables: dict[str, str]) -> float:
    """Seconds of `run.py --help`, the start of Python included."""
    began = time.perf_counter()
    command = [sys.executable, "run.py", "--help"]
    subprocess.run(command, cwd=root, env=variables, capture_output=True, check=True)
    return time.perf_counter() - began


def startup_rows(root: Path, *, starts: int, words: Sequence[str] = ()) -> Iterator[Row]:
    """Medians over `starts` fresh processes, each started once more before, so that what is read lies in the caches."""
    variables = {**os.environ, "XCLS_PROGRESS": "0"}
    kinds = {
        "run.py --help": lambda: help_seconds(root, variables),
        "first training step": lambda: first_step(root, words, variables)[0],
    }
    for what, seconds in kinds.items():
        row: Row = {"axis": "startup", "what": what, "status": COMPLETED, "cause": None}
        try:
            times = [seconds() for _ in range(starts + 1)][1:]
            row.update(seconds=median(times), seconds_min=min(times), seconds_max=max(times), rounds=len(times))
        except (RuntimeError, subprocess.CalledProcessError) as error:
            row.update(status=FAILED, cause=str(error))
        yield row


def document_rows(root: Path, counts: Sequence[int], words: Sequence[str] = ()) -> Iterator[Row]:
    """For files of so many documents: the first step with cold caches and with warm ones, and the memory.

    `bytes_per_row`: what a document more takes in memory, from the smallest file on.
    """
    smallest: Row | None = None
    for count in sorted(counts):
        row: Row = {"axis": "rows", "rows": count, "status": COMPLETED, "cause": None}
        with tempfile.TemporaryDirectory() as folder:
            file, cache = Path(folder) / "rows.csv", Path(folder) / "cache"
            write_rows(file, count)
            row["file_MiB"] = file.stat().st_size / 2**20
            variables = {**os.environ, "XCLS_PROGRESS": "0", "XCLS_CACHE": str(cache)}
            own = ("dataset=files", f"dataset.path={file}", "seq_len=64", "attention=performer", *words)
            try:
                row["first_step_cold_s"], row["memory_MiB"] = first_step(root, own, variables)
                row["first_step_warm_s"], row["memory_warm_MiB"] = first_step(root, own, variables)
            except RuntimeError as error:
                row.update(status=FAILED, cause=str(error))
            row["cache_MiB"] = sum(item.stat().st_size for item in cache.rglob("*") if item.is_file()) / 2**20
        if row["status"] == COMPLETED:
            smallest = smallest or row
            if count - smallest["rows"] >= 50_000:  # with fewer the difference is noise
                grown = row["memory_MiB"] - smallest["memory_MiB"]
                row["bytes_per_row"] = 2**20 * grown / (count - smallest["rows"])
        yield row

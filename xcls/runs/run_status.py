"""Where a run stands, read from its folder alone: record.json, the tail of events.jsonl, the lock.

Standard library only, and nothing is written: it serves from another terminal, over ssh, and while a cluster has the jobs.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xcls.runs.record import Record, read_record

RUNNING, SILENT, STALE, FAILED, INTERRUPTED = "running", "silent", "stale", "failed", "interrupted"
UNREADABLE, WAITING, DONE = "unreadable", "waiting", "done"
STATES = (RUNNING, SILENT, STALE, FAILED, INTERRUPTED, UNREADABLE, WAITING, DONE)  # in the order they are shown
BAD = (STALE, FAILED, UNREADABLE)
TAIL = 262_144  # bytes of events.jsonl that are read at most
QUIET = 600.0  # seconds without an event that mean nothing yet


@dataclass
class Standing:
    """Where one run stands. Times are seconds; None or 0 where nothing is known."""

    name: str  # its folder below its group's, or what was typed
    state: str
    folder: Path | None = None
    kind: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_s: float | None = None
    left: float | None = None
    device: str = ""
    score: float | None = None  # macro-F1 on validation
    note: str = ""  # the cause of a failure, or what else a user should know
    lasted: float | None = None  # of a completed run


def read_run(folder: Path, name: str, now: float) -> Standing:
    """Where the run in `folder` stands. A record that cannot be read is a state, not an error."""
    try:
        record = read_record(folder)
        if record.status == "running" and not is_held(folder):
            record = read_record(folder)  # it may have ended between the two looks
        return _standing(record, folder, name, now)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        return Standing(name=name, state=UNREADABLE, folder=folder, note=str(error).replace(f"{folder}/", ""))


def _standing(record: Record, folder: Path, name: str, now: float) -> Standing:
    run = Standing(
        name=name, state=record.status, folder=folder, kind=record.mode, step=record.step, steps=record.steps
    )
    run.note = record.cause or ""
    run.device = str(record.device.get("kind") or "")
    run.tokens_per_s = record.costs.get("tokens_per_s")
    run.score = (record.metrics.get("validation") or {}).get("macro_f1")
    if record.status == "completed":
        run.state, run.note = DONE, ""
        run.lasted = record.ended - record.started if record.ended else None
    elif record.status == "running":
        _follow(run, record, now)
    return run


def _follow(run: Standing, record: Record, now: float) -> None:
    """Fills in what the events of the run's last life tell, and whether there is a process behind it."""
    events = last_life(run.folder)
    steps = [event for event in events if event["event"] == "step" and isinstance(event.get("step"), int)]
    evaluations = [event for event in events if event["event"] == "eval"]
    run.step = max([run.step, *(event["step"] for event in steps)])
    if steps:
        run.loss = steps[-1].get("step_loss")
    if evaluations:
        run.tokens_per_s = evaluations[-1].get("tokens_per_s") or run.tokens_per_s
    if run.steps:
        pace = _pace(steps) or record.costs.get("time_per_step")
        run.left = pace * max(0, run.steps - run.step) if pace and run.step < run.steps else None
        run.note = "" if steps or run.step else "preparing"
        run.note = "last evaluation" if run.step >= run.steps else run.note
    host = next((str(event["host"]) for event in events if event.get("host")), None)
    silent = max(0.0, now - last_sign(run.folder, events))
    times = [event["time"] for event in events]
    usual = max((after - before for before, after in zip(times, times[1:])), default=0.0)
    held, here = is_held(run.folder), host in (None, socket.gethostname())
    if not here:
        run.device = f"{host}:{run.device}" if run.device else host
    if held is False and here:
        run.state, run.note = STALE, "no process holds it: killed, or the machine went down; the same command goes on"
    elif silent > max(QUIET, 3 * usual):
        run.note = f"silent for {span(silent)}"
        if not held:
            run.state, run.left = SILENT, None


def _pace(steps: list[dict[str, Any]]) -> float | None:
    """Seconds a step over the steps of this life, evaluations included."""
    if len(steps) < 2 or steps[-1]["step"] <= steps[0]["step"]:
        return None
    return (steps[-1]["time"] - steps[0]["time"]) / (steps[-1]["step"] - steps[0]["step"])


def last_life(folder: Path) -> list[dict[str, Any]]:
    """The events since the run's last start, as far as the file's tail reaches; lines that are not whole are left out."""
    try:
        with open(folder / "events.jsonl", "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    events = []
    for line in lines[1:] if size > TAIL else lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("time"), (int, float)) and "event" in event:
            events = [event] if event["event"] == "start" else [*events, event]
    return events


def last_sign(folder: Path, events: list[dict[str, Any]]) -> float:
    """When the run last wrote something, in seconds since the epoch."""
    signs = [event["time"] for event in events[-1:]]
    for name in ("events.jsonl", "record.json"):
        try:
            signs.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(signs, default=0.0)


def is_held(folder: Path) -> bool | None:
    """Whether a process holds the run's lock; None where that cannot be told (no lock file, a file system without locks)."""
    try:
        with open(folder / ".lock", "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
    except OSError:
        return None


def span(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"

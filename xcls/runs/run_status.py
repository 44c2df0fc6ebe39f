"""The status of one run, read only from its folder: record.json, the end of events.jsonl, the lock.

Standard library only, and it writes nothing: it works from another terminal, over ssh, and for jobs of a cluster.
"""

from __future__ import annotations

import fcntl
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

from xcls.runs.record import Record, parse_events, read_record

# In the order of the table
STATES = ("running", "silent", "stale", "failed", "interrupted", "unreadable", "waiting", "done")
BAD = ("stale", "failed", "unreadable")
TAIL = 262_144  # bytes of events.jsonl that are read at most
QUIET = 600.0  # a run without events for this long (s) is not yet suspicious
DEPTH = 4  # levels below a starting point that are searched for runs


@dataclass
class RunStatus:
    """The status of one run. Times are seconds; None or 0 if unknown."""

    name: str  # its folder relative to the sweep's, or its overrides
    state: str  # one of STATES
    folder: Path | None = None
    kind: str = ""  # its mode
    step: int = 0
    steps: int = 0  # planned
    loss: float | None = None
    tokens_per_s: float | None = None
    left: float | None = None  # seconds of training that remain
    device: str = ""
    score: float | None = None  # macro-F1 on validation
    note: str = ""  # the cause of a failure, or another remark
    lasted: float | None = None  # seconds that a completed run took

    @property
    def numbers(self) -> str:
        """Step, loss and macro-F1 if known: `120/282 (43%) loss 0.5310 macro-F1 0.7100`."""
        parts = [f"step {self.step}"] if self.step and not self.steps else []
        parts += [f"{self.step}/{self.steps} ({self.step / self.steps:.0%})"] if self.steps else []
        parts += [f"loss {self.loss:.4f}"] if self.loss is not None else []
        parts += [f"macro-F1 {self.score:.4f}"] if self.score is not None else []
        return " ".join(parts)

    @property
    def pace(self) -> str:
        """Speed, time left and device of a running run, if known: `1,234 tokens/s, 80 s left, cpu`."""
        parts = [f"{self.tokens_per_s:,.0f} tokens/s"] if self.tokens_per_s is not None else []
        parts += [f"{duration(self.left)} left"] if self.left is not None else []
        return ", ".join([*parts, self.device] if self.device else parts)


def run_folders(place: Path, depth: int = DEPTH, files: tuple[str, ...] = ("record.json",)) -> Iterator[Path]:
    """The folders with one of `files`, at or below `place`, sorted. It does not search inside a run's folder."""
    try:
        with os.scandir(place) as entries:
            found = list(entries)
    except OSError:
        return  # deleted meanwhile, or not readable
    if any(entry.name in files for entry in found):
        yield place
    elif depth:
        for entry in sorted(found, key=lambda entry: entry.name):
            if os.path.isdir(entry.path) and not entry.name.startswith("."):
                yield from run_folders(Path(entry.path), depth - 1, files)


def read_run(folder: Path, name: str, now: float) -> RunStatus:
    """The status of the run in `folder` at the time `now`. A record that cannot be read is a state, not an error."""
    try:
        record = read_record(folder)
        if record.status == "running" and not is_held(folder):
            record = read_record(folder)  # it may have ended between the two reads
        return _of_record(record, folder, name, now)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        return RunStatus(name=name, state="unreadable", folder=folder, note=str(error).replace(f"{folder}/", ""))


def _of_record(record: Record, folder: Path, name: str, now: float) -> RunStatus:
    """The status from a record, and from the events of a run that has not ended."""
    run = RunStatus(
        name=name,
        state=record.status,
        folder=folder,
        kind=record.mode,
        step=record.step,
        steps=record.steps,
        note=record.cause or "",
        device=str(record.device.get("kind") or ""),
        tokens_per_s=record.costs.get("tokens_per_s"),
        score=(record.metrics.get("validation") or {}).get("macro_f1"),
    )
    if record.status == "completed":
        run.state, run.note = "done", ""
        run.lasted = record.ended - record.started if record.ended else None
    elif record.status == "running":
        _follow(run, folder, record, now)
    return run


def _follow(run: RunStatus, folder: Path, record: Record, now: float) -> None:
    """Updates `run` from the events since its last start, and checks whether a process still runs it."""
    events = last_events(folder)
    steps = [event for event in events if event["event"] == "step" and isinstance(event.get("step"), int)]
    evaluations = [event for event in events if event["event"] == "eval"]
    run.step = max([run.step, *(event["step"] for event in steps)])
    run.loss = steps[-1].get("step_loss") if steps else None
    if evaluations:
        run.tokens_per_s = evaluations[-1].get("tokens_per_s") or run.tokens_per_s
        run.score = evaluations[-1].get("macro_f1", run.score)
    if run.steps and run.step >= run.steps:
        run.note = "last evaluation"
    elif run.steps:
        pace = _pace(steps) or record.costs.get("time_per_step")
        run.left = pace * (run.steps - run.step) if pace else None
        run.note = "" if run.step else "preparing"
    host = next((str(event["host"]) for event in events if event.get("host")), None)
    held, here = is_held(folder), host in (None, socket.gethostname())
    run.device = run.device if here else f"{host}:{run.device}".rstrip(":")
    times = [event["time"] for event in events]
    usual = max((after - before for before, after in zip(times, times[1:])), default=0.0)
    written = [path.stat().st_mtime for path in (folder / "events.jsonl", folder / "record.json") if path.exists()]
    silent = now - max([*times[-1:], *written], default=0.0)
    if held is False and here:
        run.state = "stale"
        run.note = "no process runs this: it was killed, or the machine stopped. The same command continues it."
    elif silent > max(QUIET, 3 * usual):
        run.note = f"silent for {duration(silent)}"
        if not held:
            run.state, run.left = "silent", None


def _pace(steps: list[dict[str, Any]]) -> float | None:
    """Seconds per step over these steps, evaluations included."""
    if len(steps) < 2 or steps[-1]["step"] <= steps[0]["step"]:
        return None
    return (steps[-1]["time"] - steps[0]["time"]) / (steps[-1]["step"] - steps[0]["step"])


def last_events(folder: Path) -> list[dict[str, Any]]:
    """The events since the run's last start, from the last TAIL bytes of the file; skips incomplete lines."""
    try:
        with open(folder / "events.jsonl", "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    events: list[dict[str, Any]] = []
    for event in parse_events(lines[1:] if size > TAIL else lines):
        events = [event] if event["event"] == "start" else [*events, event]
    return events


def is_held(folder: Path) -> bool | None:
    """Whether a process holds the run's lock; None: unknown (no lock file, or no locks on this file system)."""
    try:
        with open(folder / ".lock", "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
    except OSError:
        return None


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"

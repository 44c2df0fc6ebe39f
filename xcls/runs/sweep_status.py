"""Where all runs stand, by sweep: what `sweep.json` says of the jobs, and the records in the folders.

Standard library only. A sweep that no launcher wrote down, or whose file is damaged, is known by its records alone.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator

from xcls.runs.run_status import DONE, FAILED, INTERRUPTED, RUNNING, SILENT, WAITING, Standing, read_run

DEPTH = 4  # folders below a starting point in which runs are sought
STAGES = ("pretrain", "finetune")


@dataclass
class Group:
    """A sweep, or the runs beside each other in one folder."""

    name: str
    runs: list[Standing] = field(default_factory=list)
    started: float | None = None
    launcher: str = ""
    notes: list[str] = field(default_factory=list)

    def count(self, *states: str) -> int:
        """How many runs are in one of `states`."""
        return sum(run.state in states for run in self.runs)

    @property
    def left(self) -> float | None:
        """A guess: what runs and waits, at the pace of what is done and as many at once as now. None without a basis."""
        running = [run for run in self.runs if run.state == RUNNING]
        lasted = [run.lasted for run in self.runs if run.lasted and run.kind == "finetune"]
        known = [run.left for run in running if run.left is not None]
        if not running or len(known) < len(running) or self.count(WAITING) and not lasted:
            return None
        queued = self.count(WAITING) * statistics.median(lasted) / len(running) if lasted else 0.0
        return max(known) if not queued else sum(known) / len(known) + queued


def standings(places: list[Path], root: Path, now: float | None = None) -> list[Group]:
    """Every run at or below `places` (run folders, sweep folders, folders of these), by sweep, in order of name."""
    now = time.time() if now is None else now
    root, places = Path(os.path.abspath(root)), [Path(os.path.abspath(place)) for place in places]
    groups: dict[str, Group] = {}
    taken: set[Path] = set()
    for folder in sorted({file.parent for place in places for file in sweep_files(place)}):
        group, own = read_sweep(folder, root, now)
        groups[group.name] = group
        taken |= own
    for folder in sorted({folder for place in places for folder in run_folders(place)} - taken):
        home = home_of(folder)
        group = groups.setdefault(shown(home, root), Group(name=shown(home, root)))
        group.runs.append(read_run(folder, shown(folder, home), now))
    return [groups[name] for name in sorted(groups)]


def run_folders(place: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The folders with a record at or below `place`. A run's folder is not searched further."""
    try:
        with os.scandir(place) as entries:
            below = []
            for entry in entries:
                if entry.name == "record.json":
                    yield place
                    return
                if entry.is_dir() and not entry.name.startswith("."):
                    below.append(entry.path)
    except OSError:
        return  # gone meanwhile, or not ours to read
    if depth:
        for path in sorted(below):
            yield from run_folders(Path(path), depth - 1)


def sweep_files(place: Path) -> Iterator[Path]:
    """The sweep.json files at or below `place`."""
    for pattern in ("sweep.json", "*/sweep.json", "multirun/*/sweep.json"):
        yield from place.glob(pattern)


def home_of(folder: Path) -> Path:
    """What a run's folder is shown under: its sweep (`multirun/<name>`), pretrain/ or finetune/, else its parent."""
    return next(
        (place for place in folder.parents if place.parent.name == "multirun" or place.name in STAGES), folder.parent
    )


def shown(folder: Path, root: Path) -> str:
    """`folder` below `root`, or whole."""
    try:
        return folder.relative_to(root).as_posix()
    except ValueError:
        return str(folder)


def read_sweep(folder: Path, root: Path, now: float) -> tuple[Group, set[Path]]:
    """The jobs of the sweep in `folder` as its sweep.json has them, and their folders; none where it is damaged."""
    group, project = Group(name=shown(folder, root)), folder.parent.parent
    try:
        content = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        jobs = [Job(project, entry) for entry in content["jobs"]]
        group.launcher, group.started = str(content["launcher"]), float(content["started"])
        alive = not (content["host"] == socket.gethostname() and gone(int(content["pid"])))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        group.notes.append(
            f"sweep.json cannot be read ({type(error).__name__}); these are the runs that have a record."
        )
        return group, set()
    group.runs = [job.standing(folder, now, alive) for job in jobs]
    if not alive and group.count(WAITING):
        group.notes.append("its launcher has ended. What a cluster has goes on; the same command starts the others.")
    return group, {job.folder for job in jobs if job.folder is not None}


def gone(pid: int) -> bool:
    """Whether no process of this machine has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


class Job:
    """A job as sweep.json has it. Raises KeyError, TypeError or ValueError for one that is not whole."""

    def __init__(self, project: Path, entry: dict[str, Any]) -> None:
        self.state, self.kind, self.words = (
            str(entry["state"]),
            str(entry["kind"]),
            [str(word) for word in entry["overrides"]],
        )
        self.folder = project / str(entry["folder"]) if entry["folder"] else None
        self.device, self.cause = str(entry["device"] or ""), str(entry["cause"] or "")
        if self.state not in (WAITING, RUNNING, DONE, "skipped", FAILED):
            raise ValueError(f"state {self.state}")

    def standing(self, sweep: Path, now: float, alive: bool) -> Standing:
        """Where the job stands: its record knows best, the launcher knows what has none yet. `alive`: the launcher is."""
        name = " ".join(self.words) if self.folder is None else self._name(sweep)
        state = DONE if self.state == "skipped" else self.state
        if self.folder is None or not (self.folder / "record.json").is_file():
            run = Standing(name=name, state=state, folder=self.folder, note=self.cause)
            if state == RUNNING:
                run.state, run.note = (
                    (RUNNING, "starting") if alive else (SILENT, "no record yet, and its launcher has ended")
                )
        else:
            run = read_run(self.folder, name, now)
            if alive and state in (WAITING, RUNNING) and run.state in (FAILED, INTERRUPTED):
                run.state, run.note = state, f"again, after: {run.note}"  # its process has yet to open the record
            elif run.state == FAILED:
                run.note = run.note or self.cause
        run.kind = self.kind
        run.device = self.device or run.device
        return run

    def _name(self, sweep: Path) -> str:
        below = sweep if sweep in self.folder.parents else sweep.parent.parent
        return shown(self.folder, below)

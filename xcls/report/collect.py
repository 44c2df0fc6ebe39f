"""Finds every `record.json` at or under the given folders. What cannot be read is listed and spoils nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Sequence

from xcls.record import Record, read_record
from xcls.schema import UserError

USUAL = ("multirun", "pretrain", "finetune")  # may be missing: a fresh clone has none of them yet
TYPES = {
    "run": str, "mode": str, "hash": str, "seed": int, "seq_len": int, "choices": dict, "config": dict, "data": dict,
    "metrics": dict, "costs": dict, "params": dict, "device": dict, "versions": dict, "files": dict, "command": list,
    "warnings": list,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One record and where it lies. `place` is the folder as it is shown: relative to the project where it can be."""

    folder: Path
    place: str
    record: Record


@dataclass(frozen=True)
class Unreadable:
    """A folder whose record cannot be used, and why."""

    place: str
    reason: str


@dataclass
class Found:
    """All that was found. `parents`: hash to record of the runs that others started from, wherever they lie."""

    runs: list[Run] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    parents: dict[str, Record] = field(default_factory=dict)


def collect(paths: Sequence[str | Path], root: Path) -> Found:
    """Every run at or under `paths` (run folders, sweep folders, or folders of these), relative ones under `root`.

    The result is in one order, whatever the order of `paths`. Raises UserError for a path that is not there.
    """
    found = Found()
    for folder in sorted(_record_folders(paths, root, found)):
        place = shown(folder, root)
        try:
            record = read_record(folder)
            _check_types(record)
        except (ValueError, RecursionError) as error:
            reason = str(error).replace(str(folder), place)
            found.unreadable.append(Unreadable(place, reason))
        else:
            found.runs.append(Run(folder, place, record))
    found.runs.sort(key=lambda run: (run.record.mode, run.record.run, run.record.hash, run.place))
    found.unreadable.sort(key=lambda item: (item.place, item.reason))
    found.parents = _parents(found.runs, root)
    return found


def shown(folder: Path, root: Path) -> str:
    """`folder` as the report shows it: relative to `root` where it lies inside."""
    try:
        return Path(os.path.realpath(folder)).relative_to(os.path.realpath(root)).as_posix() or "."
    except ValueError:
        return str(folder)


def _record_folders(paths: Sequence[str | Path], root: Path, found: Found) -> set[Path]:
    """The real paths of all folders with a record, each once. A run folder is not searched further."""
    folders: set[Path] = set()

    def cannot_list(error: OSError) -> None:
        found.unreadable.append(Unreadable(shown(Path(error.filename), root), error.strerror or str(error)))

    for given in paths:
        start = root / Path(given).expanduser()
        if start.name == "record.json" and start.is_file():
            start = start.parent
        if not start.is_dir():
            if str(given).rstrip("/") in USUAL:
                continue
            raise UserError(f"runs: {given}: no such folder (looked at {start.absolute()}).")
        for folder, below, files in os.walk(os.path.realpath(start), onerror=cannot_list):
            if "record.json" in files:
                folders.add(Path(folder))
                below.clear()
            below[:] = [name for name in below if not name.startswith(".") and name != "wandb"]
    return folders


def _check_types(record: Record) -> None:
    """Raises ValueError for a record whose fields are not of the schema's types."""
    for name, kind in TYPES.items():
        value = getattr(record, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"record.json: {name} is {type(value).__name__}, not {kind.__name__}")
    if not all(isinstance(scores, dict) for scores in record.metrics.values()):
        raise ValueError("record.json: metrics must hold one object per split")
    if record.pretrain is not None and not isinstance(record.pretrain, dict):
        raise ValueError(f"record.json: pretrain is {type(record.pretrain).__name__}, not an object or null")


def _parents(runs: list[Run], root: Path) -> dict[str, Record]:
    """Hash to record of every run that another one started from; looked up in its folder if not among `runs`."""
    known = {run.record.hash: run.record for run in runs}
    waiting = [run.record for run in runs]
    parents: dict[str, Record] = {}
    while waiting:
        origin = waiting.pop().pretrain or {}
        digest, folder = origin.get("hash"), origin.get("folder")
        if not isinstance(digest, str) or digest in parents:
            continue
        record = known.get(digest)
        if record is None and isinstance(folder, str) and (root / folder / "record.json").is_file():
            try:
                record = read_record(root / folder)
                _check_types(record)
            except ValueError:
                continue  # its child says where it lies; the report goes on without its settings
        if record is not None and record.hash == digest:
            parents[digest] = record
            waiting.append(record)
    return parents

"""Finds every `record.json` and `bench.json` in the given folders and below. Unreadable files are listed and skipped.

If the baseline of a data set is not among them, it is looked for in multirun/.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Sequence

from xcls.config.schema import UserError
from xcls.runs.paths import at
from xcls.runs.record import Record, read_record, sha256
from xcls.runs.run_status import is_held, run_folders

KILLED = "killed"
DEFAULT_FOLDERS = ("multirun", "pretrain", "finetune")  # the default folders; a fresh clone has none of them yet
RECORD, BENCH = "record.json", "bench.json"
PREFIX = "wandb:"
NAME = r"((?!\.)[^/\\#?%:]+)"  # a part of a W&B path that is also a valid folder name
RUN_PATH = re.compile(f"{PREFIX}{NAME}/{NAME}/(?:runs/)?{NAME}")
FILES = ("record.json", "metrics.csv", "predictions.parquet", "code.patch")
ANSWER_SECONDS = 20
LARGEST = 64 * 2**20  # bytes of a record; a real one has about ten thousand


@dataclass(frozen=True)
class Run:
    """One record and its folder. `place`: the folder as shown to the reader, relative to the project if inside."""

    folder: Path
    place: str
    record: Record


@dataclass(frozen=True)
class Bench:
    """One measurement of mode=bench, read from its bench.json: its rows, device and settings."""

    folder: Path
    place: str
    rows: list[dict[str, Any]]
    device: dict[str, Any] = field(default_factory=dict)
    attentions: dict[str, Any] = field(default_factory=dict)  # the settings of each mechanism
    settings: dict[str, Any] = field(default_factory=dict)
    size: dict[str, Any] = field(default_factory=dict)


@dataclass
class Found:
    """All that was found. `parents`: hash -> record of the runs that others started from, in whatever folder.

    `unreadable`: (place, reason). `notes` for the reader: baselines taken from other folders, missing files.
    """

    runs: list[Run] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    parents: dict[str, Record] = field(default_factory=dict)
    benches: list[Bench] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def collect(paths: Sequence[str | Path], root: Path) -> Found:
    """All runs in `paths` (run folders, sweep folders, or folders of these); relative paths start at `root`.

    If `paths` have no baseline of the same rows, one is taken from multirun/. The order of the result does not depend
    on that of `paths`. Raises UserError for a path that does not exist.
    """
    found, folders = Found(), set[Path]()
    for given in map(str, paths):
        start = fetch(given, root) if given.startswith(PREFIX) else _folder_of(given, root)
        folders.update(map(_real, run_folders(start, files=(RECORD, BENCH)) if start else ()))
    for folder in sorted(folders):
        _read_folder(folder, root, found)
    _fetch_baselines(found, root, folders)
    found.runs.sort(key=lambda run: (run.record.mode, run.record.run, run.record.hash, run.place))
    found.unreadable.sort()
    found.benches.sort(key=lambda bench: bench.place)
    found.notes.sort()
    found.parents = _parents(found.runs, root)
    return found


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def fetch(given: str, root: Path) -> Path:
    """Downloads a run from W&B and returns its new folder. Raises UserError if W&B fails or has no such run."""
    found = RUN_PATH.fullmatch(given)
    if not found:
        raise UserError(
            f"runs: {given}: wandb:<entity>/<project>/<run id> is needed, as in the address of the run's page."
        )
    place = root.joinpath("multirun", ".wandb", *found.groups())
    try:
        import wandb

        files = {file.name: file for file in wandb.Api(timeout=ANSWER_SECONDS).run("/".join(found.groups())).files()}
        for name in [name for name in FILES if name in files]:
            files[name].download(root=str(place), replace=True)
    except (Exception, SystemExit) as error:  # wandb may be missing or broken, and it raises many types
        said = " ".join(str(error).split())[:300]
        raise UserError(f"runs: {given}: W&B says: {said}. Log in (wandb login), or name the run's folder.") from error
    if "record.json" not in files:
        raise UserError(f"runs: {given}: not an xcls run: W&B has no record.json of it. Name the run's folder instead.")
    return place


def shown(folder: Path, root: Path) -> str:
    """`folder` as the report shows it: relative to `root` if it is inside."""
    try:
        return Path(os.path.realpath(folder)).relative_to(os.path.realpath(root)).as_posix() or "."
    except ValueError:
        return str(folder)


def _folder_of(given: str | Path, root: Path) -> Path | None:
    """The folder that the user's path names; None for a default folder that does not exist yet."""
    start = root / at(given)
    if start.name in (RECORD, BENCH) and start.is_file():
        start = start.parent
    if start.is_dir():
        return start
    if str(given).rstrip("/") in DEFAULT_FOLDERS:
        return None
    raise UserError(f"runs: {given}: no such folder (looked at {start.absolute()}).")


def _read_folder(folder: Path, root: Path, found: Found) -> None:
    """Reads the run or measurement in `folder` into `found`; a file with a fault goes to `found.unreadable`."""
    place = shown(folder, root)
    for name in (name for name in (RECORD, BENCH) if os.path.lexists(folder / name)):
        try:
            if not (folder / name).is_file() or (folder / name).stat().st_size > LARGEST:
                raise ValueError(f"{name}: not a file of at most {LARGEST // 2**20} MiB")
            if name == BENCH:
                found.benches.append(_read_bench(folder, place))
            else:
                found.runs.append(_read_run(folder, place, found))
        except (OSError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).replace(str(folder), place).split())
            found.unreadable.append((place, reason if len(reason) <= 300 else reason[:297] + "…"))


def _read_run(folder: Path, place: str, found: Found) -> Run:
    """The run in `folder`. Raises ValueError if its record, or a file with a checksum in it, was changed."""
    record = read_record(folder, sealed=True)
    _check_nodes(record)
    for name, checksum in sorted(record.files.items()) if record.status == "completed" else ():
        file = folder / Path(name).name
        if not file.is_file():
            found.notes.append(f"{place}: {name} is missing, and so is what the report makes from it.")
        elif sha256(file) != checksum:
            raise ValueError(f"{name} was changed after the run wrote it: its checksum is another")
    return Run(folder, place, record)


def _read_bench(folder: Path, place: str) -> Bench:
    """The measurement in `folder`. Raises ValueError if mode=bench cannot have written it."""
    try:
        data = json.loads((folder / BENCH).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{BENCH}: {error}") from error
    rows = data.get("rows") if isinstance(data, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{BENCH}: a list of rows is needed")
    nodes = {name: data.get(name) or {} for name in ("device", "attentions", "settings", "size")}
    wrong = [name for name, node in nodes.items() if not isinstance(node, dict)]
    if wrong:
        raise ValueError(f"{BENCH}: {wrong[0]} must be an object")
    json.dumps(data, ensure_ascii=False).encode()  # as in `_check_nodes`
    return Bench(folder, place, rows, **nodes)


def _check_nodes(record: Record) -> None:
    """Raises ValueError for nested values, which no table can hold, and for text that UTF-8 cannot encode."""
    for name in ("choices", "device", "versions", "files", "code", "costs", "params"):
        for key, value in getattr(record, name).items():
            if isinstance(value, (dict, list)):
                raise ValueError(f"{RECORD}: {name}.{key} must be a single value")
    if not all(isinstance(scores, dict) for scores in record.metrics.values()):
        raise ValueError(f"{RECORD}: metrics must hold one object per split")
    json.dumps(vars(record), ensure_ascii=False).encode()  # raises for a lone surrogate: it cannot be encoded


def _fetch_baselines(found: Found, root: Path, taken: set[Path]) -> None:
    """Adds baselines from multirun/ for the training rows of fine-tuned runs that have none yet."""

    def rows_of(record: Record) -> tuple[str, str]:
        return str(record.data.get("fingerprint")), str(record.data.get("train_rows_hash"))

    done = [run.record for run in found.runs if run.record.status == "completed"]
    wanted = {rows_of(record) for record in done if record.mode == "finetune"}
    wanted -= {rows_of(record) for record in done if record.mode == "baseline"} | {("None", "None")}
    aside = Found()  # separate: faults of these folders are not part of this report
    for folder in sorted(path.parent for path in (root / "multirun").glob(f"*/*/tfidf_logreg-*/{RECORD}")):
        if wanted and _real(folder) not in taken:
            _read_folder(folder, root, aside)
    for run in aside.runs:
        if run.record.mode == "baseline" and run.record.status == "completed" and rows_of(run.record) in wanted:
            found.runs.append(run)
            found.notes.append(f"The baseline {run.place} was found by the fingerprint of its data.")


def _parents(runs: list[Run], root: Path) -> dict[str, Record]:
    """Hash -> record of every run that another one started from; read from its folder if it is not in `runs`."""
    known = {run.record.hash: run.record for run in runs}
    waiting = [run.record for run in runs]
    parents: dict[str, Record] = {}
    while waiting:
        origin = waiting.pop().pretrain or {}
        digest, folder = origin.get("hash"), origin.get("folder")
        if not isinstance(digest, str) or digest in parents:
            continue
        record = known.get(digest)
        if record is None and isinstance(folder, str) and (root / folder / RECORD).is_file():
            try:
                record = read_record(root / folder)
                _check_nodes(record)
            except (OSError, ValueError, RecursionError):
                continue  # the report goes on without the settings of this pretraining run
        if record is not None and record.hash == digest:
            parents[digest] = record
            waiting.append(record)
    return parents


def final_status(run: Run) -> tuple[str, str]:
    """(status, cause) of a run: those of its record, or `killed` if the record says running and no process holds it."""
    record = run.record
    if record.status != "running" or is_held(run.folder) is not False:
        return record.status, record.cause or ""
    where = f"after step {record.step} of {record.steps}" if record.steps else "before its first evaluation"
    return KILLED, (
        f"no process holds its folder any more: killed {where} (kill -9, the system's memory, power), "
        "or it runs on a machine whose locks are not seen here"
    )

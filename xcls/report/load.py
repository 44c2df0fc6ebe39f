"""Finds every `record.json` at or under the given folders. What cannot be read is listed and changes nothing else.

Measurements of mode=bench (`bench.json`) are found beside them, and the baselines of their data wherever they lie.
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
USUAL = ("multirun", "pretrain", "finetune")  # may be missing: a fresh clone has none of them yet
RECORD, BENCH = "record.json", "bench.json"
PREFIX = "wandb:"
NAME = r"((?!\.)[^/\\#?%:]+)"  # what W&B allows, and what makes a folder's name
RUN_PATH = re.compile(f"{PREFIX}{NAME}/{NAME}/(?:runs/)?{NAME}")
FILES = ("record.json", "metrics.csv", "predictions.parquet", "code.patch")
ANSWER_SECONDS = 20
LARGEST = 64 * 2**20  # bytes of a record; real ones have ten thousand


@dataclass(frozen=True)
class Run:
    """One record and where it lies. `place` is the folder as it is shown: relative to the project where it can be."""

    folder: Path
    place: str
    record: Record


@dataclass(frozen=True)
class Bench:
    """One measurement of mode=bench, the content of its bench.json: its rows, and what they were measured on."""

    folder: Path
    place: str
    rows: list[dict[str, Any]]
    device: dict[str, Any] = field(default_factory=dict)
    attentions: dict[str, Any] = field(default_factory=dict)  # the settings of each mechanism
    settings: dict[str, Any] = field(default_factory=dict)
    size: dict[str, Any] = field(default_factory=dict)


@dataclass
class Found:
    """All that was found. `parents`: hash to record of the runs that others started from, wherever they lie.

    `unreadable`: (place, reason). `notes` are for the reader: which baselines were fetched from elsewhere, which files
    are gone.
    """

    runs: list[Run] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    parents: dict[str, Record] = field(default_factory=dict)
    benches: list[Bench] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def collect(paths: Sequence[str | Path], root: Path) -> Found:
    """Every run at or under `paths` (run folders, sweep folders, or folders of these), relative ones under `root`.

    A baseline of the same rows is fetched from multirun/ where `paths` hold none. The result is in one order, whatever
    the order of `paths`. Raises UserError for a path that is not there.
    """
    found, folders = Found(), set[Path]()
    for given in map(str, paths):
        start = fetch(given, root) if given.startswith(PREFIX) else _start(given, root)
        folders.update(map(_real, run_folders(start, files=(RECORD, BENCH)) if start else ()))
    for folder in sorted(folders):
        _take(folder, root, found)
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
    """Downloads the files of a run and gives its new folder. Raises UserError: W&B does not answer or does not know
    the run."""
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
    except (Exception, SystemExit) as error:  # the package may be missing or broken; wandb itself raises many kinds
        said = " ".join(str(error).split())[:300]
        raise UserError(f"runs: {given}: W&B says: {said}. Log in (wandb login), or name the run's folder.") from error
    if "record.json" not in files:
        raise UserError(f"runs: {given}: no run of xcls: W&B has no record.json of it. Name the run's folder instead.")
    return place


def shown(folder: Path, root: Path) -> str:
    """`folder` as the report shows it: relative to `root` where it lies inside."""
    try:
        return Path(os.path.realpath(folder)).relative_to(os.path.realpath(root)).as_posix() or "."
    except ValueError:
        return str(folder)


def _start(given: str | Path, root: Path) -> Path | None:
    """The folder that a path of the user names; None for a usual one that is not there yet."""
    start = root / at(given)
    if start.name in (RECORD, BENCH) and start.is_file():
        start = start.parent
    if start.is_dir():
        return start
    if str(given).rstrip("/") in USUAL:
        return None
    raise UserError(f"runs: {given}: no such folder (looked at {start.absolute()}).")


def _take(folder: Path, root: Path, found: Found) -> None:
    """Reads the run or measurement in `folder` into `found`; what is wrong with it goes to `found.unreadable`."""
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
    """The run in `folder`. Raises ValueError where its record, or a file the record vouches for, is not as written."""
    record = read_record(folder, sealed=True)
    _check_nodes(record)
    for name, checksum in sorted(record.files.items()) if record.status == "completed" else ():
        file = folder / Path(name).name
        if not file.is_file():
            found.notes.append(f"{place}: {name} is gone; what is made from it is missing here.")
        elif sha256(file) != checksum:
            raise ValueError(f"{name} was changed after the run wrote it: its checksum does not fit")
    return Run(folder, place, record)


def _read_bench(folder: Path, place: str) -> Bench:
    """The measurement in `folder`. Raises ValueError where it is not what mode=bench writes."""
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
    """Raises ValueError for a record with nested values that no table can hold, or a text that no file can."""
    for name in ("choices", "device", "versions", "files", "code", "costs", "params"):
        for key, value in getattr(record, name).items():
            if isinstance(value, (dict, list)):
                raise ValueError(f"{RECORD}: {name}.{key} must be a single value")
    if not all(isinstance(scores, dict) for scores in record.metrics.values()):
        raise ValueError(f"{RECORD}: metrics must hold one object per split")
    json.dumps(vars(record), ensure_ascii=False).encode()  # half a surrogate pair could be written nowhere


def _fetch_baselines(found: Found, root: Path, taken: set[Path]) -> None:
    """Adds the baselines, from multirun/, of the rows that runs were fine-tuned on and that have none yet."""

    def rows_of(record: Record) -> tuple[str, str]:
        return str(record.data.get("fingerprint")), str(record.data.get("train_rows_hash"))

    done = [run.record for run in found.runs if run.record.status == "completed"]
    wanted = {rows_of(record) for record in done if record.mode == "finetune"}
    wanted -= {rows_of(record) for record in done if record.mode == "baseline"} | {("None", "None")}
    aside = Found()  # what is wrong there is not part of this report
    for folder in sorted(path.parent for path in (root / "multirun").glob(f"*/*/tfidf_logreg-*/{RECORD}")):
        if wanted and _real(folder) not in taken:
            _take(folder, root, aside)
    for run in aside.runs:
        if run.record.mode == "baseline" and run.record.status == "completed" and rows_of(run.record) in wanted:
            found.runs.append(run)
            found.notes.append(f"The baseline {run.place} was found by the fingerprint of its data.")


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
        if record is None and isinstance(folder, str) and (root / folder / RECORD).is_file():
            try:
                record = read_record(root / folder)
                _check_nodes(record)
            except (OSError, ValueError, RecursionError):
                continue  # its child says where it lies; the report goes on without its settings
        if record is not None and record.hash == digest:
            parents[digest] = record
            waiting.append(record)
    return parents


def final_status(run: Run) -> tuple[str, str]:
    """(status, cause) of a run: those of its record, or `killed` where its process is gone without a word."""
    record = run.record
    if record.status != "running" or is_held(run.folder) is not False:
        return record.status, record.cause or ""
    where = f"after step {record.step} of {record.steps}" if record.steps else "before its first evaluation"
    return KILLED, (
        f"no process holds its folder any more: killed {where} (kill -9, the system's memory, power), "
        "or it runs on a machine whose locks are not seen here"
    )

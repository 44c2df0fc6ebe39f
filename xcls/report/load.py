"""Finds every `record.json` at or under the given folders. What cannot be read is listed and spoils nothing.

Measurements of mode=bench (`bench.json`) are found beside them, and the baselines of their data wherever they lie.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, Sequence

from xcls.config.schema import UserError
from xcls.report.wandb_runs import fetch, is_wandb
from xcls.runs.paths import at
from xcls.runs.record import Record, read_record, sha256

try:
    import fcntl
except ImportError:  # Windows has no such locks: a killed run stays `running` there
    fcntl = None  # type: ignore[assignment]

KILLED = "killed"
LOCK = ".lock"  # held by a run as long as it lives; the system takes it from a process that dies
USUAL = ("multirun", "pretrain", "finetune")  # may be missing: a fresh clone has none of them yet
RECORD, BENCH = "record.json", "bench.json"
LARGEST = 64 * 2**20  # bytes of a record; real ones have ten thousand
TYPES = {
    **dict.fromkeys(("run", "mode", "hash"), str),
    **dict.fromkeys(("seed", "seq_len"), int),
    **dict.fromkeys("choices config data metrics costs params device versions files code".split(), dict),
    **dict.fromkeys(("command", "warnings"), list),
}


@dataclass(frozen=True)
class Run:
    """One record and where it lies. `place` is the folder as it is shown: relative to the project where it can be."""

    folder: Path
    place: str
    record: Record


@dataclass(frozen=True)
class Bench:
    """One measurement of mode=bench: the content of its bench.json, and of that the rows."""

    folder: Path
    place: str
    data: dict[str, Any]
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Unreadable:
    """A folder whose record cannot be used, and why."""

    place: str
    reason: str


@dataclass
class Found:
    """All that was found. `parents`: hash to record of the runs that others started from, wherever they lie.

    `notes` are for the reader: which baselines were fetched from elsewhere, which files are gone.
    """

    runs: list[Run] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    parents: dict[str, Record] = field(default_factory=dict)
    benches: list[Bench] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def collect(paths: Sequence[str | Path], root: Path) -> Found:
    """Every run at or under `paths` (run folders, sweep folders, or folders of these), relative ones under `root`.

    A baseline of the same rows is fetched from multirun/ where `paths` hold none. The result is in one order, whatever
    the order of `paths`. Raises UserError for a path that is not there.
    """
    found = Found()
    folders: set[tuple[Path, str]] = set()
    for given in paths:
        if is_wandb(given, root):
            places, reasons = fetch(given, root)
            folders.update((Path(os.path.realpath(place)), RECORD) for place in places)
            found.unreadable += [Unreadable(str(given), reason) for reason in reasons]
        else:
            folders.update(_walk(_start(given, root), root, found))
    for folder, name in sorted(folders):
        _take(folder, name, root, found)
    _fetch_baselines(found, root, {folder for folder, _ in folders})
    found.runs.sort(key=lambda run: (run.record.mode, run.record.run, run.record.hash, run.place))
    found.unreadable = sorted(set(found.unreadable), key=lambda item: (item.place, item.reason))
    found.benches.sort(key=lambda bench: bench.place)
    found.notes.sort()
    found.parents = _parents(found.runs, root)
    return found


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


def _walk(start: Path | None, root: Path, found: Found) -> Iterator[tuple[Path, str]]:
    """(real path, record.json or bench.json) of the folders that hold one. A run folder is not searched further.

    Links to folders are followed, each folder once, so that a circle of links ends.
    """
    waiting, seen = [] if start is None else [os.path.realpath(start)], set()
    while waiting:
        folder = waiting.pop()
        if folder in seen:
            continue
        seen.add(folder)
        try:
            with os.scandir(folder) as entries:
                inside = {entry.name: entry for entry in entries}
            below = [entry for name, entry in inside.items() if not name.startswith(".") and name != "wandb"]
            names = [name for name in (RECORD, BENCH) if name in inside]
            if not names:
                waiting += [os.path.realpath(entry.path) for entry in below if os.path.isdir(entry.path)]
        except OSError as error:
            found.unreadable.append(Unreadable(shown(Path(folder), root), error.strerror or str(error)))
            continue
        yield from ((Path(folder), name) for name in names)


def _take(folder: Path, name: str, root: Path, found: Found) -> None:
    """Reads one run or measurement into `found`; what is wrong with it goes to `found.unreadable`."""
    place = shown(folder, root)
    try:
        if not (folder / name).is_file() or (folder / name).stat().st_size > LARGEST:
            raise ValueError(f"{name}: not a file of at most {LARGEST // 2**20} MiB")
        if name == BENCH:
            found.benches.append(_read_bench(folder, place))
        else:
            found.runs.append(_read_run(folder, place, found))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).replace(str(folder), place).split())
        found.unreadable.append(Unreadable(place, reason if len(reason) <= 300 else reason[:297] + "…"))


def _read_run(folder: Path, place: str, found: Found) -> Run:
    """The run in `folder`. Raises ValueError where its record, or a file the record vouches for, is not as written."""
    record = read_record(folder, sealed=True)
    _check_types(record)
    json.dumps(vars(record), ensure_ascii=False).encode()  # half a surrogate pair could be written nowhere
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
    json.dumps(data, ensure_ascii=False).encode()
    return Bench(folder, place, data, rows)


def _check_types(record: Record) -> None:
    """Raises ValueError for a record whose fields are not of the schema's types."""

    def need(good: bool, name: str, what: str) -> None:
        if not good:
            raise ValueError(f"{RECORD}: {name} must {what}")

    for name, kind in TYPES.items():
        value = getattr(record, name)
        need(
            isinstance(value, kind) and not isinstance(value, bool),
            name,
            f"be {kind.__name__}, not {type(value).__name__}",
        )
    need(all(isinstance(scores, dict) for scores in record.metrics.values()), "metrics", "hold one object per split")
    need(isinstance(record.pretrain, (dict, type(None))), "pretrain", "be an object or null")
    for name in ("cause", "exp", "study", "commit"):
        need(isinstance(getattr(record, name), (str, type(None))), name, "be a text or null")
    need(
        all(isinstance(text, str) for text in [*record.code.values(), *record.command, *record.warnings]),
        "code, command and warnings",
        "hold texts",
    )
    for name in ("choices", "device", "versions", "files"):
        nested = any(isinstance(value, (dict, list)) for value in getattr(record, name).values())
        need(not nested, name, "hold single values")
    nodes: list[dict[str, Any]] = [record.costs, record.params, *record.metrics.values()]
    for node in nodes:
        for name, value in node.items():
            need(not isinstance(value, int) or abs(value) <= 10**300, name, "be a number that a float can hold")


def _fetch_baselines(found: Found, root: Path, taken: set[Path]) -> None:
    """Adds the baselines, from multirun/, of the rows that runs were fine-tuned on and that have none yet."""

    def rows_of(record: Record) -> tuple[str, str]:
        return str(record.data.get("fingerprint")), str(record.data.get("train_rows_hash"))

    done = [run.record for run in found.runs if run.record.status == "completed"]
    wanted = {rows_of(record) for record in done if record.mode == "finetune"}
    wanted -= {rows_of(record) for record in done if record.mode == "baseline"} | {("None", "None")}
    aside = Found()  # what is wrong over there is nobody's concern here
    for folder in sorted(path.parent for path in (root / "multirun").glob(f"*/*/tfidf_logreg-*/{RECORD}")):
        if not wanted or Path(os.path.realpath(folder)) in taken:
            continue
        _take(folder, RECORD, root, aside)
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
                _check_types(record)
            except (OSError, ValueError, RecursionError):
                continue  # its child says where it lies; the report goes on without its settings
        if record is not None and record.hash == digest:
            parents[digest] = record
            waiting.append(record)
    return parents


def final_status(run: Run) -> tuple[str, str]:
    """(status, cause) of a run: those of its record, or `killed` where its process is gone without a word."""
    record = run.record
    if record.status != "running" or held(run.folder) is not False:
        return record.status, record.cause or ""
    where = f"after step {record.step} of {record.steps}" if record.steps else "before its first evaluation"
    return KILLED, (
        f"no process holds its folder any more: killed {where} (kill -9, the system's memory, power), "
        "or it runs on a machine whose locks are not seen here"
    )


def held(folder: Path) -> bool | None:
    """Whether a process runs in `folder`; None where that cannot be told. Nothing is changed there."""
    if fcntl is None:
        return None
    try:
        with open(Path(folder) / LOCK, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
    except OSError:
        return None

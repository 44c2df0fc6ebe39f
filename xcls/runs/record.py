"""The files of a run: `record.json`, which the report reads, and `events.jsonl`.

Standard library only. The record is written at the start, at every evaluation and at the end, also after a failure. It
is written to a temporary file and renamed, so that a reader always finds a complete one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Iterable, Iterator

from xcls.runs.redact import without_secrets

SCHEMA_VERSION = 1
STATUSES = ("running", "completed", "failed", "interrupted")
MORE_TRAINING = (
    "Train longer (finetuning.max_steps or finetuning.epochs), or with another learning rate (finetuning.lr)."
)
PATCH = "code.patch"  # in a run's folder: the code that is not in its commit
# Annotation of a field -> its types in JSON:
KINDS: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "dict": dict, "list": list}


@dataclass
class Record:
    """One run. Times are seconds, memory MiB, scores shares in 0..1."""

    run: str  # the run's name: its folder relative to the sweep's or stage's folder
    mode: str  # pretrain, finetune, baseline, bench
    status: str  # one of STATUSES
    hash: str  # full sha256 of what influences the result (identity.py)
    seed: int
    seq_len: int
    cause: str | None = None  # why it failed or was interrupted
    exp: str | None = None
    study: str | None = None
    choices: dict[str, str] = field(default_factory=dict)  # group -> chosen file: attention, position, size, dataset…
    config: dict[str, Any] = field(default_factory=dict)  # flat and fully resolved
    # part -> hash of its code: attention, position; none in older records
    code: dict[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)  # name, fingerprint, rows per split, classes, counts, shares
    pretrain: dict[str, Any] | None = None  # folder, hash, checkpoint, step of the run this one started from
    step: int = 0
    steps: int = 0  # planned
    epoch: float = 0.0
    best_step: int | None = None
    metrics: dict[str, dict[str, float | None]] = field(default_factory=dict)  # 'validation', 'test', 'eval.<split>'
    costs: dict[str, float | None] = field(default_factory=dict)  # time_per_step, time_per_epoch, tokens_per_s, …
    params: dict[str, int] = field(default_factory=dict)  # total, trainable, embeddings, attention
    # kind, name, dtype, compile, micro_batch, threads, shared, attention_path
    device: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str | None] = field(default_factory=dict)
    commit: str | None = None
    wandb_id: str | None = None
    warnings: list[str] = field(default_factory=list)
    # survived: kind (bad_step, restart, halved), step, cause
    faults: list[dict[str, Any]] = field(default_factory=list)
    # name -> sha256, for metrics.csv, predictions.parquet and code.patch
    files: dict[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)  # the overrides that give this run again
    started: float = 0.0  # seconds since the epoch
    ended: float | None = None
    schema_version: int = SCHEMA_VERSION


def is_guess(macro_f1: float | None, classes: int) -> bool:
    """Whether a macro-F1 (share) over this number of classes is no better than a guess.

    Random labels reach at most 1/classes on average, whatever their shares n and the shares t of the classes: F1 is the
    mean over the classes of 2nt/(n+t), and each is at most (n+t)/2. Predicting one class for all rows is no better.
    """
    return macro_f1 is not None and macro_f1 <= 1 / max(classes, 1) + 1e-12


def carry_over(record: Record, before: Record) -> None:
    """After a resume, copies the values for the whole run from the earlier record `before` to `record`."""
    record.started, record.wandb_id, record.warnings = before.started, before.wandb_id, list(before.warnings)
    record.device["shared"] = bool(record.device.get("shared") or before.device.get("shared"))
    if before.device.get("attention_path"):
        record.device["attention_path"] = before.device["attention_path"]
    record.costs = {name: before.costs.get(name) for name in ("wall_seconds", "energy_wh")}


def plain(value: Any) -> Any:
    """`value` in the types of JSON: NaN and Inf become None, paths and other objects strings, secrets `***`."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return without_secrets(value)
    if value is None or isinstance(value, (int, float, bool)):
        return value
    if hasattr(value, "item"):  # a numpy or torch scalar
        return plain(value.item())
    return without_secrets(str(value))


def write_atomic(path: Path, text: str) -> None:
    """Writes `text` to a temporary file, syncs and renames it: a reader sees the complete old or new file."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def no_formula(text: str) -> str:
    """The text for a CSV file: with an apostrophe in front if a spreadsheet would run it as a formula."""
    return f"'{text}" if re.match(r"[=+\-@\t\r](?!\d+(\.\d+)?$)", text) else text


def write_record(record: Record, folder: Path) -> None:
    """Writes `folder/record.json`."""
    content = plain(asdict(record))
    content["seal"] = seal(content)
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(Path(folder) / "record.json", text)


def seal(content: dict[str, Any]) -> str:
    """A checksum of a record's content; the report uses it to detect later edits."""
    sealed = {key: value for key, value in content.items() if key != "seal"}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()


def read_record(folder: Path, *, sealed: bool = False) -> Record:
    """Reads `folder/record.json`. Raises ValueError (unreadable, a newer schema, a missing field) with the path.

    `sealed`: also refuse a wrong seal. A record without a seal is from an older version and is accepted.
    """
    path = Path(folder) / "record.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("not a JSON object")
        if int(raw.get("schema_version", 0)) > SCHEMA_VERSION:
            raise ValueError(f"schema_version {raw['schema_version']} is newer than {SCHEMA_VERSION}")
        if sealed and raw.get("seal", "") not in ("", seal(raw)):
            raise ValueError("it was changed after the run wrote it: its seal does not match")
        known = {item.name for item in fields(Record)}
        record = Record(**{key: value for key, value in raw.items() if key in known})
        for item in fields(Record):
            value, kind = getattr(record, item.name), KINDS[re.split(r"\W", str(item.type))[0]]
            if not isinstance(value, kind) and not (value is None and "None" in str(item.type)):
                raise ValueError(f"{item.name} must be of the type {item.type}, not {str(value)[:40]!r}")
        if record.status not in STATUSES:
            raise ValueError(f"status '{record.status}' is unknown")
        return record
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def sha256(path: Path) -> str:
    """Checksum of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def parse_events(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The events in these lines of events.jsonl; skips lines that are no event, such as one that was cut off."""
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("time"), (int, float)) and "event" in event:
            yield event


class Events:
    """`events.jsonl`: all events of a run, one JSON object per line, each written at once."""

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / "events.jsonl"

    def add(self, event: str, details: dict[str, Any] | None = None) -> None:
        """Appends one event (start, step, eval, checkpoint, warning, resume, failure, end) with the time."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **plain(details or {})}, ensure_ascii=False)
        with open(self.path, "a+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line  # a full disk may have cut the last line
            file.write((line + "\n").encode("utf-8", errors="replace"))

    def evaluated_steps(self) -> list[int]:
        """The steps of the evaluations that count: all without a later `withdrawn` event."""
        steps: dict[int, None] = {}
        for event in parse_events(self.path.read_bytes().splitlines() if self.path.exists() else []):
            if event["event"] == "eval" and "step" in event:
                steps[event["step"]] = None
            elif event["event"] == "withdrawn":
                steps.pop(event.get("step", -1), None)
        return list(steps)

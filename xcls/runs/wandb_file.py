"""Reads what W&B keeps on disk: the `run-<id>.wandb` file in `wandb/offline-run-<time>-<id>/`, one segment of a run.

The file is a log in LevelDB's format (blocks of 32 KiB, each record with a checksum) of protobuf records. Older
releases of wandb have a reader in Python (`wandb.sdk.internal.datastore`), 0.31 has none, only the protobuf classes. So
the log format is read here, in thirty lines. Tried with the files of wandb 0.19.11, 0.21.4 and 0.31.0.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE_HEADER = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
RECORD_HEADER = struct.Struct("<IHB")  # crc32 of type and data, length of the data, type
BLOCK = 32 * 1024
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
RECORD, METRICS = "xcls_record", "xcls_metrics"  # keys of a run's summary: the whole record.json, and metrics.csv


@dataclass
class Segment:
    """One session of a W&B run: its rows in order, the last values of its summary, how it ended."""

    path: Path
    id: str = ""
    entity: str = ""
    project: str = ""
    name: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    started: float = 0.0
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, dict[str, str]] = field(default_factory=dict)  # name -> path in it -> file on this machine
    exit_code: int | None = None  # None: it never ended (killed, or still running)
    preempting: bool = False  # it was stopped from outside and may go on


def whole_records(path: Path) -> tuple[list[bytes], int]:
    """The data of every whole record of a log file, up to where it is cut short or damaged, and the bytes up to there.

    Raises ValueError where it is no file of W&B.
    """
    content = Path(path).read_bytes()
    if content[: len(FILE_HEADER)] != FILE_HEADER:
        raise ValueError(f"{path}: not a .wandb file that can be read (its first bytes are {content[:7]!r})")
    place, end = len(FILE_HEADER), len(FILE_HEADER)
    parts: list[bytes] = []
    records: list[bytes] = []
    while place + RECORD_HEADER.size <= len(content):
        if BLOCK - place % BLOCK < RECORD_HEADER.size:  # too little is left of the block for a header
            place += BLOCK - place % BLOCK
            continue
        checksum, length, kind = RECORD_HEADER.unpack_from(content, place)
        data = content[place + RECORD_HEADER.size : place + RECORD_HEADER.size + length]
        if len(data) < length or checksum != zlib.crc32(data, zlib.crc32(bytes([kind]))):
            break
        place += RECORD_HEADER.size + length
        parts = [data] if kind in (FULL, FIRST) else [*parts, data]
        if kind in (FULL, LAST):
            records.append(b"".join(parts))
            end = place
    return records, end


def mend(path: Path) -> None:
    """Takes away what a kill left at the end of a file: half a record, or a file with nothing in it.

    `wandb sync` (0.31) of a run's segments sends nothing that comes after such a file, and exits with 0 all the same.
    """
    records, end = whole_records(path)
    if not records:
        path.rename(path.with_name(path.name + ".empty"))
    elif end < path.stat().st_size:
        os.truncate(path, end)


def read_segment(path: Path) -> Segment:
    """Reads one .wandb file as far as it is whole. Raises ValueError where nothing of a run is in it."""
    from wandb.proto import wandb_internal_pb2 as proto

    segment = Segment(path=Path(path))
    for data in whole_records(path)[0]:
        record = proto.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            segment.id, segment.entity, segment.project = run.run_id, run.entity, run.project
            segment.name, segment.group, segment.tags = run.display_name, run.run_group, list(run.tags)
            segment.started = run.start_time.seconds + run.start_time.nanos / 1e9
            segment.config.update(_items(run.config.update))
        elif kind == "history":
            segment.rows.append(_items(record.history.item))
        elif kind == "summary":
            segment.summary.update(_items(record.summary.update))
        elif kind == "artifact":
            files = {entry.path: entry.local_path for entry in record.artifact.manifest.contents}
            segment.artifacts[record.artifact.name] = files
        elif kind == "exit":
            segment.exit_code = record.exit.exit_code
        elif kind == "preempting":
            segment.preempting = True
    if not segment.id:
        raise ValueError(f"{path}: it holds no run; it was cut short before anything was written to it")
    return segment


def read_segments(folder: Path, run_id: str = "*") -> list[Segment]:
    """The offline segments of `run_id` in a folder `wandb/`, in order of their start, but for those without a run."""
    segments = []
    for path in sorted(Path(folder).glob(f"offline-run-*/run-{run_id}.wandb")):
        try:
            segments.append(read_segment(path))
        except ValueError:
            continue
    return sorted(segments, key=lambda segment: (segment.started, segment.path))


def last_row(segments: list[Segment]) -> int:
    """The number of the last row in them, -1 where there is none."""
    return max((row.get("row", -1) for segment in segments for row in segment.rows), default=-1)


def _items(items: Any) -> dict[str, Any]:
    """The keys and values of a protobuf record's items."""
    return {item.key or "/".join(item.nested_key): _value(item) for item in items}


def _value(item: Any) -> Any:
    """An item's value: JSON text in most releases, a typed field in those that write these."""
    typed = item.WhichOneof("value") if "value" in item.DESCRIPTOR.oneofs_by_name else None
    if typed is None:
        return json.loads(item.value_json)
    value = getattr(item, typed)
    return None if typed == "none" else json.loads(value) if typed in ("json", "value_json") else value

"""bench=growth: rows as results.csv and as tables."""

from __future__ import annotations

import csv
import io
from typing import Any, Callable, Sequence

from xcls.bench.growth_plan import DEPTH, LENGTH, ROWS, STARTUP, WIDTH
from xcls.bench.results import COMPLETED, FAILED, Row
from xcls.bench.table import Column, markdown, number

COLUMNS = (
    "axis",
    "contender",
    "position",
    "dtype",
    "seq_len",
    "width",
    "num_heads",
    "num_layers",
    "rows",
    "batch",
    "status",
    "cause",
    "parameters",
    "rounds",
    "tokens_per_s",
    "tokens_per_s_min",
    "tokens_per_s_max",
    "step_ms",
    "memory_MiB",
    "seconds",
    "seconds_min",
    "seconds_max",
    "file_MiB",
    "prepare_cold_s",
    "prepare_warm_s",
    "first_step_cold_s",
    "first_step_warm_s",
    "prepare_MiB",
    "memory_warm_MiB",
    "cache_MiB",
    "bytes_per_row",
)
TITLES = {
    STARTUP: "Start-up",
    LENGTH: "Against the length",
    WIDTH: "Against the width",
    DEPTH: "Against the depth",
    ROWS: "Against the number of documents",
}
ENOUGH = 50_000  # documents more: with fewer the difference is noise
SIZES = {LENGTH: "seq_len", WIDTH: "width", DEPTH: "num_layers"}  # what grows -> its column


def add_bytes_per_row(rows: Sequence[Row]) -> None:
    """What a document more takes in memory, in bytes: from the smallest file to each much larger one."""
    done = [row for row in rows if row["axis"] == ROWS and row["status"] == COMPLETED]
    for row in done[1:]:
        if row["rows"] - done[0]["rows"] < ENOUGH:
            continue
        grown = row["memory_MiB"] - done[0]["memory_MiB"]
        row["bytes_per_row"] = 2**20 * grown / (row["rows"] - done[0]["rows"])


def to_csv(rows: Sequence[Row]) -> str:
    """results.csv: empty where nothing was measured, six significant digits."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
    return out.getvalue()


def _value(key: str, factor: float = 1.0) -> Callable[[Row], str]:
    return lambda row: number(None if row.get(key) is None else row[key] * factor)


def _count(key: str) -> Callable[[Row], str]:
    return lambda row: f"{row[key]:,}" if row.get(key) is not None else "–"


def _text(key: str) -> Callable[[Row], str]:
    return lambda row: "–" if row.get(key) in (None, "") else str(row[key])


def _spread(key: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        if row.get(key) is None:
            return "–"
        return f"{number(row[key])} ({number(row[f'{key}_min'])}…{number(row[f'{key}_max'])})"

    return show


STARTS: list[Column] = [
    ("what", _text("contender")),
    ("s (min…max)", _spread("seconds")),
    ("starts", _text("rounds")),
    ("failed", _text("cause")),
]
DOCUMENTS: list[Column] = [
    ("documents", _count("rows")),
    ("file, MiB", _value("file_MiB")),
    ("data ready, s: cold", _value("prepare_cold_s")),
    ("warm", _value("prepare_warm_s")),
    ("first step, s: cold", _value("first_step_cold_s")),
    ("warm", _value("first_step_warm_s")),
    ("memory, MiB: cold", _value("memory_MiB")),
    ("warm", _value("memory_warm_MiB")),
    ("bytes a document more", _value("bytes_per_row")),
    ("cache, MiB", _value("cache_MiB")),
    ("tokens/s", _value("tokens_per_s")),
    ("failed", _text("cause")),
]


def points(rows: Sequence[Row], axis: str) -> str:
    """tokens/s and memory along an axis, a line for each point and mechanism."""
    columns: list[Column] = [
        ("mechanism", _text("contender")),
        ("tokens", _count("seq_len")),
        ("width", _text("width")),
        ("layers", _text("num_layers")),
        ("batch", _text("batch")),
        ("parameters, M", _value("parameters", 1e-6)),
        ("tokens/s (min…max)", _spread("tokens_per_s")),
        ("step, ms", _value("step_ms")),
        ("memory, MiB", _value("memory_MiB")),
        ("left out", _text("cause")),
    ]
    constant = [
        name
        for name, key in (("tokens", "seq_len"), ("width", "width"), ("layers", "num_layers"))
        if key != SIZES[axis]
    ]
    kept = [column for column in columns if column[0] not in constant]
    return markdown(kept, [row for row in rows if row["axis"] == axis])


def table(rows: Sequence[Row], axis: str) -> str:
    """The table of one axis."""
    own = [row for row in rows if row["axis"] == axis]
    if axis == STARTUP:
        return markdown(STARTS, own)
    return markdown(DOCUMENTS, own) if axis == ROWS else points(own, axis)


def report(rows: Sequence[Row]) -> str:
    """All tables."""
    axes: dict[str, Any] = dict.fromkeys(row["axis"] for row in rows)
    blocks = [f"## {TITLES[axis]}\n\n{table(rows, axis)}" for axis in axes]
    lost = sum(row["status"] == FAILED for row in rows)
    return (
        "\n\n".join([*blocks, *([f"{lost} rows failed or were left out; the last column says why."] if lost else [])])
        + "\n"
    )

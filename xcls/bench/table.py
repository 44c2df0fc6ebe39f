"""The results as Markdown, on the screen and in documents.

    python -m xcls.bench.table docs/mechanisms.md

A mark in a document is a comment `<!-- table: rivals of attention -->`: the table `rivals` from
multirun/bench/attention/bench.json. What stands between it and `<!-- end -->` is made anew; the words around it stay. A
bench that is not there leaves its tables as they are.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

from xcls.bench.plan import AXES
from xcls.bench.results import FAILED, Row

BENCHES = Path("multirun/bench")
MARK = re.compile(r"(<!-- table: (\w+) of ([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
NONE = "–"
Column = tuple[str, Callable[[Row], str]]


def number(value: Any, digits: int = 3) -> str:
    """Three significant digits, without exponent, a dash for nothing."""
    if value is None or value == "":
        return NONE
    value = float(value)
    if value == 0 or abs(value) < 1e-9:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def shown(key: str, factor: float = 1.0) -> Callable[[Row], str]:
    """A column's number, with its range where there is one; text and whole numbers as they are."""

    def show(row: Row) -> str:
        value, stem = row.get(key), key.removesuffix("_ms")
        if value in (None, ""):
            return NONE
        if not isinstance(value, float) and factor == 1.0:
            return str(value)
        ends = [row.get(key.replace(stem, f"{stem}_{end}", 1)) for end in ("min", "max")]
        told = [number(end * factor) for end in ends if end is not None]
        return number(value * factor) + (f" ({'…'.join(told)})" if told else "")

    return show


def percent(key: str) -> Callable[[Row], str]:
    """A column's share."""
    return lambda row: NONE if row.get(key) is None else f"{row[key]:.1%}"


def error(row: Row) -> str:
    """Mean and standard deviation."""
    return f"{number(row['error_mean'])} ± {number(row['error_std'])}" if row.get("error_mean") is not None else NONE


def failure(row: Row) -> str:
    """Why there is nothing."""
    return str(row["cause"]) if row["status"] == FAILED else NONE


def markdown(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A table with aligned columns; those that are empty in every row are left out."""
    cells = [[name for name, _ in columns], *([show(row) for _, show in columns] for row in rows)]
    kept = [place for place in range(len(columns)) if any(line[place] != NONE for line in cells[1:])]
    cells = [[line[place].replace("|", "\\|") for place in kept] for line in cells]
    widths = [max(len(line[place]) for line in cells) for place in range(len(kept))]

    def joined(line: list[str]) -> str:
        first, *others = zip(line, widths)
        return f"| {' | '.join([first[0].ljust(first[1]), *(word.rjust(width) for word, width in others)])} |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if p == 0 else ":") for p, w in enumerate(widths)) + "|"
    return "\n".join([joined(cells[0]), rule, *map(joined, cells[1:])])


@dataclass(frozen=True)
class Table:
    """One table. `wanted`: which rows it has; `screen`: whether the bench prints it; `single`: one row a mechanism."""

    title: str
    wanted: Callable[[Row], Any]
    columns: Callable[[Sequence[Row]], list[Column]]
    screen: bool = True
    single: bool = False

    def text(self, rows: Sequence[Row]) -> str:
        """The table of those of `rows` that belong to it; '' without any."""
        own = [row for row in rows if self.wanted(row)]
        lines = list({row["mechanism"]: row for row in reversed(own)}.values())[::-1] if self.single else own
        return markdown(self.columns(own), lines) if own else ""


def named(*pairs: tuple[str, str]) -> list[Column]:
    """Columns (title, key) that are shown as they are."""
    return [(title, shown(key)) for title, key in pairs]


WHERE = named(("mechanism", "mechanism"), ("part", "part"), ("position", "position"), ("tokens", "seq_len"))
WHERE += named(("batch", "batch"), ("dtype", "dtype"))
RATIO = re.compile(r"(?:training_ms|training_MiB)_vs_(.+)")


def ratios(rows: Sequence[Row], measure: str, title: str) -> list[Column]:
    """A column for each thing that rows are compared with."""
    names = dict.fromkeys(found[1] for row in rows for key in row if (found := RATIO.fullmatch(key)))
    return [(f"{title} × {name}", shown(f"{measure}_vs_{name}")) for name in names]


def cost_columns(rows: Sequence[Row]) -> list[Column]:
    """Time and memory, and their ratios."""
    times = named(("inference, ms", "inference_ms"), ("forward, ms", "forward_ms"), ("training, ms", "training_ms"))
    sides = named(("of it launching, ms", "host_ms"), ("of the device, ms", "device_ms"))
    found = [*WHERE, *times, *sides, *ratios(rows, "training_ms", "training")]
    found += [*named(("memory, MiB", "training_MiB")), *ratios(rows, "training_MiB", "memory")]
    last = named(("rival", "rival"), ("rounds", "rounds"), ("compile, s", "compile_s"), ("path", "path"))
    return [*found, *last, ("failed", failure)]


def work_columns(rows: Sequence[Row]) -> list[Column]:
    """What a training call must compute and move by formula, and how far the measured time is from it."""
    return [
        *WHERE,
        ("GFLOP", shown("training_flops", 1e-9)),
        ("GFLOP counted", shown("training_flops_counted", 1e-9)),
        ("MiB moved", shown("training_bytes", 2**-20)),
        ("share of peak", percent("training_share_of_peak")),
        *named(
            ("bound, ms", "training_bound_ms"), ("measured, ms", "training_ms"), ("× bound", "training_times_bound")
        ),
    ]


def error_columns(rows: Sequence[Row]) -> list[Column]:
    """Relative error against exact attention."""
    more = named(("by layer", "error_by_layer"), ("of the mean of values", "error_of_mean"))
    more += named(("against", "error_reference"), ("draws or layers", "error_draws"))
    return [
        *WHERE,
        ("relative error", error),
        *more,
        *named(("run's attention", "trained_attention"), ("left out", "cause")),
    ]


def growth_columns(rows: Sequence[Row]) -> list[Column]:
    """Speed and memory along an axis."""
    sizes = named(("mechanism", "mechanism"), ("tokens", "seq_len"), ("width", "width"), ("layers", "num_layers"))
    sizes += [*named(("batch", "batch")), ("parameters, M", shown("parameters", 1e-6))]
    costs = named(("tokens/s", "tokens_per_s"), ("step, ms", "training_ms"), ("memory, MiB", "training_MiB"))
    return [*sizes, *costs, ("failed", failure)]


def training_columns(rows: Sequence[Row]) -> list[Column]:
    """Whole trainings beside transformers' Trainer."""
    found = named(("stage", "stage"), ("contender", "contender"), ("position", "position"), ("dtype", "dtype"))
    found += [("grouped", lambda row: "yes" if row["group_by_length"] else "no")]
    found += named(("real tokens/s (min…max)", "tokens_per_s"), ("× best transformers (min…max)", "vs_transformers"))
    found += [("padding", percent("padding_share")), *named(("step, ms", "step_ms"), ("memory, MiB", "memory_MiB"))]
    found += [("parameters, M", shown("parameters", 1e-6))]
    found += [("MFLOP a token", shown("flops_per_token", 1e-6)), ("share of peak", percent("share_of_peak"))]
    return [*found, ("MFU", percent("mfu")), *named(("rounds", "rounds")), ("failed", failure)]


def place_columns(rows: Sequence[Row]) -> list[Column]:
    """Peak memory of a training step and, in brackets, of inference, by position."""

    def cell(place: str) -> Callable[[Row], str]:
        def show(row: Row) -> str:
            same = [r for r in rows if (r["mechanism"], r["position"]) == (row["mechanism"], place)]
            if not same:
                return NONE
            trained = failure(same[0]) if same[0]["status"] == FAILED else number(same[0].get("training_MiB"))
            return f"{trained} ({number(same[0].get('inference_MiB'))})"

        return show

    places = dict.fromkeys(row["position"] for row in rows)
    return [*named(("mechanism", "mechanism")), *((place, cell(place)) for place in places)]


def _part(*parts: str) -> Callable[[Row], bool]:
    return lambda row: row.get("part") in parts and "axis" not in row


def _axis(axis: str) -> Callable[[Row], bool]:
    return lambda row: row.get("axis") == axis


TABLES = {
    "costs": Table("Time and memory", lambda row: _part("module", "core", "step")(row), cost_columns),
    "fused": Table("", lambda row: _part("module", "core")(row) and row["origin"] == "xcls", cost_columns, False),
    "rivals": Table("", lambda row: row.get("rival"), cost_columns, False),
    "steps": Table("", _part("step"), cost_columns, False),
    "places": Table("", _part("step"), place_columns, False, True),
    "work": Table("Work of one training call", lambda row: row.get("training_bound_ms"), work_columns),
    "errors": Table(
        "Error on random queries and keys",
        lambda row: row.get("part") == "core" and row.get("error_mean") is not None,
        error_columns,
    ),
    "trained": Table("Error on the queries and keys of a trained run", _part("trained"), error_columns),
    "trainings": Table("Training, data loading included", lambda row: row.get("stage"), training_columns),
}
TABLES |= {axis: Table(f"Against the {axis}", _axis(axis), growth_columns) for axis in AXES[:3]}


def report(rows: Sequence[Row], machine: dict[str, dict[str, float]]) -> str:
    """Everything that is printed on a screen."""
    texts = {table.title: table.text(rows) for table in TABLES.values() if table.screen}
    blocks = [f"## {title}\n\n{text}" for title, text in texts.items() if text]
    return "\n\n".join([*blocks, *(f"This machine, {rates_of(dtype, rates)}." for dtype, rates in machine.items())])


def rates_of(dtype: str, rates: dict[str, float]) -> str:
    """What the machine can do, in words."""
    found = f"{dtype}: {number(rates['flops_per_s'] / 1e12)} TFLOP/s in large products"
    return found + f", {number(rates['bytes_per_s'] / 1e9)} GB/s in large copies"


def source_of(bench: dict[str, Any]) -> str:
    """One line under a table: the machine, its rates, and the versions that matter to a time."""
    device, versions = bench["device"], bench["versions"]
    rates = "; ".join(rates_of(dtype, rates) for dtype, rates in bench.get("machine", {}).items())
    machine = f"{device['name']}, {device['threads']} threads" + (f": {rates}" if rates else "")
    matter = ("python", "torch", "transformers", "performer-pytorch", "reformer-pytorch")
    return f"*{machine}. {', '.join(f'{name} {versions[name]}' for name in matter if versions.get(name))}.*"


def refresh(text: str, benches: Path) -> tuple[str, list[str]]:
    """The document with its tables made anew, and the names of benches that are not there. Raises KeyError for a
    table that does not exist."""
    missing: list[str] = []

    def made(match: re.Match[str]) -> str:
        begin, kind, name, end = match.groups()
        table, path = TABLES[kind], benches / name / "bench.json"
        if not path.is_file():
            missing.append(name)
            return match.group(0)
        bench = json.loads(path.read_text(encoding="utf-8"))
        return f"{begin}{table.text(bench['rows'])}\n\n{source_of(bench)}\n{end}"

    return MARK.sub(made, text), missing


def main(arguments: list[str]) -> int:
    """Refreshes each document named. Returns 1 where none of its benches is there."""
    absent: list[str] = []
    marks = 0
    for name in arguments:
        path = Path(name)
        text, missing = refresh(path.read_text(encoding="utf-8"), BENCHES)
        path.write_text(text, encoding="utf-8")
        absent, marks = absent + missing, marks + len(MARK.findall(text))
    for name in dict.fromkeys(absent):
        print(f"{BENCHES / name}: no such bench, its tables stay as they are.", file=sys.stderr)
    return 1 if len(absent) == marks else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

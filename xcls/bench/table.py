"""The results as Markdown, on the screen and in documents.

    python -m xcls.bench.table docs/mechanisms.md

The comment `<!-- table: rivals of attention -->` in a document means: the table `rivals` from
multirun/bench/attention/bench.json. The text from there to `<!-- end -->` is replaced. If bench.json does not exist,
its tables stay as they are.
"""

from __future__ import annotations

import fnmatch
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
Line = dict[str, str]  # name of a column -> text of the cell


def number(value: float | None) -> str:
    """Three significant digits; an exponent only below 0.001; a dash for None."""
    if value is None:
        return NONE
    if abs(value) < 1e-9:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def shown(row: Row, key: str) -> str:
    """A value of a row: three digits, with its range in brackets if it has one; shares in percent; text unchanged."""
    value, stem = row.get(key), key.removesuffix("_ms")
    if value in (None, ""):
        return NONE
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}" if value < 10**6 else f"{value:.3g}"
    if key.endswith(("share", "share_of_peak", "mfu")):
        return f"{value:.1%}"
    ends = [row.get(key.replace(stem, f"{stem}_{end}", 1)) for end in ("min", "max")]
    limits = [number(end) for end in ends if end is not None]
    return (number(value) if value < 1e6 else f"{value:.3g}") + (f" ({'…'.join(limits)})" if limits else "")


def markdown(lines: Sequence[Line]) -> str:
    """A Markdown table with aligned columns; columns that are empty in every line are left out."""
    names = dict.fromkeys(name for line in lines for name in line)
    columns = [[name, *(line.get(name, NONE) for line in lines)] for name in names]
    columns = [[cell.replace("|", "\\|") for cell in column] for column in columns if set(column[1:]) != {NONE}]
    widths = [max(map(len, column)) for column in columns]
    columns = [
        [cell.rjust(width) if place else cell.ljust(width) for cell in column]
        for place, (column, width) in enumerate(zip(columns, widths))
    ]
    head, *others = (f"| {' | '.join(cells)} |" for cells in zip(*columns))
    rule = "|" + "|".join("-" * (width + 1) + (":" if place else "-") for place, width in enumerate(widths)) + "|"
    return "\n".join([head, rule, *others])


WHERE = "mechanism part position seq_len batch dtype"
COSTS = (
    f"{WHERE} inference_ms forward_ms training_ms training_ms_vs_* training_MiB training_MiB_vs_*"
    " rival rounds compile_s path cause"
)
WORK = (
    f"{WHERE} training_flops training_flops_counted training_bytes training_share_of_peak training_bound_ms"
    " training_ms training_times_bound"
)
ERRORS = (
    f"{WHERE} error_mean error_std error_by_layer error_of_mean error_reference error_draws trained_attention cause"
)
GROWTH = (
    "mechanism position dtype seq_len width num_layers batch parameters tokens_per_s training_ms training_MiB cause"
)
TRAININGS = (
    "stage contender position dtype group_by_length tokens_per_s vs_transformers padding_share step_ms memory_MiB"
    " parameters flops_per_token share_of_peak mfu rounds cause"
)


@dataclass(frozen=True)
class Table:
    """One table. `wanted`: is a row in it? `columns`: of results.csv, with `*`; `title`: for the screen."""

    wanted: Callable[[Row], Any]
    columns: str
    title: str = ""

    def lines(self, rows: Sequence[Row]) -> list[Line]:
        """A line for each of `rows`."""
        there = dict.fromkeys(key for row in rows for key in row)
        keys = [key for pattern in self.columns.split() for key in fnmatch.filter(there, pattern)]
        return [{key: shown(row, key) for key in keys} for row in rows]

    def text(self, rows: Sequence[Row]) -> str:
        """The table of the wanted rows; '' if there are none."""
        own = [row for row in rows if self.wanted(row)]
        return markdown(self.lines(own)) if own else ""


class MemoryByPosition(Table):
    """Peak memory of a training step and (inference): a line per mechanism, a column per position encoding."""

    def lines(self, rows: Sequence[Row]) -> list[Line]:
        """A line for each mechanism."""
        lines: dict[str, Line] = {}
        for row in rows:
            trained = row["cause"] if row["status"] == FAILED else number(row.get("training_MiB"))
            line = lines.setdefault(row["mechanism"], {"mechanism": row["mechanism"]})
            line[row["position"]] = f"{trained} ({number(row.get('inference_MiB'))})"
        return list(lines.values())


def _has(key: str, *values: str) -> Callable[[Row], Any]:
    """A test for rows: is row[key] one of `values`? Without `values`: is there a value?"""
    return lambda row: row.get(key) in values if values else row.get(key)


TABLES: dict[str, Table] = {
    "costs": Table(_has("part", "module", "core", "step"), COSTS, "Time and memory"),
    "fused": Table(_has("part", "module", "core"), COSTS),
    "rivals": Table(_has("rival"), COSTS),
    "steps": Table(_has("part", "step"), COSTS),
    "places": MemoryByPosition(_has("part", "step"), ""),
    "work": Table(_has("training_bound_ms"), WORK, "Work of one training call"),
    "errors": Table(lambda row: row.get("part") == "core" and "error_mean" in row, ERRORS, "Error on random q, k, v"),
    "trained": Table(_has("part", "trained"), ERRORS, "Error on q, k, v of a trained run"),
    "trainings": Table(_has("stage"), TRAININGS, "Training, data loading included"),
    **{axis: Table(_has("axis", axis), GROWTH, f"Against the {axis}") for axis in AXES},
}


def report(rows: Sequence[Row], machine: dict[str, dict[str, float]]) -> str:
    """The text for the screen: all tables that have a title."""
    texts = {table.title: table.text(rows) for table in TABLES.values() if table.title}
    blocks = [f"## {title}\n\n{text}" for title, text in texts.items() if text]
    return "\n\n".join([*blocks, *(f"This machine, {rates_of(dtype, rates)}." for dtype, rates in machine.items())])


def rates_of(dtype: str, rates: dict[str, float]) -> str:
    """The measured rates of the machine, as text."""
    found = f"{dtype}: {number(rates['flops_per_s'] / 1e12)} TFLOP/s in large products"
    return found + f", {number(rates['bytes_per_s'] / 1e9)} GB/s in large copies"


def source_of(bench: dict[str, Any]) -> str:
    """One line under a table: the machine, its rates, and the versions that influence times."""
    device, versions = bench["device"], bench["versions"]
    rates = "; ".join(rates_of(dtype, rates) for dtype, rates in bench.get("machine", {}).items())
    machine = f"{device['name']}, {device['threads']} threads" + (f": {rates}" if rates else "")
    matter = ("python", "torch", "transformers", "performer-pytorch", "reformer-pytorch")
    return f"*{machine}. {', '.join(f'{name} {versions[name]}' for name in matter if versions.get(name))}.*"


def refresh(text: str, benches: Path) -> tuple[str, list[str]]:
    """The document with new tables, and the names of missing benches. Raises KeyError for an unknown table."""
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
    """Renews the tables of the given documents. Returns 1 if none of their benches exists."""
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

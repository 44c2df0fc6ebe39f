"""The results as Markdown, to be read on a screen and pasted into a document."""

from __future__ import annotations

from typing import Any, Callable, Sequence

from xcls.bench.results import FAILED, Row

TITLES = {
    "module": "One attention module, projections included",
    "core": "Attention alone, without projections",
    "step": "Training step of a classifier (forward, backward, optimizer)",
    "trained": "Error on the queries and keys of a trained run",
}
Column = tuple[str, Callable[[Row], str]]


def number(value: Any, digits: int = 3) -> str:
    """Three significant digits, without exponent, a dash for nothing."""
    if value is None or value == "":
        return "–"
    value = float(value)
    if value == 0 or abs(value) < 1e-9:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def _value(key: str, factor: float = 1.0) -> Callable[[Row], str]:
    return lambda row: number(None if row.get(key) is None else row[key] * factor)


def _spread(row: Row) -> str:
    if row.get("training_ms") is None:
        return "–"
    return f"{number(row['training_ms'])} ({number(row['training_min_ms'])}…{number(row['training_max_ms'])})"


def _error(row: Row) -> str:
    if row.get("error_mean") is None:
        return "–"
    return f"{number(row['error_mean'])} ± {number(row['error_std'])}"


def markdown(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A table with aligned columns; those that are empty in every row are left out."""
    cells = [[name for name, _ in columns], *([show(row) for _, show in columns] for row in rows)]
    kept = [place for place in range(len(columns)) if any(line[place] != "–" for line in cells[1:])]
    cells = [[line[place].replace("|", "\\|") for place in kept] for line in cells]
    widths = [max(len(line[place]) for line in cells) for place in range(len(kept))]

    def joined(line: list[str]) -> str:
        words = [
            word.rjust(width) if place else word.ljust(width) for place, (word, width) in enumerate(zip(line, widths))
        ]
        return f"| {' | '.join(words)} |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if p == 0 else ":") for p, w in enumerate(widths)) + "|"
    return "\n".join([joined(cells[0]), rule, *map(joined, cells[1:])])


def _text(key: str) -> Callable[[Row], str]:
    return lambda row: "–" if row.get(key) in (None, "") else str(row[key])


def _where(several: bool) -> list[Column]:
    """The columns that name a row."""
    position = [("position", _text("position"))] if several else []
    sizes = [("tokens", _text("seq_len")), ("batch", _text("batch")), ("dtype", _text("dtype"))]
    return [("mechanism", _text("mechanism")), *position, *sizes]


def cost_columns(references: Sequence[str]) -> list[Column]:
    """Time and memory, and their ratios."""
    found: list[Column] = [("inference, ms", _value("inference_ms")), ("forward, ms", _value("forward_ms"))]
    found += [("training, ms (min…max)", _spread)]
    found += [("of it launching, ms", _value("host_ms")), ("of the device, ms", _value("device_ms"))]
    found += [(f"training × {name}", _value(f"training_ms_vs_{name}")) for name in references]
    found += [("× rival", _value("training_ms_vs_rival")), ("memory, MiB", _value("training_MiB"))]
    found += [(f"memory × {name}", _value(f"training_MiB_vs_{name}")) for name in references]
    found += [("memory × rival", _value("training_MiB_vs_rival")), ("rival", _text("rival"))]
    return [*found, ("rounds", _text("rounds")), ("compile, s", _value("compile_s"))]


WORK_COLUMNS: list[Column] = [
    ("GFLOP by formula", _value("training_flops", 1e-9)),
    ("GFLOP counted", _value("training_flops_counted", 1e-9)),
    ("MiB moved by formula", _value("training_bytes", 2**-20)),
    ("TFLOP/s", _value("training_tflops_per_s")),
    ("share of peak", _value("training_share_of_peak")),
    ("bound, ms", _value("training_bound_ms")),
    ("× bound", _value("training_times_bound")),
]
ERROR_COLUMNS: list[Column] = [
    ("relative error", _error),
    ("of the mean of values", _value("error_of_mean")),
    ("draws or layers", _text("error_draws")),
    ("against", _text("error_reference")),
    ("by layer", _text("error_by_layer")),
    ("run's attention", _text("trained_attention")),
    ("left out", _text("cause")),
]


def _crossover_columns(several: bool) -> list[Column]:
    """Who overtakes whom, where."""
    names = [column for column in _where(several) if column[0] in ("mechanism", "position", "dtype")]
    return [*names, ("part", _text("part")), ("against", _text("reference")), ("quicker from (tokens)", _from)]


def _from(row: Row) -> str:
    if row["from"] is None:
        return f"not up to {row['longest']}"
    return "every length" if row["from"] == 0 else f"about {number(row['from'])}"


def report(
    rows: Sequence[Row], crossings: Sequence[Row], references: Sequence[str], machine: dict[str, dict[str, float]]
) -> str:
    """All tables: cost and work by part, error, crossovers, failures."""
    blocks = []
    several = len({row["position"] for row in rows}) > 1
    for part in ("module", "core", "step"):
        group = [row for row in rows if row["part"] == part and (row.get("training_ms") or row.get("training_MiB"))]
        if group:
            blocks.append(f"## {TITLES[part]}\n\n" + markdown([*_where(several), *cost_columns(references)], group))
        group = [row for row in group if row.get("training_flops_counted") or row.get("training_flops")]
        if group:
            blocks.append("### Work of one training call\n\n" + markdown([*_where(several), *WORK_COLUMNS], group))
    for dtype, rates in machine.items():
        blocks.append(
            f"This machine, {dtype}: {number(rates['flops_per_s'] / 1e12)} TFLOP/s in large matrix products, "
            f"{number(rates['bytes_per_s'] / 1e9)} GB/s in large copies."
        )
    group = [row for row in rows if row.get("error_mean") is not None and row["part"] != "trained"]
    if group:
        blocks.append(
            "## Error on random queries and keys\n\n" + markdown([*_where(several), *ERROR_COLUMNS[:4]], group)
        )
    group = [row for row in rows if row["part"] == "trained"]
    if group:
        blocks.append(f"## {TITLES['trained']}\n\n" + markdown([*_where(True), *ERROR_COLUMNS], group))
    if crossings:
        blocks.append("## Crossover of training time\n\n" + markdown(_crossover_columns(several), crossings))
    lost = [row for row in rows if row["status"] == FAILED and row["part"] != "trained"]
    if lost:
        columns = [
            ("failed", _text("mechanism")),
            ("part", _text("part")),
            *_where(True)[1:],
            ("cause", _text("cause")),
        ]
        blocks.append("## Failed\n\n" + markdown(columns, lost))
    return "\n\n".join(blocks) + "\n"

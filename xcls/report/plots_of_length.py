"""Cost against sequence length, and from which length on a mechanism is cheaper: from the runs, and from mode=bench."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from xcls.report.bench import TITLE, UNITS, Crossover, caption
from xcls.report.claims import find_reference
from xcls.report.drawing import MOST, WIDTH, Looks, Plot, canvas, counted, key, plain_logs, png, short
from xcls.report.groups import DatasetResults, Group
from xcls.report.load import Bench
from xcls.report.measures import MEASURES, number

Line = dict[float, list[float]]  # length to the costs measured at it


@dataclass
class Series:
    """One line of a plot, and at the same lengths that of the reference which equals it in everything but the mechanism."""

    name: str
    line: Line = field(default_factory=dict)
    against: str = ""  # the reference's name; '' where there is none
    base: Line = field(default_factory=dict)

    def told(self, unit: str) -> str:
        """The line in words: its shortest and its longest length."""
        ends = min(self.line), max(self.line)
        told = [f"{median(self.line[length]):.3g} {unit} at {length:,.0f}" for length in ends]
        return f"{self.name} {' and '.join(told)} tokens"


def length_plot(board: DatasetResults, reference: str, looks: Looks) -> Plot | None:
    """Time per epoch of groups that are alike but for their length; None where none was run at two lengths."""
    found: dict[str, Series] = {}
    for group in board.groups:
        values = _times(group)
        if values:
            series = found.setdefault(_family(group), Series(_without_length(group)))
            series.line.setdefault(float(group.record.seq_len), []).extend(values)
            other, _ = find_reference(group, board, reference)
            if other is not None and other is not group and _times(other):
                series.against, series.base[float(group.record.seq_len)] = _without_length(other), _times(other)
    shown = sorted((series for series in found.values() if len(series.line) > 1), key=lambda series: series.name)
    if not shown:
        return None
    references = {_without_length(group) for group in board.of_mechanism.get(reference, [])}
    words = f"Time per epoch against sequence length on {board.name}. {crossings(shown, reference, references)}".strip()
    title = counted(f"{short(board.name)}: cost against length", len(shown))
    image = _image([("time per epoch, s", shown)], title, looks)
    numbers = "; ".join(series.told("s") for series in shown[:MOST]) + "."
    return Plot(f"cost_vs_length-{board.slug}", "Cost against length", words, numbers, image, board.slug)


def step_plot(one: Crossover, looks: Looks) -> Plot:
    """Time and memory of a training step, as mode=bench measured them in turns; the points are the fastest and slowest repeat."""
    parts = []
    for measure, unit in UNITS.items():
        ends = ("training_min_ms", measure, "training_max_ms") if measure == "training_ms" else (measure,)
        shown = []
        for name in one.mechanisms:
            timed = [length for length in one.lengths if one.cost(name, length, measure)]
            line = {float(n): [cost for end in ends if (cost := one.cost(name, n, end))] for n in timed}
            shown += [Series(name, line)] if line else []
        parts.append((f"{unit} per step", shown))
    numbers = " ".join(f"{unit}: {'; '.join(series.told('') for series in shown[:MOST])}." for unit, shown in parts)
    words = caption(one).split(" In brackets")[0]
    return Plot(f"step-{_file_name(one.bench)}", TITLE, words, numbers, _image(parts, "", looks))


def bench_plots(bench: Bench, reference: str, looks: Looks) -> list[Plot]:
    """Time of forward and backward of one layer, and peak memory, per sequence: a plot per dtype with two lengths or more."""
    ours = [row for row in bench.rows if row.get("origin") == "xcls" and row.get("part") == "module"]
    rows = [row for row in ours if _cost(row, "training_ms")]
    dtypes = sorted({str(row.get("dtype")) for row in rows}) if bench.data.get("status") != "failed" else []
    device, plots = bench.data.get("device"), []
    machine = (device.get("name") if isinstance(device, dict) else None) or "a device"
    for dtype in dtypes:
        own = [row for row in rows if str(row.get("dtype")) == dtype]
        if len({row["seq_len"] for row in own}) > 1:
            parts = [(f"{unit} per sequence", _of_bench(own, measure, reference)) for measure, unit in UNITS.items()]
            references = {series.against for series in parts[0][1]}
            words = f"Forward and backward of one attention layer in {dtype}, per sequence, measured in turns on {machine}. "
            words += crossings(parts[0][1], reference, references)
            numbers = "; ".join(series.told("ms") for series in parts[0][1][:MOST]) + "."
            title = f"Cost against length in {dtype}, mode=bench ({short(bench.folder.name)})"
            name = f"bench-{_file_name(bench)}" + (f"-{dtype}" if len(dtypes) > 1 else "")
            plots.append(Plot(name, title, words.strip(), numbers, _image(parts, dtype, looks)))
    return plots


def _of_bench(rows: Sequence[dict[str, Any]], measure: str, reference: str) -> list[Series]:
    """A series per mechanism and position; the reference of each is the one with its own position."""
    several = len({str(row.get("position")) for row in rows}) > 1
    found: dict[tuple[str, str], Series] = {}
    for row in rows:
        cost, mechanism, position = _cost(row, measure), str(row.get("mechanism")), str(row.get("position"))
        if cost is not None:
            series = found.setdefault((mechanism, position), Series(mechanism + (f" {position}" if several else "")))
            series.line.setdefault(float(row["seq_len"]), []).append(cost)
    for (_, position), series in found.items():
        other = found.get((reference, position))
        if other is not None and other is not series:
            series.against, series.base = other.name, other.line
    return list(found.values())


def crossover(one: Line, other: Line) -> float | None:
    """From which length on `one` is cheaper than `other` for good: 0 from the start, None where it is not at the end.

    Between two lengths it is interpolated on logarithmic scales.
    """
    lengths = sorted(set(one) & set(other))
    ratios = [median(one[length]) / median(other[length]) for length in lengths]
    if len(lengths) < 2 or ratios[-1] >= 1.0:
        return None
    for place in range(len(lengths) - 2, -1, -1):
        high, low = ratios[place], ratios[place + 1]
        if high >= 1.0:
            share = math.log(high) / (math.log(high) - math.log(low))
            return lengths[place] * (lengths[place + 1] / lengths[place]) ** share
    return 0.0


def crossings(shown: Sequence[Series], reference: str, references: set[str]) -> str:
    """In words from which length on each line is cheaper than its own reference for good."""
    told: dict[str, list[str]] = {}
    alone = []
    for series in shown[:MOST]:
        if series.name in references:
            continue
        if len(set(series.line) & set(series.base)) < 2:
            alone.append(series.name)
            continue
        meets = crossover(series.line, series.base)
        end = f"from about {meets:,.0f} tokens on" if meets else "at every length measured"
        end = "not at the longest" if meets is None else end
        told.setdefault(series.against, []).append(f"{series.name}: {end}")
    words = [f"Cheaper than {against} for good: {'; '.join(items)}." for against, items in told.items()]
    words += (
        [f"Without a {reference} alike at two of their lengths, so without a crossing: {', '.join(alone)}."]
        if alone
        else []
    )
    return " ".join(words)


def _image(parts: Sequence[tuple[str, Sequence[Series]]], title: str, looks: Looks) -> bytes:
    """A panel for each (unit, lines), log-log, one legend."""
    figure, panels = canvas((WIDTH, 1.7 + 2.4 * len(parts)), down=len(parts))
    for axes, (unit, shown) in zip(panels, parts):
        _lines(axes, shown[:MOST], looks)
        axes.set_ylabel(unit)
    panels[-1].set_xlabel("sequence length, tokens")
    panels[0].set_title(title)
    key(panels[0])
    return png(figure)


def _lines(axes: Axes, shown: Sequence[Series], looks: Looks) -> None:
    """Each line through its medians, and its single values where there are several."""
    lengths = sorted({length for series in shown for length in series.line})
    for series in shown:
        look, points = looks.of(series.name), sorted(series.line.items())
        middles = [median(values) for _, values in points]
        axes.plot([length for length, _ in points], middles, **look, label=short(series.name))
        for length, values in points:
            if len(values) > 1:
                axes.plot(
                    [length] * len(values),
                    values,
                    "o",
                    color=look["color"],
                    markersize=4,
                    markerfacecolor="none",
                    zorder=4,
                )
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(lengths, [f"{length:,.0f}" for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    plain_logs(axes.yaxis)


def _times(group: Group) -> list[float]:
    values = [MEASURES["time_per_epoch"].of(run.record) for run in group.runs]
    return [value for value in values if value is not None]


def _cost(row: dict[str, Any], measure: str) -> float | None:
    """A cost of one sequence: the batch shrinks as the length grows. None where it was not measured."""
    cost, batch, length = (number(row.get(name)) for name in (measure, "batch", "seq_len"))
    return cost / batch if cost and batch and length and min(cost, batch, length) > 0 else None


def _file_name(bench: Bench) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", bench.folder.name)


def _family(group: Group) -> str:
    """Equal for groups that differ in nothing but the length and, with it, the micro-batch."""
    device = {name: value for name, value in group.device.items() if name not in ("micro_batch", "micro_tokens")}
    own = {
        name: value
        for name, value in group.key.items()
        if not name.endswith("seq_len") and name != "pretrained.micro_batch"
    }
    return json.dumps([own, device], sort_keys=True, default=str)


def _without_length(group: Group) -> str:
    """The group's label without its length."""
    return " ".join(word for word in group.label.split(" ") if word != f"n{group.record.seq_len}")

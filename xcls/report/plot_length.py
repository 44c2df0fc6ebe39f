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

from xcls.report.aggregate import Board, Group
from xcls.report.collect import Bench
from xcls.report.measures import MEASURES, number
from xcls.report.plot_style import (
    BEHIND,
    MOST,
    WIDTH,
    Looks,
    Plot,
    Style,
    canvas,
    counted,
    key,
    name_ends,
    plain_logs,
    png,
    short,
)
from xcls.report.verdict import find_reference

Line = dict[float, list[float]]  # length to the costs measured at it
OURS = "xcls"


@dataclass
class Series:
    """One line of a plot, and at the same lengths the reference that equals it in everything but the mechanism."""

    name: str
    is_reference: bool
    line: Line = field(default_factory=dict)
    against: str = ""  # the reference's name; '' where there is none
    base: Line = field(default_factory=dict)


def length_plot(board: Board, reference: str, looks: Looks) -> Plot | None:
    """Time per epoch of groups that are alike but for their length; None where none was run at two lengths."""
    found: dict[str, Series] = {}
    for group in board.groups:
        values = _times(group)
        if values:
            series = found.setdefault(_family(group), Series(_without_length(group), group.attention == reference))
            length = float(group.record.seq_len)
            series.line.setdefault(length, []).extend(values)
            other, _ = find_reference(group, board, reference)
            if other is not None and other is not group and _times(other):
                series.against = _without_length(other)
                series.base[length] = _times(other)
    shown = sorted((series for series in found.values() if len(series.line) > 1), key=lambda series: series.name)
    if not shown:
        return None
    figure, (axes,) = canvas()
    ends, crossings = _lines(axes, shown, reference, looks)
    axes.set_ylabel("time per epoch, s")
    axes.set_title(counted(f"{short(board.name)}: cost against length", len(shown)))
    key(axes)  # before the names: it takes room from the axes, and names are placed by the room there is
    name_ends(axes, ends)
    words = f"Time per epoch against sequence length on {board.name}. {crossings}".strip()
    return Plot(
        f"cost_vs_length-{board.slug}", "Cost against length", words, _told(shown, "s"), png(figure), board.slug
    )


def _times(group: Group) -> list[float]:
    values = [MEASURES["time_per_epoch"].of(run.record) for run in group.runs]
    return [value for value in values if value is not None]


def bench_plot(bench: Bench, reference: str, looks: Looks) -> Plot | None:
    """Time of forward and backward, and peak memory, per sequence against length as mode=bench measured them."""
    rows = [
        row
        for row in bench.rows
        if row.get("origin") == OURS and row.get("part") == "module" and _cost(row, "training_ms")
    ]
    if len({row.get("seq_len") for row in rows}) < 2:
        return None
    dtypes = sorted({str(row.get("dtype")) for row in rows})
    figure, panels = canvas((WIDTH * max(1.0, 0.8 * len(dtypes)), 6.6), across=len(dtypes), down=2)
    words, told, ends = [], [], []
    for number_, (measure, unit) in enumerate((("training_ms", "ms"), ("training_MiB", "MiB"))):
        for column, dtype in enumerate(dtypes):
            axes = panels[number_ * len(dtypes) + column]
            shown = _of_bench([row for row in rows if str(row.get("dtype")) == dtype], measure, reference, rows)
            ends_, crossings = _lines(axes, shown, reference, looks) if shown else ([], "")
            ends.append((axes, ends_))
            axes.set_title(f"{'time' if unit == 'ms' else 'peak memory'}, {dtype}")
            if column == 0:
                axes.set_ylabel(f"{unit} per sequence")
            if measure == "training_ms":
                words.append(f"{dtype}: {crossings}" if crossings else "")
                told.append(f"{dtype}: {_told(shown, 'ms')}")
    key(panels[0], columns=3)
    for axes, ends_ in ends:
        name_ends(axes, ends_)
    device = bench.data.get("device")
    machine = device.get("name") if isinstance(device, dict) else None
    text = f"Forward and backward of one attention layer, per sequence, measured in turns on {machine or 'a device'}. "
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", bench.folder.name)
    title = f"Cost against length, mode=bench ({short(bench.folder.name)})"
    return Plot(f"bench-{name}", title, text + " ".join(filter(None, words)), " ".join(told), png(figure))


def _of_bench(
    rows: Sequence[dict[str, Any]], measure: str, reference: str, every: Sequence[dict[str, Any]]
) -> list[Series]:
    """A series per mechanism and position; the reference of each is the one with its own position."""
    several = len({str(row.get("position")) for row in every}) > 1
    found: dict[tuple[str, str], Series] = {}
    for row in rows:
        cost, mechanism, position = _cost(row, measure), str(row.get("mechanism")), str(row.get("position"))
        if cost is not None:
            name = mechanism + (f" {position}" if several else "")
            series = found.setdefault((mechanism, position), Series(name, mechanism == reference))
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


def _lines(
    axes: Axes, shown: Sequence[Series], reference: str, looks: Looks
) -> tuple[list[tuple[float, float, str, str]], str]:
    """Draws the lines, log-log, and marks where each crosses its own reference for good.

    Gives the ends of the lines, for their names, and the crossings in words.
    """
    ends, told, alone = [], {}, []
    crossed = 0
    for series in shown[:MOST]:
        look = looks.of(series.name)
        ends.append(_draw(axes, series, look))
        if series.is_reference:
            continue
        if len(set(series.line) & set(series.base)) < 2:
            alone.append(series.name)
            continue
        meets = crossover(series.line, series.base)
        told.setdefault(series.against, []).append(f"{series.name}: {_crossing(meets)}")
        if meets:
            axes.axvline(meets, color=look.colour, linestyle=look.line, linewidth=0.9, alpha=0.6)
            place = (meets, 0.95 - 0.07 * (crossed % 6))
            axes.annotate(
                f"{short(series.name, 24)} ≈ {meets:,.0f}", place, xycoords=("data", "axes fraction"), xytext=(3, 2),
                textcoords="offset points", fontsize=8, color=look.colour, bbox=BEHIND, zorder=7,
            )  # fmt: skip
            crossed += 1
    lengths = sorted({length for series in shown for length in series.line})
    axes.set(xscale="log", yscale="log", xlabel="sequence length, tokens")
    axes.set_xticks(lengths, [f"{length:,.0f}" for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    plain_logs(axes.yaxis)
    axes.set_xlim(lengths[0] / 1.15, lengths[-1] * (lengths[-1] / lengths[0]) ** 0.45)
    words = [f"Cheaper than {against} for good: {'; '.join(items)}." for against, items in told.items()]
    if alone:
        words.append(f"Without a {reference} alike at two of their lengths, so without a crossing: {', '.join(alone)}.")
    return ends, " ".join(words)


def _draw(axes: Axes, series: Series, look: Style) -> tuple[float, float, str, str]:
    """Draws one line through its medians, and its single values where there are several; gives where it ends."""
    lengths = sorted(series.line)
    middles = [median(series.line[length]) for length in lengths]
    axes.plot(
        lengths, middles, marker=look.marker, color=look.colour, linestyle=look.line, linewidth=1.3, markersize=5.5,
        label=short(series.name),
    )  # fmt: skip
    for length in lengths:
        values = series.line[length]
        if len(values) > 1:
            axes.scatter([length] * len(values), values, s=14, facecolors="none", edgecolors=look.colour, zorder=4)
    return lengths[-1], middles[-1], series.name, look.colour


def _crossing(meets: float | None) -> str:
    if meets is None:
        return "not at the longest"
    return f"from about {meets:,.0f} tokens on" if meets else "at every length measured"


def _told(shown: Sequence[Series], unit: str) -> str:
    """The lines in words: each mechanism at its shortest and its longest length."""
    told = []
    for series in shown[:MOST]:
        first, last = min(series.line), max(series.line)
        told.append(
            f"{series.name} {median(series.line[first]):.3g} {unit} at {first:,.0f} and "
            f"{median(series.line[last]):.3g} {unit} at {last:,.0f} tokens"
        )
    return "; ".join(told) + "."


def _cost(row: dict[str, Any], measure: str) -> float | None:
    """A cost of one sequence: the batch shrinks as the length grows. None where it was not measured."""
    cost, batch, length = number(row.get(measure)), number(row.get("batch")), number(row.get("seq_len"))
    if cost is None or cost <= 0 or not batch or batch <= 0 or length is None or length <= 0:
        return None
    return cost / batch


def _family(group: Group) -> str:
    """Equal for groups that differ in nothing but the length and, with it, the micro-batch."""
    device = {name: value for name, value in group.device.items() if name not in ("micro_batch", "micro_tokens")}
    settings = {
        name: value
        for name, value in group.key.items()
        if not name.endswith("seq_len") and name != "pretrained.micro_batch"
    }
    return json.dumps([settings, device], sort_keys=True, default=str)


def _without_length(group: Group) -> str:
    """The group's label without its length."""
    return " ".join(word for word in group.label.split(" ") if word != f"n{group.record.seq_len}")

"""Cost against sequence length, and from which length on a mechanism is cheaper: from the runs, and from mode=bench."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from xcls.report.aggregate import Board, Group
from xcls.report.collect import Bench
from xcls.report.measures import MEASURES, number
from xcls.report.plot_style import MOST, WIDTH, Looks, Plot, canvas, counted, key, name_ends, plain_logs, png, short

Line = dict[float, list[float]]  # length to the costs measured at it
OURS = "xcls"


def length_plot(board: Board, reference: str, looks: Looks) -> Plot | None:
    """Time per epoch of groups that are alike but for their length; None where none was run at two lengths."""
    lines: dict[str, tuple[str, Line]] = {}
    for group in board.groups:
        values = [
            value for value in (MEASURES["time_per_epoch"].of(run.record) for run in group.runs) if value is not None
        ]
        if values:
            line = lines.setdefault(_family(group), (_without_length(group), {}))[1]
            line.setdefault(float(group.record.seq_len), []).extend(values)
    several = {family: item for family, item in lines.items() if len(item[1]) > 1}
    if not several:
        return None
    shown = [
        (name, line, name.split(" ")[0] == reference)
        for _, (name, line) in sorted(several.items(), key=lambda item: item[1][0])
    ]
    figure, (axes,) = canvas()
    crossings = _lines(axes, shown, looks)
    axes.set_ylabel("time per epoch, s")
    axes.set_title(counted(f"{short(board.name)}: cost against length", len(shown)))
    key(axes)
    words = f"Time per epoch against sequence length on {board.name}. {crossings}".strip()
    return Plot(
        f"cost_vs_length-{board.slug}", "Cost against length", words, _told(shown, "s"), png(figure), board.slug
    )


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
    positions = {str(row.get("position")) for row in rows}
    words, told = [], []
    for number_, (measure, unit) in enumerate((("training_ms", "ms"), ("training_MiB", "MiB"))):
        for column, dtype in enumerate(dtypes):
            axes = panels[number_ * len(dtypes) + column]
            lines: dict[str, Line] = {}
            for row in rows:
                cost = _cost(row, measure)
                if str(row.get("dtype")) == dtype and cost is not None:
                    name = str(row.get("mechanism")) + (f" {row.get('position')}" if len(positions) > 1 else "")
                    lines.setdefault(name, {}).setdefault(float(row["seq_len"]), []).append(cost)
            shown = [(name, line, name.split(" ")[0] == reference) for name, line in lines.items()]
            crossings = _lines(axes, shown, looks) if shown else ""
            axes.set_title(f"{'time' if unit == 'ms' else 'peak memory'}, {dtype}")
            if column == 0:
                axes.set_ylabel(f"{unit} per sequence")
            if measure == "training_ms":
                words.append(f"{dtype}: {crossings}" if crossings else "")
                told.append(f"{dtype}: {_told(shown, 'ms')}")
    key(panels[0], columns=3)
    device = bench.data.get("device")
    machine = device.get("name") if isinstance(device, dict) else None
    text = f"Forward and backward of one attention layer, per sequence, measured in turns on {machine or 'a device'}. "
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", bench.folder.name)
    title = f"Cost against length, mode=bench ({short(bench.folder.name)})"
    return Plot(f"bench-{name}", title, text + " ".join(filter(None, words)), " ".join(told), png(figure))


def crossover(one: Line, other: Line) -> float | None:
    """From which length on `one` is cheaper than `other` for good: 0 from the start, None where it is not at the end.

    Between two lengths it is interpolated on logarithmic scales.
    """
    lengths = sorted(set(one) & set(other))
    ratios = [_mean(one[length]) / _mean(other[length]) for length in lengths]
    if len(lengths) < 2 or ratios[-1] >= 1.0:
        return None
    for place in range(len(lengths) - 2, -1, -1):
        high, low = ratios[place], ratios[place + 1]
        if high >= 1.0:
            share = math.log(high) / (math.log(high) - math.log(low))
            return lengths[place] * (lengths[place + 1] / lengths[place]) ** share
    return 0.0


def _lines(axes: Axes, shown: Sequence[tuple[str, Line, bool]], looks: Looks) -> str:
    """Draws the lines, log-log, and marks where each crosses the reference for good; gives the crossings in words."""
    ends, told = [], []
    theirs = next((line for _, line, is_reference in shown if is_reference), None)
    for name, line, is_reference in shown[:MOST]:
        look, lengths = looks.of(name), sorted(line)
        means = [_mean(line[length]) for length in lengths]
        axes.plot(
            lengths,
            means,
            marker=look.marker,
            color=look.colour,
            linestyle=look.line,
            linewidth=1.3,
            markersize=5.5,
            label=short(name),
        )
        for length in lengths:
            if len(line[length]) > 1:
                axes.scatter(
                    [length] * len(line[length]),
                    line[length],
                    s=14,
                    facecolors="none",
                    edgecolors=look.colour,
                    zorder=4,
                )
        ends.append((lengths[-1], means[-1], name, look.colour))
        meets = None if theirs is None or is_reference else crossover(line, theirs)
        if meets:
            axes.axvline(meets, color=look.colour, linestyle=":", linewidth=1.2)
            place = (meets, 0.93 - 0.07 * (len(told) % 6))
            axes.annotate(
                f"≈ {meets:,.0f}", place, xycoords=("data", "axes fraction"), xytext=(3, 2),
                textcoords="offset points", fontsize=8, color=look.colour,
            )  # fmt: skip
        if theirs is not None and not is_reference:
            told.append(f"{name}: {_crossing(meets)}")
    axes.set(xscale="log", yscale="log", xlabel="sequence length, tokens")
    lengths = sorted({length for _, line, _ in shown for length in line})
    axes.set_xticks(lengths, [f"{length:,.0f}" for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    plain_logs(axes.yaxis)
    axes.set_xlim(lengths[0] / 1.15, lengths[-1] * (lengths[-1] / lengths[0]) ** 0.45)
    name_ends(axes, ends)
    reference = next((name for name, _, is_reference in shown if is_reference), "")
    return f"Cheaper than {reference} for good: {'; '.join(told)}." if told else ""


def _crossing(meets: float | None) -> str:
    if meets is None:
        return "not at the longest"
    return f"from about {meets:,.0f} tokens on" if meets else "at every length measured"


def _told(shown: Sequence[tuple[str, Line, bool]], unit: str) -> str:
    """The lines in words: each mechanism at its shortest and its longest length."""
    told = []
    for name, line, _ in shown[:MOST]:
        first, last = min(line), max(line)
        told.append(
            f"{name} {_mean(line[first]):.3g} {unit} at {first:,.0f} and "
            f"{_mean(line[last]):.3g} {unit} at {last:,.0f} tokens"
        )
    return "; ".join(told) + "."


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _cost(row: dict[str, Any], measure: str) -> float | None:
    """A cost of one sequence: the batch shrinks as the length grows. None where it was not measured."""
    cost, batch, length = number(row.get(measure)), number(row.get("batch")), number(row.get("seq_len"))
    if cost is None or cost <= 0 or not batch or batch <= 0 or length is None or length <= 0:
        return None
    return cost / batch


def _family(group: Group) -> str:
    """Equal for groups that differ in nothing but the length and, with it, the micro-batch."""
    device = {name: value for name, value in group.device.items() if name != "micro_batch"}
    settings = {
        name: value
        for name, value in group.key.items()
        if not name.endswith("seq_len") and name != "pretrained.micro_batch"
    }
    return json.dumps([settings, device], sort_keys=True, default=str)


def _without_length(group: Group) -> str:
    """The group's label without its length."""
    return " ".join(word for word in group.label.split(" ") if word != f"n{group.record.seq_len}")

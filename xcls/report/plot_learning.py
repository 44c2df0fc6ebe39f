"""Learning curves: a score over the time spent in training steps, and over the tokens seen; a line per seed."""

from __future__ import annotations

import math
from typing import Sequence

from xcls.report.aggregate import Group
from xcls.report.curves import Curve, read_curve
from xcls.report.plot_style import WIDTH, Looks, Plot, canvas, key, name_ends, png, short

AXES = (("seconds", "time in training steps"), ("tokens", "tokens seen"))
MOST_LINES = 6  # groups with curves, the best ranked ones: more cannot be told apart


def learning_plot(
    groups: Sequence[Group], score: str, *, name: str, title: str, board: str | None, looks: Looks
) -> Plot | None:
    """`score` of the groups' runs from their metrics.csv; None where no run has any."""
    read = [(group, [read_curve(run, score) for run in group.runs]) for group in groups[:MOST_LINES]]
    shown = [(group, [curve for curve in curves if curve is not None]) for group, curves in read]
    shown = [item for item in shown if item[1]]
    if not shown:
        return None
    figure, panels = canvas((WIDTH, 6.4), down=2)
    label = "validation loss (less is better)" if score == "val_loss" else "macro-F1 on validation"
    named = []
    for axes, (way, words) in zip(panels, AXES):
        unit, divisor = _unit(way, [value for _, curves in shown for curve in curves for value in getattr(curve, way)])
        axes.set_xlabel(f"{words}, {unit}")
        ends = []
        for group, curves in shown:
            look = looks.of(group.label)
            for index, curve in enumerate(curves):
                xs = [value / divisor for value in getattr(curve, way)]
                name_ = f"{group.label} (n = {len(curves)})" if index == 0 else None
                axes.plot(
                    xs, curve.scores, marker=look.marker, color=look.colour, linestyle=look.line, linewidth=1.1,
                    markersize=4.5, label=name_,
                )  # fmt: skip
            x, y = _end(curves, way)
            if math.isfinite(x):
                ends.append((x / divisor, y, group.label, look.colour))
        axes.set_ylabel(label)
        axes.margins(x=0.05)
        left, right = axes.get_xlim()
        axes.set_xlim(left, right + 0.26 * (right - left))
        named.append((axes, ends))
    panels[0].set_title(
        short(title, 60) if len(groups) <= MOST_LINES else f"{short(title, 44)}: {MOST_LINES} of {len(groups)} groups"
    )
    key(panels[0])  # before the names: it takes room from the axes, and names are placed by the room there is
    for axes, ends in named:
        name_ends(axes, ends)
    words = f"{title}: {label}, over the time spent in training steps and over the tokens seen; a line per seed."
    return Plot(name, "Learning curves", words, _numbers(shown), png(figure), board)


def _unit(way: str, values: Sequence[float]) -> tuple[str, float]:
    """The unit in which `values` (seconds, tokens) read well, and what to divide them by."""
    top = max((value for value in values if math.isfinite(value)), default=0.0)
    steps = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
    steps = steps if way == "seconds" else (("billions", 1e9), ("millions", 1e6), ("thousands", 1e3), ("tokens", 1.0))
    return next((step for step in steps if top >= 2 * step[1]), steps[-1])


def _end(curves: Sequence[Curve], way: str) -> tuple[float, float]:
    """Where the curve of a group that goes on longest ends: the place of the group's name."""
    return max((getattr(curve, way)[-1], curve.scores[-1]) for curve in curves)


def _numbers(shown: Sequence[tuple[Group, list[Curve]]]) -> str:
    """The first and the last score of each group in words."""
    told = []
    for group, curves in shown:
        first, last = (sum(curve.scores[at] for curve in curves) / len(curves) for at in (0, -1))
        start = f"from {first:.3f} to " if any(len(curve.scores) > 1 for curve in curves) else ""
        told.append(f"{group.label} {start}{last:.3f}")
    return f"Means, from the first evaluation to the last: {'; '.join(told)}."

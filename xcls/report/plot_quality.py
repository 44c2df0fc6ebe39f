"""Quality against cost with the Pareto front, and every seed as a point."""

from __future__ import annotations

import json
from statistics import fmean, median
from typing import Any, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from xcls.report.aggregate import Board, Group
from xcls.report.labels import BASELINE
from xcls.report.measures import MEASURES, memory_measure
from xcls.report.plot_style import (
    MOST,
    SOFT,
    WIDTH,
    Looks,
    Plot,
    canvas,
    counted,
    key,
    name_marks,
    plain_logs,
    png,
    short,
)
from xcls.report.verdict import strictest

TITLES = {"time_per_epoch": "time per epoch, s", "max_gpu_mem_MiB": "peak GPU memory, MiB",
          "rss_growth_MiB": "memory, MiB (growth of resident memory)"}  # fmt: skip
MOST_PLACES = 6  # devices and lengths with a plot of their own
Point = tuple[float, float]


def quality_plots(board: Board, looks: Looks) -> list[Plot]:
    """Macro-F1 against time and against memory, a plot per device and length, and the seeds."""
    places: dict[tuple[int, str], list[Group]] = {}
    for group in board.groups:
        if group.runs:
            device = json.dumps(group.device, sort_keys=True, default=str)
            places.setdefault((group.record.seq_len, device), []).append(group)
    lengths, devices = ({place[at] for place in places} for at in (0, 1))
    made = []
    for (length, device), groups in sorted(places.items())[:MOST_PLACES]:
        suffix = f"-n{length}" if len(lengths) > 1 else ""
        suffix += f"-device{sorted(devices).index(device) + 1}" if len(devices) > 1 else ""
        for cost in ("time_per_epoch", memory_measure(groups[0].device.get("kind"))):
            made.append(quality_against_cost(board, groups, cost, suffix, looks))
    made.append(seed_points(board, looks))
    return [plot for plot in made if plot is not None]


def points_of(group: Group, cost: str) -> list[Point]:
    """(cost, macro-F1 on validation) of each seed that has both."""
    quality, measure = MEASURES["macro_f1"], MEASURES[cost]
    points = [(measure.of(run.record), quality.of(run.record)) for run in group.runs]
    return [(x, y) for x, y in points if x is not None and y is not None]


def middle(points: Sequence[Point]) -> Point:
    """The median cost of points and their mean quality."""
    return median(x for x, _ in points), fmean(y for _, y in points)


def pareto_front(means: dict[str, Point]) -> list[str]:
    """The names whose (cost, quality) no other beats or equals in both, from the cheapest to the dearest."""
    front = [
        name
        for name, (x, y) in means.items()
        if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in means.values())
    ]
    return sorted(front, key=lambda name: (means[name], name))


def quality_against_cost(board: Board, groups: Sequence[Group], cost: str, suffix: str, looks: Looks) -> Plot | None:
    """Macro-F1 against a cost: seeds small and open, groups large and named, the front a line, the baseline dashed."""
    found = [(group, points_of(group, cost)) for group in groups]
    found = [(group, points) for group, points in found if points]
    if not found:
        return None
    drawn = found[:MOST]
    figure, (axes,) = canvas()
    axes.set(xlabel=f"{TITLES[cost]} (less is better)", ylabel="macro-F1 on validation (more is better)")
    record, machine = groups[0].record, groups[0].device.get("name") or groups[0].device.get("kind") or "device unknown"
    axes.set_title(counted(short(f"{board.name}, {record.seq_len} tokens, {machine}", 60), len(found)))
    means = {group.id: middle(points) for group, points in drawn}
    marks, seeds = [], []
    for group, points in drawn:
        look = looks.of(group.label)
        axes.scatter(
            *zip(*points), s=26, marker=look.marker, facecolors="none", edgecolors=look.colour, linewidths=1.0, zorder=4
        )
        axes.scatter(
            *means[group.id], s=85, marker=look.marker, color=look.colour, edgecolors="black", linewidths=0.8, zorder=5
        )
        marks.append((*means[group.id], group.label, look.colour))
        seeds += points
    keys = [Line2D([], [], marker="o", linestyle="", markerfacecolor="none", color=SOFT, markersize=5, label="a seed"),
            Line2D([], [], marker="o", linestyle="", color=SOFT, markeredgecolor="black", label="of all seeds")]  # fmt: skip
    names = pareto_front(means)
    if len(drawn) > 1:
        front = [means[name] for name in names]
        (line,) = axes.plot(
            *zip(*front), drawstyle="steps-post", color=SOFT, linewidth=1.4, zorder=2, label="Pareto front"
        )
        keys.append(line)
    axes.margins(x=0.22, y=0.18)
    if max(x for x, _ in seeds) > 8 * min(x for x, _ in seeds) > 0:
        axes.set_xscale("log")
        plain_logs(axes.xaxis)
    keys += _baseline_line(axes, board)
    key(axes, keys)
    name_marks(axes, marks, seeds)
    best = ", ".join(group.label for name in names for group, _ in drawn if group.id == name)
    words = f"Macro-F1 on validation against {TITLES[cost]} on {board.name} at {record.seq_len} tokens."
    words += f" On the Pareto front, where nothing is both cheaper and better: {best}." if len(drawn) > 1 else ""
    told = [
        f"{group.label} {means[group.id][0]:.4g} and {means[group.id][1]:.3f} (n = {len(points)})"
        for group, points in drawn
    ]
    numbers = f"Median cost and mean macro-F1: {'; '.join(told)}."
    title = f"Quality against {'time' if cost == 'time_per_epoch' else 'memory'}"
    title += f", {record.seq_len} tokens" if "-n" in suffix else ""
    return Plot(f"quality_vs_{cost}-{board.slug}{suffix}", title, words, numbers, png(figure), board.slug)


def _baseline_line(axes: Axes, board: Board) -> list[Any]:
    """The baseline's score as a dashed line, or, where it lies far off the others, in the legend alone; its keys."""
    height = _baseline(board)
    if height is None:
        return []
    low, high = axes.get_ylim()
    name = f"{BASELINE} ({height:.3f})"
    if low - (high - low) <= height <= high + (high - low):
        return [axes.axhline(height, color="black", linestyle="--", linewidth=1, zorder=1, label=name)]
    return [Line2D([], [], linestyle="", label=f"{name}: {'below' if height < low else 'above'} this plot")]


def _baseline(board: Board) -> float | None:
    baseline = strictest(board.baselines)
    return baseline.stat("macro_f1").mean if baseline is not None else None


def seed_points(board: Board, looks: Looks) -> Plot | None:
    """Every seed of every group as a point: validation filled, test open; a bar at the mean of each."""
    groups = [group for group in board.groups if group.stat("macro_f1").n][:MOST]
    if not groups:
        return None
    figure, (axes,) = canvas((WIDTH, 1.6 + 0.55 * len(groups)))
    axes.set(xlabel="macro-F1", yticks=range(len(groups)), ylim=(len(groups) - 0.4, -0.6))
    axes.set_yticklabels([f"{short(group.label, 28)}\nn = {len(group.runs)}" for group in groups])
    axes.set_title(counted(f"{short(board.name)}: every seed", len(board.groups)))
    for row, group in enumerate(groups):
        look = looks.of(group.label)
        for name, offset, fill in (("macro_f1", -0.14, look.colour), ("test_macro_f1", 0.14, "none")):
            values = [value for value in (MEASURES[name].of(run.record) for run in group.runs) if value is not None]
            axes.scatter(
                values,
                [row + offset] * len(values),
                s=30,
                marker=look.marker,
                facecolors=fill,
                edgecolors=look.colour,
                zorder=4,
            )
            if values:
                axes.plot(
                    [sum(values) / len(values)] * 2,
                    [row + offset - 0.16, row + offset + 0.16],
                    color="black",
                    linewidth=1.4,
                    zorder=3,
                )
    keys = [Line2D([], [], marker="o", linestyle="", color=SOFT, label="validation"),
            Line2D([], [], marker="o", linestyle="", markerfacecolor="none", color=SOFT, label="test"),
            Line2D([], [], marker="|", linestyle="", color="black", markersize=11, label="mean")]  # fmt: skip
    height = _baseline(board)
    if height is not None:
        keys.append(
            axes.axvline(
                height,
                color="black",
                linestyle="--",
                linewidth=1,
                zorder=1,
                label=f"{BASELINE}, validation ({height:.3f})",
            )
        )
    axes.margins(x=0.08)
    key(axes, keys)
    told = []
    for group in groups:
        stat = group.stat("macro_f1")
        told.append(f"{group.label} {stat.low:.3f} to {stat.high:.3f} (n = {stat.n})")
    words = f"Macro-F1 of every seed on {board.name}, on validation and on test."
    return Plot(
        f"seeds-{board.slug}", "Every seed", words, f"On validation: {'; '.join(told)}.", png(figure), board.slug
    )

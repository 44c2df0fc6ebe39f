"""The plots of quality: against cost, every seed, learning curves, confusion; and `draw`, which makes all plots of a report.

Plain matplotlib, deterministic, readable without colour: a group has one marker, colour and dash in all of them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import fmean
from typing import Any, Iterable, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from xcls.report.bench import Crossover
from xcls.report.claims import strictest
from xcls.report.drawing import (
    MOST,
    SETTINGS,
    SOFT,
    WIDTH,
    Looks,
    Plot,
    canvas,
    counted,
    drawable,
    key,
    plain_logs,
    png,
    short,
)
from xcls.report.groups import BASELINE, DatasetResults, Group
from xcls.report.load import Run
from xcls.report.measures import MEASURES, memory_measure
from xcls.report.plots_of_length import bench_plots, length_plot, step_plot
from xcls.report.predictions import Predictions, Unusable, read_predictions
from xcls.report.tables import Study

MOST_BOARDS = 8  # boards with plots; a report over more data sets is read by its tables
MOST_PLACES = 6  # devices and lengths with a plot of their own
MOST_CURVES = 6  # groups with learning curves: more cannot be told apart
MOST_MATRICES = 5  # groups with a confusion matrix
MOST_CLASSES, NUMBERED = 30, 12  # of a confusion matrix, and of one with numbers in its cells
LARGEST = 8 * 2**20  # bytes of a metrics.csv that is read; a row per evaluation makes some thousand
TITLES = {
    "time_per_epoch": "time per epoch, s",
    "max_gpu_mem_MiB": "peak GPU memory, MiB",
    "rss_growth_MiB": "memory, MiB (growth of resident memory)",
}
Point = tuple[float, float]


def draw(study: Study, crossings: Sequence[Crossover] = ()) -> list[Plot]:
    """Every plot there are numbers for, in the order in which the page shows them."""
    with matplotlib.rc_context(SETTINGS):
        made: list[Plot | None] = []
        looks, reference = Looks(), study.references[0]
        for board in study.boards[:MOST_BOARDS]:
            made += [*quality_plots(board, looks), seed_points(board, looks), length_plot(board, reference, looks)]
            made += [learning_plot(board.groups, board, looks), confusion_plot(board)]
        made.append(learning_plot([group for group in study.groups if group.record.mode == "pretrain"], None, looks))
        made += [step_plot(one, looks) for one in crossings]
        for bench in study.found.benches:
            made += bench_plots(bench, reference, looks)
    return _apart(plot for plot in made if plot is not None)


def _apart(plots: Iterable[Plot]) -> list[Plot]:
    """The plots, each with a name of its own: folders of one name, and boards that differ in signs alone, occur."""
    named: dict[str, Plot] = {}
    for plot in plots:
        name, place = plot.name, 2
        while name in named:
            name, place = f"{plot.name}-{place}", place + 1
        named[name] = replace(plot, name=name)
    return list(named.values())


def quality_plots(board: DatasetResults, looks: Looks) -> list[Plot | None]:
    """Macro-F1 against time and against memory, a plot per device and length."""
    places: dict[tuple[int, str], list[Group]] = {}
    for group in board.groups:
        if group.runs:
            device = json.dumps(group.device, sort_keys=True, default=str)
            places.setdefault((group.record.seq_len, device), []).append(group)
    lengths, devices = (sorted({place[at] for place in places}) for at in (0, 1))
    made = []
    for (length, device), groups in sorted(places.items())[:MOST_PLACES]:
        suffix = f"-n{length}" if len(lengths) > 1 else ""
        suffix += f"-device{devices.index(device) + 1}" if len(devices) > 1 else ""
        for cost in ("time_per_epoch", memory_measure(groups[0].device.get("kind"))):
            made.append(quality_against_cost(board, groups, cost, suffix, looks))
    return made


def pareto_front(means: dict[str, Point]) -> list[str]:
    """The names whose (cost, quality) no other beats or equals in both, from the cheapest to the dearest."""

    def beaten(x: float, y: float) -> bool:
        return any(a <= x and b >= y and (a, b) != (x, y) for a, b in means.values())

    return sorted((name for name in means if not beaten(*means[name])), key=lambda name: (means[name], name))


def quality_against_cost(
    board: DatasetResults, groups: Sequence[Group], cost: str, suffix: str, looks: Looks
) -> Plot | None:
    """Macro-F1 against a cost: seeds small and open, groups large, the front a line, the baseline dashed."""
    cells = [
        (group.label, MEASURES[cost].of(run.record), MEASURES["macro_f1"].of(run.record))
        for group in groups
        for run in group.runs
    ]
    seeds = pd.DataFrame(cells, columns=["label", "cost", "score"]).dropna()
    if seeds.empty:
        return None
    by_label = seeds.groupby("label", sort=False)
    middles = by_label.agg(cost=("cost", "median"), score=("score", "mean"), n=("cost", "size"))
    shown = middles.iloc[:MOST]
    figure, (axes,) = canvas()
    machine = groups[0].device.get("name") or groups[0].device.get("kind") or "device unknown"
    place = f"{board.name}, {groups[0].record.seq_len} tokens"
    axes.set(xlabel=f"{TITLES[cost]} (less is better)", ylabel="macro-F1 on validation (more is better)")
    axes.set_title(counted(short(f"{place}, {machine}", 60), len(middles)))
    for label, x, y, _ in shown.itertuples():
        points, look = by_label.get_group(label), {**looks.of(label), "linestyle": ""}
        axes.plot(points["cost"], points["score"], **look, markersize=5, markerfacecolor="none", zorder=4)
        axes.plot(x, y, **look, markersize=9, markeredgecolor="black", label=short(label), zorder=5)
    words = f"Macro-F1 on validation against {TITLES[cost]} on {place}: seeds small, groups large."
    if len(shown) > 1:
        front = pareto_front({label: (x, y) for label, x, y, _ in shown.itertuples()})
        line = shown.loc[front]
        axes.plot(line["cost"], line["score"], drawstyle="steps-post", color=SOFT, zorder=2, label="Pareto front")
        words += f" On the Pareto front, where nothing is both cheaper and better: {', '.join(front)}."
    axes.margins(x=0.1, y=0.12)
    if seeds["cost"].max() > 8 * seeds["cost"].min() > 0:
        axes.set_xscale("log")
        plain_logs(axes.xaxis)
    key(axes, _baseline_line(axes, board))
    told = "; ".join(f"{label} {x:.4g} and {y:.3f} (n = {n})" for label, x, y, n in shown.itertuples())
    title = f"Quality against {'time' if cost == 'time_per_epoch' else 'memory'}"
    title += f", {groups[0].record.seq_len} tokens" if "-n" in suffix else ""
    numbers = f"Median cost and mean macro-F1: {told}."
    return Plot(f"quality_vs_{cost}-{board.slug}{suffix}", title, words, numbers, png(figure), board.slug)


def _baseline_line(axes: Axes, board: DatasetResults) -> list[Any]:
    """The baseline's score as a dashed line; where it lies far off the others, an entry for the legend alone."""
    baseline = strictest(board.baselines)
    if baseline is None:
        return []
    height, (low, high) = baseline.stat("macro_f1").mean or 0.0, axes.get_ylim()
    name = f"{BASELINE} ({height:.3f})"
    if low - (high - low) <= height <= high + (high - low):
        return [axes.axhline(height, color="black", linestyle="--", linewidth=1, zorder=1, label=name)]
    return [Line2D([], [], linestyle="", label=f"{name}: {'below' if height < low else 'above'} this plot")]


def seed_points(board: DatasetResults, looks: Looks) -> Plot | None:
    """Every seed of every group as a point: validation filled, test open; a bar at the mean of each."""
    groups = [group for group in board.groups if group.stat("macro_f1").n][:MOST]
    if not groups:
        return None
    figure, (axes,) = canvas((WIDTH, 1.6 + 0.55 * len(groups)))
    axes.set(xlabel="macro-F1", yticks=range(len(groups)), ylim=(len(groups) - 0.4, -0.6))
    axes.set_yticklabels([f"{short(group.label, 28)}\nn = {len(group.runs)}" for group in groups])
    axes.set_title(counted(f"{short(board.name)}: every seed", len(board.groups)))
    for row, group in enumerate(groups):
        look = {**looks.of(group.label), "linestyle": ""}
        for name, at, fill in (("macro_f1", row - 0.14, look["color"]), ("test_macro_f1", row + 0.14, "none")):
            values = [value for value in (MEASURES[name].of(run.record) for run in group.runs) if value is not None]
            axes.plot(values, [at] * len(values), **look, markersize=5.5, markerfacecolor=fill, zorder=4)
            if values:
                axes.vlines(fmean(values), at - 0.16, at + 0.16, color="black", linewidth=1.4, zorder=3)
    keys = [
        Line2D([], [], marker="o", linestyle="", color=SOFT, label="validation"),
        Line2D([], [], marker="o", linestyle="", markerfacecolor="none", color=SOFT, label="test"),
        Line2D([], [], marker="|", linestyle="", color="black", markersize=11, label="mean"),
    ]
    baseline = strictest(board.baselines)
    if baseline is not None:
        height = baseline.stat("macro_f1").mean or 0.0
        name = f"{BASELINE}, validation ({height:.3f})"
        keys.append(axes.axvline(height, color="black", linestyle="--", linewidth=1, zorder=1, label=name))
    key(axes, keys)
    stats = {group.label: group.stat("macro_f1") for group in groups}
    told = "; ".join(f"{label} {stat.low:.3f} to {stat.high:.3f} (n = {stat.n})" for label, stat in stats.items())
    words = f"Macro-F1 of every seed on {board.name}, on validation and on test."
    return Plot(f"seeds-{board.slug}", "Every seed", words, f"On validation: {told}.", png(figure), board.slug)


def read_curve(run: Run, score: str) -> pd.DataFrame | None:
    """A run's evaluations in order: `seconds` in training steps, real `tokens` seen, and `score`, a column of its metrics.csv.

    None where the file is gone, too large, or has no such numbers.
    """
    file = run.folder / "metrics.csv"
    try:
        if "metrics.csv" not in run.record.files or file.stat().st_size > LARGEST:
            return None
        frame = pd.read_csv(file, usecols=[score, "step", "time_per_step", "tokens_per_s"])
    except (OSError, ValueError):
        return None
    frame = frame.apply(pd.to_numeric, errors="coerce")
    frame["seconds"] = frame["step"] * frame["time_per_step"]
    frame["tokens"] = frame["seconds"] * frame["tokens_per_s"]
    frame = frame.replace([np.inf, -np.inf], np.nan).dropna(subset=[score, "seconds"])
    return None if frame.empty else frame.rename(columns={score: "score"})


def learning_plot(groups: Sequence[Group], board: DatasetResults | None, looks: Looks) -> Plot | None:
    """Macro-F1, in pretraining (no `board`) the loss, over time and over tokens, a line per seed; None without curves."""
    score, about = ("macro_f1", "macro-F1 on validation") if board else ("val_loss", "validation loss (less is better)")
    title = f"{board.name}: fine-tuning" if board else "Pretraining (masked language modelling)"
    curves: dict[str, list[pd.DataFrame]] = {}
    for group in groups[:MOST_CURVES]:
        found = [curve for run in group.runs if (curve := read_curve(run, score)) is not None]
        curves.update({group.label: found} if found else {})
    if not curves:
        return None
    figure, panels = canvas((WIDTH, 6.4), down=2)
    for axes, way, words in zip(panels, ("seconds", "tokens"), ("time in training steps", "tokens seen")):
        unit, divisor = _unit(way, max(curve[way].max() for found in curves.values() for curve in found))
        axes.set(xlabel=f"{words}, {unit}", ylabel=about)
        for label, found in curves.items():
            for place, curve in enumerate(found):
                name = None if place else short(f"{label} (n = {len(found)})")
                axes.plot(curve[way] / divisor, curve["score"], **looks.of(label), markersize=4.5, label=name)
    panels[0].set_title(counted(short(title, 44), len(groups), MOST_CURVES))
    key(panels[0])
    told = []
    for label, found in curves.items():
        first, last = (fmean(curve["score"].iloc[at] for curve in found) for at in (0, -1))
        told.append(f"{label} from {first:.3f} to {last:.3f}")
    numbers = f"Means, from the first evaluation to the last: {'; '.join(told)}."
    words = f"{title}: {about}, over time and over tokens; a line per seed."
    name, slug = (f"learning-{board.slug}", board.slug) if board else ("pretraining", None)
    return Plot(name, "Learning curves", words, numbers, png(figure), slug)


def _unit(way: str, top: float) -> tuple[str, float]:
    """The unit in which values up to `top` (seconds, tokens) read well, and what to divide them by."""
    steps = [("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0)]
    if way == "tokens":
        steps = [("billions", 1e9), ("millions", 1e6), ("thousands", 1e3), ("tokens", 1.0)]
    return next((step for step in steps if top >= 2 * step[1]), steps[-1])


def confusion_plot(board: DatasetResults) -> Plot | None:
    """Which class is taken for which on test, over all seeds of the best ranked groups and of the baseline; None without predictions."""
    baseline = strictest(board.baselines)
    groups = [group for group in board.groups if group.runs][:MOST_MATRICES] + ([baseline] if baseline else [])
    read = [(group, runs) for group in groups if (runs := [found for run in group.runs if (found := _on_test(run))])]
    classes = read[0][1][0].names if read else ()
    read = [(group, runs) for group, runs in read if all(run.names == classes for run in runs)]
    if not 2 <= len(classes) <= MOST_CLASSES:
        return None
    named = [name if drawable(name) else f"({place})" for place, name in enumerate(classes, 1)]
    across = 2 if len(read) > 1 and len(classes) <= NUMBERED else 1
    side, down = (WIDTH - 0.9) / across, -(-len(read) // across)
    figure, panels = canvas((across * side + 0.9, down * (side + 0.3) + 0.8), across=across, down=down)
    told = []
    for place, (axes, (group, runs)) in enumerate(zip(panels, read)):
        shares = confusion(runs)
        axes.imshow(shares, cmap="Greys", vmin=0, vmax=1)
        axes.set_title(short(f"{group.label} (n = {len(group.runs)})", int(side * 13)), fontsize=9)
        axes.set_xticks(range(len(classes)), [short(name, 14) for name in named], rotation=90, fontsize=8)
        axes.set_yticks(range(len(classes)), [short(name, 14) for name in named], fontsize=8)
        axes.grid(False)
        axes.tick_params(labelleft=place % across == 0)
        axes.set_ylabel("true class" if place % across == 0 else "")
        axes.set_xlabel("predicted class" if place + across >= len(read) else "")
        for (row, column), value in np.ndenumerate(shares):
            if value >= 0.005 and len(classes) <= NUMBERED:
                colour = "white" if value > 0.5 else "black"
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=colour)
        wrong = np.where(np.eye(len(classes), dtype=bool), -1.0, shares)
        row, column = np.unravel_index(wrong.argmax(), wrong.shape)
        told.append(f"{group.label}: {classes[row]} taken for {classes[column]} ({100 * wrong.max():.0f} %)")
    for axes in panels[len(read) :]:
        axes.remove()
    numbered = ", ".join(f"{shown} {name}" for shown, name in zip(named, classes) if shown != name)
    words = f"Confusion on test on {board.name}: a row per true class, in its cells the share predicted as each, in %."
    words += f" In the plot: {numbered}." if numbered else ""
    words += f" Most often confused: {'; '.join(told)}."
    name = f"confusion-{board.slug}"
    return Plot(name, "Which class is taken for which", words, "", png(figure), board.slug)


def _on_test(run: Run) -> Predictions | None:
    try:
        return read_predictions(run).get("test")
    except Unusable:
        return None


def confusion(runs: Sequence[Predictions]) -> np.ndarray:
    """[classes, classes]: of each true class (row) the share that was predicted as each class, over all runs."""
    size = runs[0].classes
    pairs = np.concatenate([run.labels * size + run.said for run in runs])
    counts = np.bincount(pairs, minlength=size**2).reshape(size, size)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)

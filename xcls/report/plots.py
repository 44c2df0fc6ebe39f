"""The plots of the report as PNG bytes, deterministic, readable without colour: every group has a marker and a name."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Sequence

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from xcls.record import sha256  # noqa: E402
from xcls.report.aggregate import Board, Group  # noqa: E402
from xcls.report.collect import Run  # noqa: E402
from xcls.report.labels import BASELINE  # noqa: E402
from xcls.report.measures import MEASURES, memory_measure, number  # noqa: E402
from xcls.report.verdict import strictest  # noqa: E402

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#8A6D00",
    "#56B4E9",
    "#000000",
    "#7A5195",
)  # Okabe & Ito, darkened
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "p")
LINES = ("-", "--", "-.", ":")
MOST = 12  # groups in one plot, the best ranked ones; the tables have them all
TITLES = {"time_per_epoch": "time per epoch, s", "max_gpu_mem_MiB": "peak GPU memory, MiB",
          "rss_growth_MiB": "memory: growth of peak RSS, MiB"}  # fmt: skip


def draw(boards: Sequence[Board], groups: Sequence[Group]) -> dict[str, tuple[bytes, str]]:
    """Name to (PNG bytes, what it shows in words) of every plot there are numbers for."""
    made: dict[str, tuple[bytes, str]] = {}
    for board in boards:
        memories = sorted({memory_measure(group.device.get("kind")) for group in board.groups if group.runs})
        for cost in ("time_per_epoch", *memories):
            figure = quality_against_cost(board, cost)
            if figure is not None:
                words = f"Macro-F1 on validation against {TITLES[cost]} ({board.name}); small: seeds, large: means."
                made[f"quality_vs_{cost}-{board.slug}"] = _png(figure), words
        figure = learning_curves(board.groups, "macro_f1")
        if figure is not None:
            made[f"learning-{board.slug}"] = (
                _png(figure),
                f"Macro-F1 on validation over the epochs on {board.name}, a line per seed.",
            )
    pretraining = [group for group in groups if group.record.mode == "pretrain"]
    figure = learning_curves(pretraining, "val_loss")
    if figure is not None:
        made["pretraining"] = (
            _png(figure),
            "Validation loss of pretraining (masked language modelling) over the epochs.",
        )
    return made


def quality_against_cost(board: Board, cost: str) -> Figure | None:
    """Macro-F1 against a cost: seeds as small points, the group's mean as a large one, the baseline as a line."""
    quality, measure = MEASURES["macro_f1"], MEASURES[cost]
    shown = []
    for group in board.groups:
        points = [(measure.of(run.record), quality.of(run.record)) for run in group.runs]
        points = [(x, y) for x, y in points if x is not None and y is not None]
        if points:
            shown.append((group, points))
    if not shown:
        return None
    figure, axes = _canvas(TITLES[cost], "macro-F1, validation", _title(board.name, len(shown)))
    for place, (group, points) in enumerate(shown[:MOST]):
        marker, colour = MARKERS[place % len(MARKERS)], COLOURS[place % len(COLOURS)]
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        mean = sum(xs) / len(xs), sum(ys) / len(ys)
        axes.scatter(xs, ys, s=26, marker=marker, facecolors="none", edgecolors=colour, linewidths=1.0, zorder=4)
        axes.scatter(
            *mean,
            s=90,
            marker=marker,
            color=colour,
            alpha=0.75,
            edgecolors="black",
            zorder=3,
            label=f"{group.label} (n = {len(points)})",
        )
        axes.annotate(group.label, mean, xytext=(9, 7), textcoords="offset points", fontsize=8, zorder=4)
    baseline = strictest(board.baselines)
    height = baseline.stat("macro_f1").mean if baseline is not None else None
    if height is not None:
        axes.axhline(height, color="black", linestyle="--", linewidth=1, label=f"{BASELINE} ({height:.3f})", zorder=1)
    axes.margins(x=0.18, y=0.15)
    _legend(axes)
    return figure


def learning_curves(groups: Sequence[Group], score: str) -> Figure | None:
    """`score` over the epochs from each run's metrics.csv: a line per seed, marker and dashes per group."""
    shown = [(group, [curve for curve in (read_curve(run, score) for run in group.runs) if curve]) for group in groups]
    shown = [(group, curves) for group, curves in shown if curves]
    if not shown:
        return None
    title = "validation loss" if score == "val_loss" else "macro-F1, validation"
    figure, axes = _canvas("epoch", title, _title("pretraining" if score == "val_loss" else "fine-tuning", len(shown)))
    for place, (group, curves) in enumerate(shown[:MOST]):
        style = {
            "marker": MARKERS[place % len(MARKERS)],
            "color": COLOURS[place % len(COLOURS)],
            "linestyle": LINES[place % len(LINES)],
        }
        for index, curve in enumerate(curves):
            label = f"{group.label} (n = {len(curves)})" if index == 0 else None
            axes.plot([x for x, _ in curve], [y for _, y in curve], linewidth=1.1, markersize=4.5, label=label, **style)
    _legend(axes)
    return figure


def read_curve(run: Run, score: str) -> list[tuple[float, float]]:
    """(epoch, score) of each evaluation in a run's metrics.csv; empty where the file is not the record's."""
    file = Path(run.folder) / "metrics.csv"
    try:
        if sha256(file) != run.record.files.get("metrics.csv"):
            return []
        with open(file, newline="", encoding="utf-8") as lines:
            rows = [(_float(row.get("epoch")), _float(row.get(score))) for row in csv.DictReader(lines)]
    except (OSError, ValueError, csv.Error):
        return []
    return [(x, y) for x, y in rows if x is not None and y is not None]


def _float(text: str | None) -> float | None:
    try:
        return number(float(text or "nan"))
    except ValueError:
        return None


def _title(name: str, groups: int) -> str:
    return name if groups <= MOST else f"{name}: the first {MOST} of {groups} groups"


def _canvas(x: str, y: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 4.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles, labels, fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()

"""Confusion matrices from the predictions of the test split: which class is taken for which, over all seeds."""

from __future__ import annotations

from collections import Counter
from typing import Sequence

from xcls.report.aggregate import Board, Group
from xcls.report.collect import Run
from xcls.report.plot_style import WIDTH, Plot, canvas, drawable, png, short
from xcls.report.verdict import strictest

PREDICTIONS = "predictions.parquet"
MOST_GROUPS = 5  # and the baseline
MOST_CLASSES = 30
NUMBERED = 12  # up to so many classes the cells hold numbers
Counts = dict[tuple[str, str], int]  # (label, prediction) to rows


def confusion_plot(board: Board) -> Plot | None:
    """A matrix for the best ranked groups and the baseline, each row in shares; None without predictions."""
    baseline = strictest(board.baselines)
    groups = [group for group in board.groups if group.runs][:MOST_GROUPS] + ([baseline] if baseline else [])
    read = [(group, counts_of(group)) for group in groups]
    read = [(group, counts) for group, counts in read if counts]
    classes = sorted({name for _, counts in read for pair in counts for name in pair})
    if not read or not 2 <= len(classes) <= MOST_CLASSES:
        return None
    named = [name if drawable(name) else f"({number})" for number, name in enumerate(classes, 1)]
    across = 2 if len(read) > 1 and len(classes) <= NUMBERED else 1
    down = -(-len(read) // across)
    side = (WIDTH - 0.9) / across
    figure, panels = canvas((across * side + 0.9, down * (side + 0.3) + 0.8), across=across, down=down)
    told = []
    for axes, (group, counts) in zip(panels, read):
        matrix = shares(counts, classes)
        axes.imshow(matrix, cmap="Greys", vmin=0, vmax=1)
        axes.set_title(short(f"{group.label} (n = {len(group.runs)})", int(side * 13)), fontsize=9)
        axes.grid(False)
        axes.set_xticks(range(len(classes)), [short(name, 14) for name in named], rotation=90, fontsize=8)
        axes.set_yticks(range(len(classes)), [short(name, 14) for name in named], fontsize=8)
        if len(classes) <= NUMBERED:
            for row, values in enumerate(matrix):
                for column, value in enumerate(values):
                    text = f"{100 * value:.0f}" if value >= 0.005 else ""
                    axes.text(
                        column,
                        row,
                        text,
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="white" if value > 0.5 else "black",
                    )
        told.append(f"{group.label}: {_worst(matrix, classes)}")
    for axes in panels[len(read) :]:
        axes.remove()
    for place, axes in enumerate(panels[: len(read)]):
        axes.tick_params(labelleft=place % across == 0)
        axes.set_ylabel("true class" if place % across == 0 else "")
        axes.set_xlabel("predicted class" if place + across >= len(read) else "")
    words = f"Confusion on test on {board.name}: a row per true class, in its cells the share predicted as each, in %."
    numbered = [f"{number} {name}" for number, name in zip(named, classes) if number != name]
    if numbered:
        words += f" In the plot: {', '.join(numbered)}."
    numbers = f"Most often confused: {'; '.join(told)}."
    return Plot(
        f"confusion-{board.slug}", "Which class is taken for which", f"{words} {numbers}", "", png(figure), board.slug
    )


def counts_of(group: Group) -> Counts:
    """(label, prediction) to rows of the test split, summed over the runs of the group that kept their predictions."""
    total: Counts = {}
    for run in group.runs:
        for pair, count in _read(run).items():
            total[pair] = total.get(pair, 0) + count
    return total


def _read(run: Run) -> Counts:
    """The counts of one run; none where the file is gone or holds something else."""
    import pyarrow
    import pyarrow.parquet

    if PREDICTIONS not in run.record.files:
        return {}
    try:
        with pyarrow.parquet.ParquetFile(run.folder / PREDICTIONS) as opened:  # read_table and compute would import pandas
            table = opened.read(columns=["split", "label", "prediction"])
        rows = zip(*(table[name].to_pylist() for name in ("split", "label", "prediction")))
        return Counter((str(label), str(prediction)) for split, label, prediction in rows if split == "test")
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException):
        return {}


def shares(counts: Counts, classes: Sequence[str]) -> list[list[float]]:
    """Row by row, the share of a true class that was predicted as each class [classes][classes]."""
    matrix = []
    for label in classes:
        row = [counts.get((label, prediction), 0) for prediction in classes]
        matrix.append([value / max(1, sum(row)) for value in row])
    return matrix


def _worst(matrix: Sequence[Sequence[float]], classes: Sequence[str]) -> str:
    """The most frequent confusion in words."""
    wrong = [
        (value, row, column)
        for row, values in enumerate(matrix)
        for column, value in enumerate(values)
        if row != column
    ]
    value, row, column = max(wrong, key=lambda item: (item[0], -item[1], -item[2]))
    return f"{classes[row]} taken for {classes[column]} ({100 * value:.0f} %)" if value else "nothing"

"""All plots of a report, deterministic, readable without colour: every group has a marker, a dash and its name."""

from __future__ import annotations

from dataclasses import replace
from typing import Sequence

import matplotlib

from xcls.report.aggregate import Board, Group
from xcls.report.collect import Bench
from xcls.report.crossover import Crossover
from xcls.report.plot_confusion import confusion_plot
from xcls.report.plot_learning import learning_plot
from xcls.report.plot_length import bench_plot, length_plot
from xcls.report.plot_quality import quality_plots
from xcls.report.plot_step import step_plot
from xcls.report.plot_style import SETTINGS, Looks, Plot

MOST_BOARDS = 8  # boards with plots; a report over more data sets is read by its tables


def draw(
    boards: Sequence[Board], groups: Sequence[Group], benches: Sequence[Bench], reference: str, crossings: Sequence[Crossover] = ()
) -> list[Plot]:
    """Every plot there are numbers for, in the order in which the page shows them.

    `reference` is the name of the mechanism that costs are compared with.
    """
    with matplotlib.rc_context(SETTINGS):
        made: list[Plot | None] = []
        looks = Looks()
        for board in boards[:MOST_BOARDS]:
            made += quality_plots(board, looks)
            made.append(length_plot(board, reference, looks))
            about = {"name": f"learning-{board.slug}", "title": f"{board.name}: fine-tuning", "board": board.slug}
            made.append(learning_plot(board.groups, "macro_f1", **about, looks=looks))
            made.append(confusion_plot(board))
        pretraining = [group for group in groups if group.record.mode == "pretrain"]
        about = {"name": "pretraining", "title": "Pretraining (masked language modelling)", "board": None}
        made.append(learning_plot(pretraining, "val_loss", **about, looks=looks))
        made += [step_plot(one, looks) for one in crossings]
        made += [bench_plot(bench, reference, looks) for bench in benches if bench.data.get("status") != "failed"]
    return _apart([plot for plot in made if plot is not None])


def _apart(plots: Sequence[Plot]) -> list[Plot]:
    """The plots, each with a name of its own: folders of one name, and boards that differ in signs alone, occur."""
    named: dict[str, Plot] = {}
    for plot in plots:
        name, number = plot.name, 2
        while name in named:
            name, number = f"{plot.name}-{number}", number + 1
        named[name] = replace(plot, name=name)
    return list(named.values())

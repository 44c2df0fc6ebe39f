"""The crossover plot: time for one sequence against its length, readable without colour."""

from __future__ import annotations

import io
from typing import Sequence

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure

from xcls.bench.results import Row

# Okabe & Ito, darkened
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A6D00", "#56B4E9", "#000000", "#7A5195")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "p")
LINES = ("-", "--", "-.", ":")
MEASURES = {"training": "forward and backward", "inference": "inference"}


def crossover_plot(rows: Sequence[Row], part: str, title: str) -> bytes | None:
    """PNG with a panel per measure and dtype and a line per mechanism, log-log; None where nothing was timed.

    The time is per sequence, since the batch shrinks as the length grows: linear cost is a line of slope one.
    """
    rows = [row for row in rows if row["part"] == part and row.get("training_ms")]
    if not rows:
        return None
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    several = len({row["position"] for row in rows if row["origin"] == "xcls"}) > 1
    lines = list(dict.fromkeys((row["mechanism"], row["position"]) for row in rows))
    measures = [measure for measure in MEASURES if any(row.get(f"{measure}_ms") for row in rows)]
    size = (4.6 * len(dtypes) + 3.2, 3.6 * len(measures) + 0.4)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels = figure.subplots(len(measures), len(dtypes), squeeze=False, sharex=True)
    for across, measure in zip(panels, measures):
        for axes, dtype in zip(across, dtypes):
            for place, (mechanism, position) in enumerate(lines):
                points = sorted(
                    (row["seq_len"], row[f"{measure}_ms"] / row["batch"])
                    for row in rows
                    if (row["mechanism"], row["position"], row["dtype"]) == (mechanism, position, dtype)
                )
                style = {
                    "marker": MARKERS[place % len(MARKERS)],
                    "color": COLOURS[place % len(COLOURS)],
                    "linestyle": LINES[place % len(LINES)],
                }
                label = f"{mechanism}, {position}" if several else mechanism
                axes.plot(
                    [x for x, _ in points], [y for _, y in points], linewidth=1.3, markersize=5.5, label=label, **style
                )
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            lengths = sorted({row["seq_len"] for row in rows})
            axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
            axes.minorticks_off()
            axes.set_title(f"{MEASURES[measure]}, {dtype}", fontsize=9, loc="left")
            axes.grid(alpha=0.3, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        across[0].set_ylabel("ms per sequence")
    for axes in panels[-1]:
        axes.set_xlabel("tokens")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, loc="outside right upper")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()

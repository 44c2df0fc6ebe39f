"""The plot of a training step against sequence length: time and memory, as mode=bench measured them in turns."""

from __future__ import annotations

import re

from matplotlib.ticker import NullLocator

from xcls.report.crossover import TITLE, Crossover, caption
from xcls.report.plot_style import MOST, WIDTH, Looks, Plot, canvas, key, name_ends, plain_logs, png, short

MEASURES = (("training_ms", "ms per step"), ("training_MiB", "peak memory of a step, MiB"))


def step_plot(one: Crossover, looks: Looks) -> Plot:
    """A line for each mechanism; the bar at a point reaches from its fastest repeat to its slowest."""
    figure, panels = canvas((WIDTH, 6.6), down=2)
    ends, told = [], []
    for axes, (measure, unit) in zip(panels, MEASURES):
        own: list[tuple[float, float, str, str]] = []
        for name in one.mechanisms[:MOST]:
            look = looks.of(name)
            points = [(length, value) for length in one.lengths if (value := one.cost(name, length, measure))]
            if not points:
                continue
            axes.plot(*zip(*points), marker=look.marker, color=look.colour, linestyle=look.line, linewidth=1.3, label=short(name))
            own.append((*points[-1], name, look.colour))
            told.append(f"{name}: {', '.join(f'{value:.3g} at {length:,}' for length, value in points)} ({unit}).")
            for length, _ in points if measure == "training_ms" else ():
                low, high = (one.cost(name, length, f"training_{end}_ms") for end in ("min", "max"))
                if low and high:
                    axes.vlines(length, low, high, color=look.colour, linewidth=3, alpha=0.35)
        axes.set(xscale="log", yscale="log", ylabel=unit)
        axes.set_xticks(one.lengths, [f"{length:,}" for length in one.lengths])
        axes.xaxis.set_minor_locator(NullLocator())
        plain_logs(axes.yaxis)
        axes.set_xlim(one.lengths[0] / 1.15, one.lengths[-1] * (one.lengths[-1] / one.lengths[0]) ** 0.45)
        ends.append(own)
    panels[-1].set_xlabel("sequence length, tokens")
    key(panels[0])
    for axes, own in zip(panels, ends):
        name_ends(axes, own)
    place = re.sub(r"[^A-Za-z0-9_.-]+", "-", one.bench.folder.name)
    return Plot(f"step-{place}", TITLE, caption(one).split(" In brackets")[0], " ".join(told), png(figure))

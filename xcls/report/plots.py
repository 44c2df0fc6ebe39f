"""The plots: quality against cost, learning curves, cost against sequence length.

Plain matplotlib, deterministic, readable without colour: a group has the same marker, colour and dash in all plots.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Sequence

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from xcls.report.bench import Crossover
from xcls.report.claims import Study
from xcls.report.groups import DatasetResults, Group
from xcls.report.labels import BASELINE
from xcls.report.load import Run
from xcls.report.measures import MEASURES, memory_measure, number, slug

# Okabe & Ito, darker.
COLOURS = "#0072B2 #B84A00 #00734D #A3417F #7A5C00 #2B6F93 #000000 #7A5195".split()
MARKERS, LINES = "os^DvPX*<>hp", ("-", "--", "-.", ":")
MOST = 12  # groups in one plot, best ranked first; the tables have all
MOST_DATASETS = 8  # data sets with plots
MOST_PLACES = 6  # devices and lengths with a plot of their own
MOST_CURVES = 6  # groups with learning curves: more could not be distinguished
LARGEST = 8 * 2**20  # bytes: a larger metrics.csv is not read; usual are some thousand
WIDTH, DPI = 5.8, 160  # inches: two plots side by side on a desktop, one on a phone, text readable
WIDEST = 28  # characters of a name in a legend of two columns
SOFT = "#555555"
STYLE = Path(__file__).parent / "plots.mplstyle"
TITLES = {
    "time_per_epoch": "time per epoch, s",
    "max_gpu_mem_MiB": "peak GPU memory, MiB",
    "rss_growth_MiB": "memory, MiB (growth of resident memory)",
}
Looks = dict[str, dict[str, Any]]  # group or mechanism -> arguments of matplotlib's `plot`


@dataclass(frozen=True)
class Plot:
    """A finished plot: what it shows, its numbers as text for screen readers, and the slug of its data set."""

    name: str
    title: str
    words: str
    numbers: str
    image: bytes
    dataset: str | None = None


def draw(study: Study, crossings: Sequence[Crossover] = ()) -> list[Plot]:
    """All plots that have numbers, in the order of the page, with unique names."""
    looks: Looks = {}
    with matplotlib.rc_context(fname=STYLE):
        made: list[Plot | None] = []
        for results in study.datasets[:MOST_DATASETS]:
            made += [*quality_plots(results, looks), length_plot(results, looks)]
            made.append(learning_plot(results.groups, results, looks))
        made.append(learning_plot([group for group in study.groups if group.record.mode == "pretrain"], None, looks))
        made += [bench_plot(crossing, looks) for crossing in crossings]
    named: dict[str, Plot] = {}
    for plot in (plot for plot in made if plot is not None):
        taken = sum(name == plot.name or name.startswith(f"{plot.name}--") for name in named)
        name = f"{plot.name}--{taken + 1}" if taken else plot.name
        named[name] = replace(plot, name=name)
    return list(named.values())


def look_of(name: str, looks: Looks) -> dict[str, Any]:
    """Marker, colour and dash of a group or mechanism: the same name looks the same in all plots."""
    place = len(looks)
    style = {"marker": MARKERS[place % len(MARKERS)], "color": COLOURS[place % 8], "linestyle": LINES[place % 4]}
    return looks.setdefault(name, style)


def canvas(height: float = 4.1, down: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure `height` inches high and its panels, one below the other."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    return figure, list(figure.subplots(down, 1, squeeze=False).flat)


def png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def legend(axes: Axes) -> None:
    """Puts the legend of `axes` below them."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) <= WIDEST else 1
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, frameon=False, fontsize=8.5)


def plain_logs(axis: Any) -> None:
    """Labels a logarithmic axis with plain numbers: 1, 2, 5, 10 …"""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def short(text: str, most: int = 44) -> str:
    """A name for a plot: one line, printable, at most `most` characters."""
    text = "".join(sign if sign.isprintable() else " " for sign in text)
    text = " ".join(text.split()).lstrip("_") or "?"
    return text if len(text) <= most else text[: most - 1] + "…"


def counted(name: str, groups: int, most: int = MOST) -> str:
    """The title `name`, with a remark if not all groups are drawn."""
    return name if groups <= most else f"{name}: the first {most} of {groups} groups"


def quality_plots(results: DatasetResults, looks: Looks) -> list[Plot | None]:
    """Macro-F1 against time and against memory: a plot per device and length."""
    names = ["length", "device", "label", "score", "time_per_epoch", "max_gpu_mem_MiB", "rss_growth_MiB"]
    cells = [
        (group.record.seq_len, json.dumps(group.device, sort_keys=True, default=str), group.label)
        + tuple(MEASURES[name].of(run.record) for name in ("macro_f1", *names[4:]))
        for group in results.groups
        for run in group.runs
    ]
    frame = pd.DataFrame(cells, columns=names)
    devices, made = sorted(frame["device"].unique()), []
    for (length, device), seeds in list(frame.groupby(["length", "device"]))[:MOST_PLACES]:
        suffix = f"-n{length}" if frame["length"].nunique() > 1 else ""
        suffix += f"-device{devices.index(device) + 1}" if len(devices) > 1 else ""
        about = json.loads(device)
        where = f"{length} tokens, {about.get('name') or about.get('kind') or 'device unknown'}"
        for cost in ("time_per_epoch", memory_measure(about.get("kind"))):
            own = seeds[["label", "score", cost]].rename(columns={cost: "cost"}).dropna()
            made.append(quality_against_cost(results, own, cost, where, suffix, looks))
    return made


def pareto_front(means: pd.DataFrame) -> pd.DataFrame:
    """The Pareto front: rows that no other row dominates in (cost, score), sorted by cost."""
    points = [(one.cost, one.score) for one in means.itertuples()]
    kept = [not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points) for x, y in points]
    return means[np.array(kept, bool)].sort_values(["cost", "score"])


def quality_against_cost(
    results: DatasetResults, seeds: pd.DataFrame, cost: str, where: str, suffix: str, looks: Looks
) -> Plot | None:
    """Macro-F1 against a cost: small open markers for seeds, large ones for groups, the Pareto front, the baseline."""
    if seeds.empty:
        return None
    by_label = seeds.groupby("label", sort=False)
    middles = by_label.agg(cost=("cost", "median"), score=("score", "mean"), n=("cost", "size"))
    shown, (figure, (axes,)) = middles.iloc[:MOST], canvas()
    axes.set(xlabel=f"{TITLES[cost]} (less is better)", ylabel="macro-F1 on validation (more is better)")
    axes.set_title(counted(short(f"{results.name}, {where}", 60), len(middles)))
    for label, x, y, _ in shown.itertuples():
        points, look = by_label.get_group(label), {**look_of(label, looks), "linestyle": ""}
        axes.plot(points["cost"], points["score"], **look, markersize=5, markerfacecolor="none", zorder=4)
        axes.plot(x, y, **look, markersize=9, markeredgecolor="black", label=short(label), zorder=5)
    front, baseline = pareto_front(shown), results.baseline
    axes.plot(front.cost, front.score, drawstyle="steps-post", color=SOFT, zorder=2, label="Pareto front")
    axes.margins(x=0.1, y=0.12)
    if seeds["cost"].max() > 8 * seeds["cost"].min() > 0:
        axes.set_xscale("log")
        plain_logs(axes.xaxis)
    if baseline is not None and (height := baseline.stat("macro_f1").mean) is not None:
        low, high = axes.get_ylim()
        axes.axhline(height, color="black", linestyle="--", linewidth=1, label=f"{BASELINE} ({height:.3f})")
        if not low - (high - low) <= height <= high + (high - low):
            axes.set_ylim(low, high)  # the baseline is far away: show it in the legend only
    legend(axes)
    parts = "; ".join(f"{label} {x:.4g} and {y:.3f} (n = {n})" for label, x, y, n in shown.itertuples())
    words = f"Macro-F1 on validation against {TITLES[cost]} on {results.name}, {where}: seeds small, groups large. "
    words += f"Nothing is both cheaper and better than: {', '.join(map(str, front.index))}."
    title = f"Quality against {'time' if cost == 'time_per_epoch' else 'memory'}{suffix.replace('-', ', ')}"
    name, numbers = f"quality_vs_{cost}-{results.slug}{suffix}", f"Median cost and mean macro-F1: {parts}."
    return Plot(name, title, words, numbers, png(figure), results.slug)


def read_curve(run: Run, score: str) -> pd.DataFrame | None:
    """The evaluations of a run in order: `seconds` in training steps, `tokens` seen (no padding), `score`.

    score: the column of metrics.csv to read. None if the file is missing, too large, or has no such numbers.
    """
    file, names = run.folder / "metrics.csv", [score, "step", "time_per_step", "tokens_per_s"]
    try:
        if "metrics.csv" not in run.record.files or file.stat().st_size > LARGEST:
            return None
        frame = pd.read_csv(file, usecols=names).apply(pd.to_numeric, errors="coerce").rename(columns={score: "score"})
    except (OSError, ValueError):
        return None
    frame["seconds"] = frame["step"] * frame["time_per_step"]
    frame["tokens"] = frame["seconds"] * frame["tokens_per_s"]
    frame = frame.replace([np.inf, -np.inf], np.nan).dropna(subset=["score", "seconds"])
    return None if frame.empty else frame


def learning_plot(groups: Sequence[Group], results: DatasetResults | None, looks: Looks) -> Plot | None:
    """Macro-F1 over time and over tokens, a line per seed; the loss for pretraining (results None). None: no curves."""
    score, about = (
        ("macro_f1", "macro-F1 on validation") if results else ("val_loss", "validation loss (less is better)")
    )
    title = f"{results.name}: fine-tuning" if results else "Pretraining (masked language modelling)"
    runs = [(group.label, run) for group in groups[:MOST_CURVES] for run in group.runs]
    found = [(label, curve) for label, run in runs if (curve := read_curve(run, score)) is not None]
    if not found:
        return None
    figure, panels = canvas(6.4, down=2)
    units = {"seconds": ("time in training steps, minutes", 60.0), "tokens": ("tokens seen, millions", 1e6)}
    for axes, (way, (xlabel, divisor)) in zip(panels, units.items()):
        axes.set(xlabel=xlabel, ylabel=about)
        for place, (label, curve) in enumerate(found):
            name = None if place and found[place - 1][0] == label else short(label)
            axes.plot(curve[way] / divisor, curve["score"], **look_of(label, looks), markersize=4.5, label=name)
    panels[0].set_title(counted(short(title, 44), len(groups), MOST_CURVES))
    legend(panels[0])
    ends = [f"{label} from {curve['score'].iloc[0]:.3f} to {curve['score'].iloc[-1]:.3f}" for label, curve in found]
    words = f"{title}: {about}, over time and over tokens; a line per seed."
    numbers = f"First and last: {'; '.join(ends)}."
    name, own = (f"learning-{results.slug}", results.slug) if results else ("pretraining", None)
    return Plot(name, "Learning curves", words, numbers, png(figure), own)


def length_plot(results: DatasetResults, looks: Looks) -> Plot | None:
    """Time per epoch of groups that differ only in length; None if no group was run at two lengths."""
    rows = []
    for group in results.groups:
        length = group.record.seq_len
        name = " ".join(word for word in group.label.split() if word != f"n{length}")
        rows += [(_family(group), name, length, "s per epoch", time) for time in group.values("time_per_epoch")]
    words = f"Time per epoch against sequence length on {results.name}: medians, and the single runs."
    title = f"{short(results.name)}: cost against length"
    return _over_length(rows, f"cost_vs_length-{results.slug}", title, words, looks, results.slug)


def bench_plot(one: Crossover, looks: Looks) -> Plot | None:
    """Time and peak memory of a training step against length, measured by mode=bench."""
    units = {"training_ms": "ms per step", "training_MiB": "MiB"}
    rows = [
        (mechanism, mechanism, length, unit, value)
        for (mechanism, length), row in one.rows.items()
        for measure, unit in units.items()
        if (value := number(row.get(measure)))
    ]
    title = f"A training step in {one.dtype}, position {one.position}"
    words = f"{title}, interleaved (mode=bench, {one.bench.place})."
    return _over_length(rows, slug(f"step-{one.bench.folder.name}"), title, words, looks)


def _over_length(
    rows: list[Any], name: str, title: str, words: str, looks: Looks, dataset: str | None = None
) -> Plot | None:
    """Costs against length, log-log, a panel per unit. rows: (line, name, length, unit, value).

    Lines with a single length are left out.
    """
    frame = pd.DataFrame(rows, columns=["line", "name", "length", "unit", "value"])
    frame = frame[frame.groupby("line")["length"].transform("nunique") > 1] if len(frame) else frame
    if frame.empty:
        return None
    units, lengths = list(frame["unit"].unique()), sorted(frame["length"].unique())
    figure, panels = canvas(1.7 + 2.4 * len(units), down=len(units))
    parts = []
    for axes, unit in zip(panels, units):
        lines = frame[frame["unit"] == unit].groupby("line", sort=False)
        for line in [key for key, _ in lines][:MOST]:
            points = lines.get_group(line)
            label, middle = points["name"].iloc[0], points.groupby("length")["value"].median()
            look = look_of(label, looks)
            axes.plot(middle.index, middle, **look, label=short(label))
            axes.plot(points["length"], points["value"], "o", color=look["color"], markersize=4, markerfacecolor="none")
            ends = [f"{middle[length]:.3g} {unit} at {length:,.0f}" for length in (middle.index[0], middle.index[-1])]
            parts.append(f"{label} {' and '.join(ends)} tokens")
        axes.set(xscale="log", yscale="log", ylabel=unit)
        axes.set_xticks(lengths, [f"{length:,.0f}" for length in lengths])
        axes.xaxis.set_minor_locator(NullLocator())
        plain_logs(axes.yaxis)
    panels[-1].set_xlabel("sequence length, tokens")
    panels[0].set_title(title)
    legend(panels[0])
    return Plot(name, "Cost against length", words, f"{'; '.join(parts)}.", png(figure), dataset)


def _family(group: Group) -> str:
    """Equal for groups that differ only in the length and the micro-batch that depends on it."""
    device = {name: value for name, value in group.device.items() if name not in ("micro_batch", "micro_tokens")}
    own = {name: value for name, value in group.key.items() if not name.endswith("seq_len") and "micro" not in name}
    return json.dumps([own, device], sort_keys=True, default=str)

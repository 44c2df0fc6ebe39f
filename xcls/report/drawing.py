"""What all plots share: a finished plot, the looks of groups, canvas, legend, names that can be drawn."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Sequence

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Okabe & Ito, darker.
COLOURS = "#0072B2 #B84A00 #00734D #A3417F #7A5C00 #2B6F93 #000000 #7A5195".split()
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "p")
LINES = ("-", "--", "-.", ":")
MOST = 12  # groups in one plot, the best ranked ones; the tables have them all
SOFT = "#555555"
WIDTH = 5.8  # inches: two plots beside each other on a desk, one on a phone, its text still to be read
DPI = 160
WIDEST = 28  # signs of a name in a legend of two columns
SETTINGS: Any = {
    "text.parse_math": False,  # a name with a $ in it is a name
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same everywhere
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Plot:
    """A finished plot: what it shows, its numbers for someone who cannot see it, and in whose section it stands."""

    name: str
    title: str
    words: str
    numbers: str
    image: bytes
    board: str | None = None


class Looks:
    """Gives every name its looks, in the order in which names come: the same name looks the same everywhere."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def of(self, name: str) -> dict[str, Any]:
        """The looks of the group or mechanism `name`, as matplotlib's `plot` takes them."""
        place = self._places.setdefault(name, len(self._places))
        return {
            "marker": MARKERS[place % len(MARKERS)],
            "color": COLOURS[place % len(COLOURS)],
            "linestyle": LINES[place % len(LINES)],
        }


def canvas(size: tuple[float, float] = (WIDTH, 4.1), across: int = 1, down: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of `size` inches and its panels, row by row."""
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    return figure, list(figure.subplots(down, across, squeeze=False).flat)


def png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def key(axes: Axes, handles: Sequence[Any] = ()) -> None:
    """The legend, below the axes: of everything that is drawn and named in them, then of `handles`."""
    every = [*(handle for handle in axes.get_legend_handles_labels()[0] if handle not in handles), *handles]
    if every:
        columns = 2 if max(len(handle.get_label()) for handle in every) <= WIDEST else 1
        axes.figure.legend(handles=every, loc="outside lower left", ncols=columns, frameon=False, fontsize=8.5)


def plain_logs(axis: Any) -> None:
    """A logarithmic axis with its numbers written out: 1, 2, 5, 10 …"""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def short(text: str, most: int = 44) -> str:
    """A name as a plot can show it: one line, printable, not too long."""
    text = "".join(sign if sign.isprintable() else " " for sign in text)
    text = " ".join(text.split()).lstrip("_") or "?"
    return text if len(text) <= most else text[: most - 1] + "…"


def drawable(text: str) -> bool:
    """Whether the plots' font has every sign of `text`; Chinese and emoji would be boxes."""
    font = get_font(findfont(FontProperties(family=SETTINGS["font.family"])))
    return all(sign.isspace() or font.get_char_index(ord(sign)) for sign in text)


def counted(name: str, groups: int, most: int = MOST) -> str:
    """A title that says where groups are left out."""
    return name if groups <= most else f"{name}: the first {most} of {groups} groups"

"""How the plots look: one marker, colour and dash per group in all of them, names written beside the marks."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Sequence

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.font_manager import FontProperties, findfont, get_font  # noqa: E402
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator  # noqa: E402
from matplotlib.transforms import Bbox  # noqa: E402

COLOURS = (
    "#0072B2",
    "#B84A00",
    "#00734D",
    "#A3417F",
    "#7A5C00",
    "#2B6F93",
    "#000000",
    "#7A5195",
)  # Okabe & Ito, darker
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "p")
LINES = ("-", "--", "-.", ":")
MOST = 12  # groups in one plot, the best ranked ones; the tables have them all
SOFT = "#555555"
WIDTH = 5.8  # inches: two plots beside each other on a desk, one on a phone, its text still to be read
DPI = 160
BEHIND = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}  # a name stands out from lines
SETTINGS = {
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
OFFSETS = [  # points from a mark to its name: left or right of it, above, below, then farther away
    (x * far, y * far)
    for far in (1.0, 1.7, 2.6, 3.6, 4.8)
    for x, y in ((10, 5), (-10, 5), (10, -9), (-10, -9), (0, 11), (0, -15))
]  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """A finished plot: what it shows, its numbers for someone who cannot see it, and in whose section it stands."""

    name: str
    title: str
    words: str
    numbers: str
    image: bytes
    board: str | None = None


@dataclass(frozen=True)
class Style:
    """The looks of one group."""

    marker: str
    colour: str
    line: str


class Looks:
    """Gives every name its looks, in the order in which names come: the same name looks the same everywhere."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def of(self, name: str) -> Style:
        """The looks of the group or mechanism `name`."""
        place = self._places.setdefault(name, len(self._places))
        return Style(MARKERS[place % len(MARKERS)], COLOURS[place % len(COLOURS)], LINES[place % len(LINES)])


def canvas(size: tuple[float, float] = (WIDTH, 4.1), across: int = 1, down: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of `size` inches and its panels, row by row."""
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    return figure, list(figure.subplots(down, across, squeeze=False).flat)


def png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def short(text: str, most: int = 44) -> str:
    """A name as a plot can show it: one line, printable, not too long."""
    text = "".join(sign if sign.isprintable() else " " for sign in text)
    text = " ".join(text.split()).lstrip("_") or "?"
    return text if len(text) <= most else text[: most - 1] + "…"


def drawable(text: str) -> bool:
    """Whether the plots' font has every sign of `text`; Chinese and emoji would be boxes."""
    font = get_font(findfont(FontProperties(family=SETTINGS["font.family"])))
    return all(sign.isspace() or font.get_char_index(ord(sign)) for sign in text)


def counted(name: str, groups: int) -> str:
    """A title that owns up to leaving groups out."""
    return name if groups <= MOST else f"{name}: the first {MOST} of {groups} groups"


def name_marks(
    axes: Axes, marks: Sequence[tuple[float, float, str, str]], keep_off: Sequence[tuple[float, float]]
) -> None:
    """Writes names beside marks (x, y, name, colour), off one another and, if there is room, off `keep_off`."""
    figure: Any = axes.figure
    figure.draw_without_rendering()  # the axes have their place from here on
    renderer = figure._get_renderer()
    points = axes.transData.transform([(x, y) for x, y, *_ in marks] + list(keep_off))
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in points]
    frame = axes.get_window_extent(renderer)
    for x, y, name, colour in marks:
        best, least = None, float("inf")
        for dx, dy in OFFSETS:
            side = "left" if dx > 0 else "right" if dx < 0 else "center"
            text = axes.annotate(
                short(name), (x, y), xytext=(dx, dy), textcoords="offset points", ha=side, va="baseline", fontsize=9,
                color=colour, bbox=BEHIND, zorder=6,
            )  # fmt: skip
            box = text.get_window_extent(renderer)
            clash = sum(box.overlaps(other) for other in taken) + 2 * (box.x0 < frame.x0 or box.x1 > frame.x1)
            clash += 2 * (box.y0 < frame.y0 or box.y1 > frame.y1)
            if clash < least:
                if best is not None:
                    best.remove()
                best, least = text, clash
            else:
                text.remove()
            if least == 0:
                break
        if best is not None:
            taken.append(best.get_window_extent(renderer))


def plain_logs(axis: Any) -> None:
    """A logarithmic axis with its numbers written out: 1, 2, 5, 10 …"""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def name_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Writes names to the right of lines that end at (x, y, name, colour), one under the other where they are close."""
    if not ends:
        return
    axes.figure.draw_without_rendering()
    height = 13.0 * axes.figure.dpi / 72  # pixels of a line of text
    placed = sorted((axes.transData.transform((x, y))[1], x, y, name, colour) for x, y, name, colour in ends)
    levels: list[float] = []
    for level, *_ in placed:
        levels.append(max(level, levels[-1] + height) if levels else level)
    surplus = max(0.0, levels[-1] - max(axes.get_window_extent().y1, placed[-1][0]))
    for level, (own, x, y, name, colour) in zip(levels, placed):
        shift = (level - surplus - own) * 72 / axes.figure.dpi
        axes.annotate(
            short(name, 30), (x, y), xytext=(7, shift - 3), textcoords="offset points", fontsize=8.5, color=colour,
            bbox=BEHIND, annotation_clip=False,
        )  # fmt: skip


def key(axes: Axes, handles: Sequence[Any] = (), columns: int = 2) -> None:
    """The legend, below the axes: of `handles`, else of everything that is drawn and named."""
    handles = list(handles) or axes.get_legend_handles_labels()[0]
    if handles:
        axes.figure.legend(handles=handles, loc="outside lower left", ncols=columns, frameon=False, fontsize=8.5)

"""The parts a page is made of, as HTML. Everything that comes from outside is escaped here and nowhere else."""

from __future__ import annotations

import base64
import re
from html import escape as escape_html
from typing import Any, Sequence

from xcls.report.plot_style import DPI, Plot
from xcls.report.sheet import Sheet
from xcls.report.verdict import FAIL, MISSING, PASS, UNDECIDED

STATES = {PASS: PASS, FAIL: FAIL, MISSING: MISSING, UNDECIDED: MISSING, "cannot tell": MISSING}  # words that get a sign: the class of each
SIGNS = {PASS: "✓", FAIL: "✗", MISSING: "?"}
NONE = "–"
MOST_ROWS = 400
WIDE = 14  # columns from which on a table is printed small
WIDER = 20  # … and from which on smaller still
FEW = 20  # rows up to which a table is not broken over two sheets of paper: its caption stays with it
LONG = 48  # signs from which on a cell is broken into lines
UNSEEN = dict.fromkeys(
    [*range(9), 11, 12, *range(14, 32), 127, 0x202A, 0x202B, 0x202D, 0x202E], "\N{REPLACEMENT CHARACTER}"
)
NUMBER = re.compile(r"[-+−]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?(e[-+]?\d+)?(?=$|[\s×%*±(])", re.IGNORECASE)
ASIDE = re.compile(r"([^()]+) (\([^()]*\))")  # a number and what stands in brackets behind it


def escape(text: Any) -> str:
    """Text as HTML shows it; control signs, and those that turn the writing around, become visible."""
    return escape_html(str(text).translate(UNSEEN))


def note(text: str) -> str:
    """A small remark."""
    return f'<p class="note">{escape(text)}</p>'


def folded(title: str, inside: str, *, opened: bool = False, prints: bool = False) -> str:
    """HTML behind a title. `prints`: paper shows it."""
    marks = (' class="prints"' if prints else "") + (" open" if opened else "")
    return f"<details{marks}><summary>{escape(title)}</summary>{inside}</details>"


def figure(plot: Plot) -> str:
    """A plot, what it shows below it, and that with its numbers as its alternative text."""
    data = base64.b64encode(plot.image).decode()
    width, height = (
        round(int.from_bytes(plot.image[at : at + 4], "big") * 96 / DPI) for at in (16, 20)
    )  # the PNG's header
    alt = f"{escape(plot.words)} {escape(plot.numbers)}"
    image = f'<img alt="{alt}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'
    return f'<figure id="{escape(plot.name)}">{image}<figcaption>{escape(plot.words)}</figcaption></figure>'


def sheet_table(sheet: Sheet) -> str:
    """The table of a sheet, numbers shown with four digits and sorted by all of them."""
    header = sheet.header
    rows = [[row.get(name) for name in header] for row in sheet.rows]
    return table(header, rows, sheet.words, file=f"{sheet.name}.csv")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str, *, file: str = "results.csv") -> str:
    """A table that sorts, in a box of its own that scrolls. Cells are text or values; the first one names its row.

    A page can be read with so many rows and no more: the caption says how many are only in `file`.
    """
    if len(rows) > MOST_ROWS:
        caption = f"{caption} The first {MOST_ROWS} of {len(rows):,} rows; all are in {file}."
        rows = rows[:MOST_ROWS]
    numeric = [_numeric([row[column] for row in rows]) for column in range(len(header))]
    head = "".join(
        f'<th scope="col"{" class=num" if number else ""}>{escape(_title(name))}</th>'
        for name, number in zip(header, numeric)
    )
    lines = []
    for row in rows:
        cells = [_cell(cell, number, first=column == 0) for column, (cell, number) in enumerate(zip(row, numeric))]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    wide = (" wide" if len(header) >= WIDE else "") + (" wider" if len(header) >= WIDER else "")
    wide += " few" if len(rows) <= FEW else ""
    return (
        f'<div class="scroll{wide}" role="region" aria-label="{escape(caption)}" tabindex="0"><table class="sorts">'
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>{head}</tr></thead>"
        f"<tbody>\n{chr(10).join(lines)}\n</tbody></table></div>"
    )


def badge(text: str) -> str:
    """PASS, FAIL, MISSING and the like with a sign, so that colour is not needed."""
    return f'<b class="{STATES[text]}">{SIGNS[STATES[text]]} {escape(text)}</b>'


def _title(name: str) -> str:
    """A column's name; a long one may be broken."""
    return name.replace("_", "_\u200b").replace(".", ".\u200b") if len(name) > 14 else name


def _cell(value: Any, numeric: bool, *, first: bool) -> str:
    text = shown(value)
    kind, end = ('th scope="row"', "th") if first else ("td", "td")
    if text in STATES:
        return f"<{kind}>{badge(text)}</{end}>"
    sorts = sort_value(value) if numeric else None
    marks = ' class="num"' if numeric else ' class="long"' if len(text) > LONG and not first else ""
    marks += "" if sorts is None else f' data-v="{sorts!r}"'
    aside = ASIDE.fullmatch(text) if numeric else None
    inside = escape(text) if aside is None else f"{escape(aside.group(1))} <small>{escape(aside.group(2))}</small>"
    return f"<{kind}{marks}>{inside}</{end}>"


def shown(value: Any) -> str:
    """A value as a table shows it: four digits of a number, a dash for what is missing."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if 10_000 <= abs(value) < 1e12 else f"{value:.4g}"
    return str(value)


def sort_value(value: Any) -> float | None:
    """The number that a cell begins with, None where it begins with none (`0.677 ± 0.019` is 0.677)."""
    if isinstance(value, (int, float)):
        return float(value) if abs(value) < 1e300 else None
    found = NUMBER.match(str(value))
    return float(found.group().replace(",", "").replace("−", "-")) if found else None


def _numeric(values: Sequence[Any]) -> bool:
    """Whether a column holds numbers, and nothing else but gaps."""
    filled = [value for value in values if shown(value) not in ("", NONE)]
    return bool(filled) and all(sort_value(value) is not None for value in filled)

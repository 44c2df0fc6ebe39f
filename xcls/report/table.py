"""Tables as data, written as CSV, Markdown or cells of the page; and numbers as text."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import Any, Sequence

from xcls.runs.record import no_formula

NONE = "–"  # a missing value
MOST_ROWS = 400  # of a table on the page
Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A table as data. Values are plain: text, numbers, booleans, None."""

    name: str  # of the file `<name>.csv`
    title: str  # the heading on the page
    rows: Sequence[Row]
    columns: Sequence[str] = ()  # their order; empty: the order in which they occur in the rows

    @property
    def header(self) -> list[str]:
        """The columns in order."""
        return list(self.columns) or list(dict.fromkeys(name for row in self.rows for name in row))

    @property
    def csv(self) -> str:
        """CSV text, missing values empty; the same rows give the same bytes."""
        out, header = io.StringIO(), self.header
        lines: list[list[Any]] = [header, *([row.get(column) for column in header] for row in self.rows)]
        csv.writer(out, lineterminator="\n").writerows([_cell(value) for value in line] for line in lines)
        return out.getvalue()

    @property
    def markdown(self) -> str:
        """Markdown text with aligned columns."""
        cells = [self.header, *self.texts(self.rows)]
        cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in cells]
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in cells]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join(lines)

    @property
    def caption(self) -> str:
        """The caption on the page; it says if only the first MOST_ROWS rows are shown."""
        whole = f"The first {MOST_ROWS} of {len(self.rows):,} rows; all are in {self.name}.csv."
        return self.title if len(self.rows) <= MOST_ROWS else f"{self.title} {whole}"

    @property
    def shown(self) -> list[list[str]]:
        """The cells of the rows that the page shows."""
        return self.texts(self.rows[:MOST_ROWS])

    def texts(self, rows: Sequence[Row]) -> list[list[str]]:
        """The cells of `rows` as texts."""
        return [[shown(row.get(name)) for name in self.header] for row in rows]

    def where(self, wanted: Row) -> Table:
        """The rows with the values `wanted`, without those columns and without empty columns."""
        rows = [row for row in self.rows if all(row.get(name) == value for name, value in wanted.items())]
        kept = [name for name in self.header if name not in wanted and any(_cell(row.get(name)) for row in rows)]
        return Table(self.name, self.title, rows, kept)


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return no_formula(value or "")
    if isinstance(value, float):
        return "" if value != value else repr(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)  # true, [0, 1], 12


def shown(value: Any) -> str:
    """A value as text: four significant digits for a number, a dash if it is missing."""
    if value is None or value != value:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if 10_000 <= abs(value) < 1e12 else f"{value:.4g}"
    return str(value)


def signed(value: float | None) -> str:
    """`+5.02` percentage points."""
    return NONE if value is None else f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")


def amount(value: float | None) -> str:
    """A number with three significant digits, or whole from 1,000 on."""
    return NONE if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

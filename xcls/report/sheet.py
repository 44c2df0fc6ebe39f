"""A table of the report as data. The CSV files and the page are made of these, whatever they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence


@dataclass(frozen=True)
class Sheet:
    """Rows with a title and an explanation. Values are plain: text, numbers, booleans, None for what is missing."""

    name: str  # of the file `<name>.csv`
    title: str  # the heading on the page
    words: str  # what a row is and how to read it, in a sentence or two
    rows: Sequence[dict[str, Any]]
    columns: Sequence[str] = ()  # their order; where it is not given, the order in which the rows bring them
    board: str | None = None  # the board (its slug) in whose section it stands; None: a section of its own
    folded: bool = False  # on the page, behind its title
    on_page: bool = True  # False: a file only
    in_report: Sequence[str] = ()  # columns of a table over all boards that report.md shows too

    @property
    def header(self) -> list[str]:
        """The columns in order."""
        return list(self.columns) or list(dict.fromkeys(name for row in self.rows for name in row))

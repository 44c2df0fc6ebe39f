"""Readers of tables, piece by piece: csv, tsv, jsonl, json (these also as .gz), parquet and Arrow.

Every problem in a file raises a UserError that names the file, the row and the remedy.
"""

from __future__ import annotations

import csv
import re
import sys
import unicodedata
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Sequence

from xcls.config.schema import UserError, nearest
from xcls.data.json_rows import json_rows
from xcls.data.text_file import open_text, raw_lines

PIECE = 1000  # rows of a piece, at most
CHARACTERS = 4_000_000  # of a piece, about


# Words that stand for a character.
SIGNS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " ", "backslash": "\\"}
RETURN = "\ue00d"  # a private-use character, in place of a carriage return within a line
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # Excel's first line


@dataclass(frozen=True)
class Format:
    """How a table of text is written.

    `separator=None`: a comma, or a tab in .tsv, or the one that a first line `sep=;` names. `escape`: the next
    character is taken literally. `header`: true if the first line names the columns, or a list of names; with false
    they are called 1, 2, ….
    """

    separator: str | None = None
    quotes: bool = True
    encoding: str = "utf-8"
    header: bool | Sequence[str] = True
    escape: str | None = None


def sign(key: str, value: str | None) -> str | None:
    """One character from the setting `key`, which may be written as a word (tab, semicolon, …). Raises UserError."""
    value = SIGNS.get(value or "", value)
    if value is not None and (len(value) != 1 or value in '"\r\n'):
        raise UserError(f"{key}={value!r}: give one character (no quote, no line break), or one of {', '.join(SIGNS)}.")
    return value


@dataclass
class Table:
    """Columns of equal length, the place of each row in its file (`line 7`), and notes about problems in the file."""

    columns: dict[str, list[Any]]
    places: list[str]
    notes: list[str] = field(default_factory=list)


def kind_of(file: Path) -> str:
    """The suffix that tells the format, in lower case, without `.gz`."""
    name = file.name.lower().removesuffix(".gz")
    return Path(name).suffix


def in_pieces(rows: Iterator[tuple[str, Sequence[Any]]], names: Sequence[str]) -> Iterator[Table]:
    """Rows (place, values of `names`) as tables of at most PIECE rows and about CHARACTERS characters."""
    places: list[str] = []
    columns: list[list[Any]] = [[] for _ in names]
    size = 0
    for place, values in rows:
        places.append(place)
        for column, value in zip(columns, values):
            column.append(value)
            size += len(value) if isinstance(value, str) else 8
        if len(places) >= PIECE or size >= CHARACTERS:
            yield Table(dict(zip(names, columns)), places)
            places, columns, size = [], [[] for _ in names], 0
    yield Table(dict(zip(names, columns)), places)


def joined(pieces: Iterable[Table]) -> Table:
    """The tables one below the other."""
    whole = Table({}, [])
    for piece in pieces:
        for name, values in piece.columns.items():
            whole.columns.setdefault(name, []).extend(values)
        whole.places += piece.places
        whole.notes += piece.notes
    return whole


def clean_name(name: str) -> str:
    """The name of a column without spaces around it, with accents in one form (NFC)."""
    return unicodedata.normalize("NFC", name.strip())


class NoColumn(UserError):
    """A column is missing: `found` says so, `existing` are the columns of the file, `hint` says what to try."""

    def __init__(self, file: Path, wanted: str, existing: Sequence[str], hint: str = "") -> None:
        there = ", ".join(repr(name) for name in existing[:20]) + (" …" if len(existing) > 20 else "")
        self.found = f"{file}: no column '{wanted}'. Its columns are {there}.{nearest(wanted, list(existing))}"
        self.existing, self.hint = list(existing), hint
        super().__init__(f"{self.found} {hint or 'Set dataset.text and dataset.label to columns that exist.'}")


def _places(
    file: Path, existing: Sequence[str], wanted: Sequence[str], optional: Sequence[str], hint: Callable[[], str]
) -> dict[str, int]:
    """The positions among `existing` of the columns `wanted`, and of those `optional` that exist. Raises UserError."""
    found = {}
    for name in dict.fromkeys([*wanted, *optional]):
        same = [place for place, other in enumerate(existing) if other == name]
        same = same or [place for place, other in enumerate(existing) if clean_name(other) == clean_name(name)]
        if len(same) > 1:
            raise UserError(f"{file}: {len(same)} columns are called '{name}'. Rename all but one.")
        if not same and name in wanted:
            raise NoColumn(file, name, existing, hint())
        if same:
            found[name] = same[0]
    return found


def _hide_returns(line: str) -> str:
    """Replaces carriage returns within a line by RETURN: the module `csv` refuses them outside of quotes."""
    return re.sub(r"\r(?!\n?\Z)", RETURN, line) if "\r" in line[:-2] else line


class _BadRow(Exception):
    """A row that does not fit the format: its line, and the reason."""


def _separated(file: Path, form: Format, notes: list[str]) -> Iterator[tuple[int, list[str]]]:
    """(first line, fields) of each row that is not empty. Raises _BadRow, UserError."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a document may have any length
    with open_text(file, form.encoding, newline="\n") as stream:
        lines = map(_hide_returns, raw_lines(file, stream, notes))
        first = next(lines, "")
        named = SEPARATOR_LINE.fullmatch(first)
        rows = csv.reader(
            lines if named else chain([first], lines),
            delimiter=form.separator or (named[1] if named else "\t" if kind_of(file) == ".tsv" else ","),
            strict=True,
            quoting=csv.QUOTE_MINIMAL if form.quotes else csv.QUOTE_NONE,
            escapechar=form.escape,
        )
        line = skipped = 1 if named else 0
        try:
            for row in rows:
                start, line = line + 1, rows.line_num + skipped
                if row:
                    yield start, [value.replace(RETURN, "\r") if RETURN in value else value for value in row]
        except csv.Error as error:
            raise _BadRow(line + 1, str(error)) from error


def _rows(file: Path, form: Format, notes: list[str]) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The names of the columns, and the rows, each with one field per column. Raises _BadRow, UserError."""
    rows = _separated(file, form, notes)
    if form.header is True:
        header = next(rows, (0, []))[1]
    else:
        first = next(rows, (0, []))
        header = list(form.header or map(str, range(1, len(first[1]) + 1)))
        rows = rows if first[1] in ([], header) else chain([first], rows)  # skips a line that repeats the names
    return header, _whole(rows, len(header))


def _whole(rows: Iterator[tuple[int, list[str]]], count: int) -> Iterator[tuple[int, list[str]]]:
    for line, row in rows:
        if len(row) == count:
            yield line, row
        elif len(row) > 1 or row[0].strip():  # a line of spaces is not a row
            raise _BadRow(line, f"{len(row)} fields where there are {count} columns")


def _remedy(file: Path, form: Format, wanted: Sequence[str]) -> str:
    """Advice: settings similar to `form` with which the whole file can be read; "" if there are none."""
    for separator in (form.separator, ";", "\t", "|", ","):
        for quotes, escape in ((True, None), (True, "\\"), (False, None)):
            other = replace(form, separator=separator, quotes=quotes, escape=escape)
            if other != form and _readable(file, other, wanted):
                words = {mark: word for word, mark in SIGNS.items() if word.isalpha()}
                changed = {
                    "separator": words.get(separator or ""),
                    "quotes": str(quotes).lower(),
                    "escape": words.get(escape or "", "null"),
                }
                named = [
                    f"dataset.source.{key}={value}"
                    for key, value in changed.items()
                    if getattr(other, key) != getattr(form, key)
                ]
                return f"set {' '.join(named)}: then the whole file can be read."
    return ""


def _readable(file: Path, form: Format, wanted: Sequence[str]) -> bool:
    try:
        header, rows = _rows(file, form, [])
        _places(file, header, wanted, [], str)
        return len(header) > 1 and all(True for _ in rows)
    except (UserError, _BadRow):
        return False


def _read_separated(
    file: Path, form: Format, wanted: list[str], optional: list[str], notes: list[str]
) -> Iterator[Table]:
    def hint() -> str:
        if found := _remedy(file, form, wanted):
            return found.replace("set ", "Set ", 1)
        there = {clean_name(name).casefold() for name in header}
        if form.header is not True or there & {clean_name(name).casefold() for name in (*wanted, *optional)}:
            return ""
        return (
            "Set dataset.text and dataset.label to columns that exist; if the first line is a row already, set "
            "dataset.source.header=false and name them by number (dataset.text=2)."
        )

    try:
        header, rows = _rows(file, form, notes)
        places = _places(file, header, wanted, optional, hint)
        cells = ((f"line {line}", [row[place] for place in places.values()]) for line, row in rows)
        yield from in_pieces(cells, list(places))
    except _BadRow as error:
        line, reason = error.args
        fix = (
            "Put fields that contain the separator into quotes"
            if "fields where" in reason
            else "Correct the quotes there (a quote within a field is doubled)"
        )
        remedy = _remedy(file, form, wanted)
        raise UserError(f"{file}, line {line}: {reason}. {fix}{f', or {remedy}' if remedy else '.'}") from error


def _read_json(file: Path, form: Format, wanted: list[str], optional: list[str], notes: list[str]) -> Iterator[Table]:
    existing: dict[str, None] = {}
    names = list(dict.fromkeys([*wanted, *optional]))
    ours = {clean_name(name): name for name in names}

    def cells(rows: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, list[Any]]]:
        for place, row in rows:
            existing.update(dict.fromkeys(row))
            if not row.keys() >= ours.keys():
                row = {ours.get(clean_name(key), key): value for key, value in row.items()} | row
            yield place, [row.get(name) for name in names]

    with open_text(file, form.encoding, newline="\n") as stream:
        yield from in_pieces(cells(json_rows(file, raw_lines(file, stream, notes))), names)
    if existing:
        _places(file, list(existing), wanted, optional, str)  # checked at the end: any row may add a column


def _read_arrow(file: Path, form: Format, wanted: list[str], optional: list[str], notes: list[str]) -> Iterator[Table]:
    """A parquet file, a stream as `datasets` saves it, or an Arrow (Feather) file."""
    import pyarrow as pa

    row = 0
    try:
        with _arrow_batches(file) as (existing, batches):
            names = {name: existing[place] for name, place in _places(file, existing, wanted, optional, str).items()}
            for whole in batches(list(names.values())):
                for start in range(0, len(whole), PIECE):
                    columns = whole.slice(start, PIECE).to_pydict()
                    size = min(PIECE, len(whole) - start)
                    places = [f"row {number}" for number in range(row + 1, row + 1 + size)]
                    row += size
                    yield Table({name: columns[theirs] for name, theirs in names.items()}, places)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: a column holds bytes that are not UTF-8 text ({error}). Save it as text.") from error
    except (pa.ArrowException, OSError) as error:
        cause = str(error).splitlines()[0]
        raise UserError(f"{file}: the file is damaged or cut off ({cause}). Copy it again.") from error


@contextmanager
def _arrow_batches(file: Path) -> Iterator[tuple[list[str], Callable[[list[str]], Iterator[Any]]]]:
    """The names of the columns, and a function that returns the batches of some columns."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    if kind_of(file) == ".parquet":
        with parquet.ParquetFile(file, buffer_size=1 << 20) as table:
            about = table.metadata
            size = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
            most = min(max(CHARACTERS * about.num_rows // max(size, 1), 1), PIECE)
            yield table.schema_arrow.names, lambda columns: table.iter_batches(most, columns=columns)
        return
    with pa.memory_map(str(file)) as source:
        opened = pa.ipc.open_file(source) if source.read(6) == b"ARROW1" else None
        source.seek(0)
        reader = opened or pa.ipc.open_stream(source)
        batches = map(opened.get_batch, range(opened.num_record_batches)) if opened else reader
        yield reader.schema.names, lambda columns: (batch.select(columns) for batch in batches)


READERS: dict[str, Callable[[Path, Format, list[str], list[str], list[str]], Iterator[Table]]] = {
    ".csv": _read_separated,
    ".tsv": _read_separated,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_arrow,
    ".arrow": _read_arrow,
}

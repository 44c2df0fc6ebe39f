"""How each kind of table is read: csv, tsv, jsonl, json, parquet, the text ones also as .gz, a piece at a time.

Whatever is wrong with a file ends in a UserError that names the file, the row and the remedy.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Callable, Iterator, Sequence

from xcls.schema import UserError, nearest

PIECE = 1000  # rows of a piece, at most
CHARACTERS = 4_000_000  # of a piece, about


@dataclass(frozen=True)
class Format:
    """How a table of text is written. `separator=None` takes a comma, or a tab in .tsv; `header` names the columns of a
    file that has no such line."""

    separator: str | None = None
    quotes: bool = True
    encoding: str = "utf-8"
    header: list[str] | None = None


@dataclass
class Table:
    """Columns of equal length, the place of each row in its file (`line 7`), and what was odd about the file."""

    columns: dict[str, list[Any]]
    places: list[str]
    notes: list[str] = field(default_factory=list)


def kind_of(file: Path) -> str:
    """The suffix that tells the format, in lower case, `.gz` taken off."""
    name = file.name.lower().removesuffix(".gz")
    return Path(name).suffix


class _Piece:
    """Rows of the named columns as they are collected, and their size in characters."""

    def __init__(self, names: Sequence[str]) -> None:
        self.table = Table({name: [] for name in names}, [])
        self.characters = 0

    def add(self, place: str, values: Sequence[Any]) -> None:
        """Adds one row."""
        self.table.places.append(place)
        for column, value in zip(self.table.columns.values(), values):
            column.append(value)
            self.characters += len(value) if isinstance(value, str) else 8

    @property
    def full(self) -> bool:
        """Whether it is time for the next piece."""
        return len(self.table.places) >= PIECE or self.characters >= CHARACTERS


@contextmanager
def open_text(file: Path, encoding: str) -> Iterator[IO[str]]:
    """The file as text, unpacked if it is .gz. Errors of decoding and unpacking come out as UserError."""
    packed = file.name.lower().endswith(".gz")
    encoding = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    try:
        with (gzip.open if packed else open)(file, "rt", encoding=encoding, newline="") as stream:
            yield stream
    except LookupError as error:
        raise UserError(
            f"dataset.source.encoding={encoding}: no such encoding; utf-8 or latin-1, for example."
        ) from error
    except UnicodeError as error:
        raise UserError(
            f"{file}{_undecodable_line(file, encoding, packed)}: this is not {encoding.removesuffix('-sig')} text. "
            "Convert the file (iconv -f latin1 -t utf-8) or name its encoding, e.g. dataset.source.encoding=latin-1."
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{file}: the gzip file is damaged or cut off ({error}). Copy it again.") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error}).") from error


def _undecodable_line(file: Path, encoding: str, packed: bool) -> str:
    """`, line 7` for the first line that cannot be decoded by itself, or nothing."""
    with (gzip.open if packed else open)(file, "rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode(encoding)
            except UnicodeError:
                return f", line {number}"
    return ""


def missing_column(file: Path, wanted: str, existing: Sequence[str]) -> UserError:
    """The error for a column that is not in the file."""
    there = ", ".join(repr(name) for name in existing[:20]) + (" …" if len(existing) > 20 else "")
    lone = len(existing) == 1 and any(mark in existing[0] for mark in ";\t|,")
    hint = " The file looks separated by another character: set dataset.source.separator." if lone else ""
    return UserError(
        f"{file}: no column '{wanted}'. Its columns are {there}.{nearest(wanted, list(existing))}{hint} "
        "Set dataset.text and dataset.label to columns that exist."
    )


def _chosen(file: Path, existing: Sequence[str], wanted: Sequence[str], optional: Sequence[str]) -> list[str]:
    for name in wanted:
        if name not in existing:
            raise missing_column(file, name, existing)
        if existing.count(name) > 1:
            raise UserError(f"{file}: {existing.count(name)} columns are called '{name}'. Rename all but one.")
    return list(dict.fromkeys([*wanted, *(name for name in optional if name in existing)]))


def _read_separated(
    file: Path, form: Format, wanted: list[str], optional: list[str], notes: list[str]
) -> Iterator[Table]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a document may have any length
    separator = form.separator or ("\t" if kind_of(file) == ".tsv" else ",")
    nul_lines: list[int] = []
    with open_text(file, form.encoding) as stream:
        rows = csv.reader(
            _without_nul(stream, nul_lines),
            delimiter=separator,
            strict=True,
            quoting=csv.QUOTE_MINIMAL if form.quotes else csv.QUOTE_NONE,
        )
        line = 0
        try:
            header = form.header or next(rows, [])
            names = _chosen(file, header, wanted, optional)
            piece, index = _Piece(names), [header.index(name) for name in names]
            line = rows.line_num
            for row in rows:
                first, line = line + 1, rows.line_num
                if not row:
                    continue
                if len(row) != len(header):
                    raise UserError(
                        f"{file}, line {first}: {len(row)} fields where there are {len(header)} columns. Put "
                        f"fields that contain '{separator}' into quotes, or set dataset.source.separator."
                    )
                piece.add(f"line {first}", [row[position] for position in index])
                if piece.full:
                    yield piece.table
                    piece = _Piece(names)
        except csv.Error as error:
            raise UserError(
                f"{file}, line {line + 1}: {error}. Mend the quotes there, or set dataset.source.quotes=false "
                "if quotes have no meaning in this file."
            ) from error
    yield piece.table
    notes += _nul_note(file, nul_lines)


def _without_nul(lines: Iterator[str], found: list[int]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            found.append(number)
            line = line.replace("\0", " ")
        yield line


def _nul_note(file: Path, lines: list[int]) -> list[str]:
    if not lines:
        return []
    return [f"{file}: NUL bytes in {len(lines)} lines (the first is line {lines[0]}), read as spaces."]


def _read_json(
    file: Path, form: Format, wanted: list[str], optional: list[str], notes: list[str]
) -> Iterator[Table]:
    nul_lines: list[int] = []
    existing: dict[str, None] = {}
    names = list(dict.fromkeys([*wanted, *optional]))
    piece = _Piece(names)
    with open_text(file, form.encoding) as stream:
        lines = _without_nul(stream, nul_lines)
        first = next(lines, "")
        if first.lstrip().startswith("["):
            objects = _json_array(file, first + "".join(lines))
        else:
            objects = _json_lines(file, first, lines)
        for place, row in objects:
            existing.update(dict.fromkeys(row))
            piece.add(place, [row.get(name) for name in names])
            if piece.full:
                yield piece.table
                piece = _Piece(names)
    if existing or piece.table.places:
        _chosen(file, list(existing), wanted, optional)  # any row may have a column that the others lack
    yield piece.table
    notes += _nul_note(file, nul_lines)


def _json_lines(file: Path, first: str, rest: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_chain(first, rest), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{file}, line {number}: not JSON ({error.msg}, character {error.pos + 1}). Each line must be "
                'one object, like {"text": "…", "label": "…"}.'
            ) from error
        yield f"line {number}", _object(file, f"line {number}", row)


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _json_array(file: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file}, line {error.lineno}: not JSON ({error.msg}). A list of objects, or one object a line, is needed."
        ) from error
    for number, row in enumerate(rows, 1):
        yield f"row {number}", _object(file, f"row {number}", row)


def _object(file: Path, place: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(
            f'{file}, {place}: an object like {{"text": "…", "label": "…"}} is needed, not {str(row)[:40]!r}.'
        )
    return row


def _read_parquet(
    file: Path, form: Format, wanted: list[str], optional: list[str], notes: list[str]
) -> Iterator[Table]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    row = 0
    try:
        with parquet.ParquetFile(file, buffer_size=1 << 20) as table:
            names = _chosen(file, table.schema_arrow.names, wanted, optional)
            about = table.metadata
            size = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
            most = min(max(CHARACTERS * about.num_rows // max(size, 1), 1), PIECE)
            for batch in table.iter_batches(most, columns=names):
                columns = batch.to_pydict()
                places = [f"row {number}" for number in range(row + 1, row + 1 + len(batch))]
                row += len(batch)
                yield Table({name: columns[name] for name in names}, places)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: a column holds bytes that are no UTF-8 text ({error}). Write the file again from texts.") from error
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{file}: the parquet file is damaged or cut off ({first}). Copy it again.") from error


READERS: dict[str, Callable[[Path, Format, list[str], list[str], list[str]], Iterator[Table]]] = {
    ".csv": _read_separated,
    ".tsv": _read_separated,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}

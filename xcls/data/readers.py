"""Tables and texts from files: csv, tsv, jsonl, json, parquet, txt, the text ones also as .gz.

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
from itertools import islice
from pathlib import Path
from typing import IO, Any, Callable, Iterator, Sequence

from xcls.data.source import at, join_text
from xcls.schema import UserError, nearest

TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
MOST_ENTRIES = 200_000  # below a folder of text


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


def read_table(file: Path, columns: Sequence[str], form: Format = Format(), *, optional: Sequence[str] = ()) -> Table:
    """The named columns of one file, and those of `optional` that it has. Raises UserError."""
    if kind_of(file) not in _READERS:
        raise UserError(
            f"{file}: a file of this kind is not known; one of {', '.join(TABLES)} (or .gz of one) is needed."
        )
    if file.stat().st_size == 0:
        raise UserError(f"{file}: the file is empty. Give a file with rows, or take it away.")
    table = _READERS[kind_of(file)](file, form, list(columns), list(optional))
    if not table.places:
        raise UserError(f"{file}: no rows. Give a file with rows, or take it away.")
    _check_values(file, table)
    return table


def _check_values(file: Path, table: Table) -> None:
    """Refuses lists, objects and bytes in a column; NUL characters in a text become spaces, and a note."""
    found: list[str] = []
    for name, values in table.columns.items():
        for row, value in enumerate(values):
            if isinstance(value, (list, dict, bytes)):
                raise UserError(
                    f"{file}, {table.places[row]}: the column '{name}' holds {type(value).__name__} "
                    f"({str(value)[:40]}), where a text, a number or nothing is needed. Name another column, or write texts."
                )
            if isinstance(value, str) and "\0" in value:
                values[row] = value.replace("\0", " ")
                found.append(table.places[row])
    if found:
        table.notes.append(f"{file}: NUL characters in {len(found)} rows (the first is {found[0]}), read as spaces.")


def read_texts(path: str | Path, text: Sequence[str] = ("text",)) -> list[str]:
    """Documents of a file or folder: a txt file has one a line, a table one a row. Raises UserError."""
    found: list[str] = []
    for file in text_files(path):
        if kind_of(file) == ".txt":
            with open_text(file, "utf-8") as stream:
                found += [line for line in (line.replace("\0", " ").strip() for line in stream) if line]
        else:
            table = read_table(file, text)
            rows = (join_text(parts) for parts in zip(*(table.columns[name] for name in text)))
            found += [row for row in rows if row is not None]
    return found


def text_files(path: str | Path) -> list[Path]:
    """The readable files at `path` (itself, or everything below it), sorted. Raises UserError when there are none."""
    root = at(path)
    if not root.exists():
        raise UserError(f"{path}: no such file or folder (looked at {root.absolute()}).")
    known = (".txt", *TABLES)
    below = [root] if root.is_file() else list(islice(root.rglob("*"), MOST_ENTRIES + 1))
    if len(below) > MOST_ENTRIES:
        raise UserError(f"{root}: more than {MOST_ENTRIES:,} files and folders are below it. Name a smaller folder.")
    files = sorted(file for file in below if kind_of(file) in known and file.is_file()) if below != [root] else below
    if not files:
        raise UserError(f"{root}: nothing to read there; files of the kinds {', '.join(known)} are needed.")
    return files


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


def _read_separated(file: Path, form: Format, wanted: list[str], optional: list[str]) -> Table:
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
            places, columns = [], {name: [] for name in names}
            index = [header.index(name) for name in names]
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
                places.append(f"line {first}")
                for name, position in zip(names, index):
                    columns[name].append(row[position])
        except csv.Error as error:
            raise UserError(
                f"{file}, line {line + 1}: {error}. Mend the quotes there, or set dataset.source.quotes=false "
                "if quotes have no meaning in this file."
            ) from error
    return Table(columns, places, _nul_note(file, nul_lines))


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


def _read_json(file: Path, form: Format, wanted: list[str], optional: list[str]) -> Table:
    nul_lines: list[int] = []
    with open_text(file, form.encoding) as stream:
        lines = _without_nul(stream, nul_lines)
        first = next(lines, "")
        if first.lstrip().startswith("["):
            objects = _json_array(file, first + "".join(lines))
        else:
            objects = _json_lines(file, first, lines)
    existing = list(dict.fromkeys(name for _, row in objects for name in row))
    names = _chosen(file, existing, wanted, optional) if objects else []
    columns = {name: [row.get(name) for _, row in objects] for name in names}
    return Table(columns, [place for place, _ in objects], _nul_note(file, nul_lines))


def _json_lines(file: Path, first: str, rest: Iterator[str]) -> list[tuple[str, dict[str, Any]]]:
    found = []
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
        found.append((f"line {number}", _object(file, f"line {number}", row)))
    return found


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _json_array(file: Path, text: str) -> list[tuple[str, dict[str, Any]]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file}, line {error.lineno}: not JSON ({error.msg}). A list of objects, or one object a line, is needed."
        ) from error
    return [(f"row {number}", _object(file, f"row {number}", row)) for number, row in enumerate(rows, 1)]


def _object(file: Path, place: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(
            f'{file}, {place}: an object like {{"text": "…", "label": "…"}} is needed, not {str(row)[:40]!r}.'
        )
    return row


def _read_parquet(file: Path, form: Format, wanted: list[str], optional: list[str]) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        names = _chosen(file, parquet.read_schema(file).names, wanted, optional)
        columns = parquet.read_table(file, columns=names).to_pydict()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: a column holds bytes that are no UTF-8 text ({error}). Write the file again from texts.") from error
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{file}: the parquet file is damaged or cut off ({first}). Copy it again.") from error
    rows = len(columns[names[0]])
    return Table(columns, [f"row {number}" for number in range(1, rows + 1)])


_READERS: dict[str, Callable[[Path, Format, list[str], list[str]], Table]] = {
    ".csv": _read_separated,
    ".tsv": _read_separated,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}


def text_column(table: Table, names: Sequence[str]) -> list[str | None]:
    """The joined text of each row, None where all of its columns are missing."""
    return [join_text(parts) for parts in zip(*(table.columns[name] for name in names))]


def as_text_columns(names: Sequence[str], texts: list[str | None]) -> dict[str, list[str | None]]:
    """Whole texts as the columns `names`: the first one holds them, the others nothing."""
    return {name: texts if name == names[0] else [None] * len(texts) for name in names}

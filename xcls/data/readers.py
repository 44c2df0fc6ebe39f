"""Tables and texts from files: csv, tsv, jsonl, json, txt (these also as .gz), parquet and Arrow.

A file is read in pieces, so that it need not fit into memory (except a JSON list, which has no lines). Every problem in
a file raises a UserError that names the file, the row and the remedy.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Sequence

from xcls.config.schema import UserError
from xcls.data.class_folder import is_junk
from xcls.data.formats import READERS, Format, Table, in_pieces, joined, kind_of
from xcls.data.source import at, join_text
from xcls.data.text_file import HEAD, refuse_other_kinds, text_lines

if TYPE_CHECKING:
    from xcls.data.reading import Reading

TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow")
MAGIC = {".parquet": "PAR1", ".arrow": "ARROW1"}  # the first bytes of such files
PLAIN = Format()
MOST_ENTRIES = 200_000  # below a folder of text


def read_pieces(
    file: Path, columns: Sequence[str], form: Format = PLAIN, *, optional: Sequence[str] = (), notes: list[str]
) -> Iterator[Table]:
    """The named columns of one file, and those of `optional` that it has, a piece at a time.

    After the last piece, `notes` holds warnings about the file. Raises UserError.
    """
    if kind_of(file) not in READERS:
        _refuse_content(file)
        raise UserError(f"{file}: this kind of file is not known. Give one of {', '.join(TABLES)} (or .gz of one).")
    if file.stat().st_size == 0:
        raise UserError(f"{file}: the file is empty. Give a file with rows, or remove it.")
    _refuse_content(file, own=MAGIC.get(kind_of(file), ""))
    rows, nul, first_nul = 0, 0, ""
    for piece in READERS[kind_of(file)](file, form, list(columns), list(optional), notes):
        rows += len(piece.places)
        found = _check_values(file, piece)
        nul, first_nul = nul + len(found), first_nul or (found or [""])[0]
        yield piece
    if not rows:
        raise UserError(f"{file}: no rows. Give a file with rows, or remove it.")
    if nul:
        notes.append(f"{file}: NUL characters in {nul} rows (the first is {first_nul}), read as spaces.")


def _refuse_content(file: Path, own: str = "") -> None:
    with open(file, "rb") as stream:
        refuse_other_kinds(file, stream.read(HEAD), own=own)


def read_table(file: Path, columns: Sequence[str], form: Format = PLAIN, *, optional: Sequence[str] = ()) -> Table:
    """The named columns of one file, and those of `optional` that it has, as a whole. Raises UserError."""
    notes: list[str] = []
    whole = joined(read_pieces(file, columns, form, optional=optional, notes=notes))
    whole.notes += notes
    return whole


def _check_values(file: Path, table: Table) -> list[str]:
    """Refuses lists, objects and bytes; replaces NUL characters in texts by spaces, and returns the places of those."""
    found: list[str] = []
    for name, values in table.columns.items():
        for row, value in enumerate(values):
            if isinstance(value, (list, dict, bytes)):
                raise UserError(
                    f"{file}, {table.places[row]}: the column '{name}' holds {type(value).__name__} "
                    f"({str(value)[:40]}), where a text, a number or nothing is needed. Name another column, or "
                    "write texts."
                )
            if isinstance(value, str) and "\0" in value:
                values[row] = value.replace("\0", " ")
                found.append(table.places[row])
    return found


def text_pieces(path: str | Path, reading: Reading) -> Iterator[list[str]]:
    """Documents of a file or folder, in pieces: one per line of a .txt file or row of a table. Raises UserError."""
    for file in text_files(path):
        if kind_of(file) == ".txt":
            lines = enumerate(text_lines(file, reading.form.encoding), 1)
            rows = ((f"line {number}", [line.strip()]) for number, line in lines)
            pieces = (table.columns["text"] for table in in_pieces(rows, ["text"]))
        else:
            tables = read_pieces(file, reading.text, reading.form, notes=[])
            pieces = (text_column(table, reading.text) for table in tables)
        for piece in pieces:
            cleaned = (reading.clean(text or "") for text in piece)
            yield [text for text in cleaned if text.strip()]


def text_files(path: str | Path) -> list[Path]:
    """The readable files at `path` (itself, or everything below it), sorted. Raises UserError when there are none."""
    root = at(path)
    if not root.exists():
        raise UserError(f"{path}: no such file or folder (looked at {root.absolute()}).")
    known = (".txt", *TABLES)
    if root.is_file():
        return [root]
    below = list(islice(root.rglob("*"), MOST_ENTRIES + 1))
    if len(below) > MOST_ENTRIES:
        raise UserError(f"{root}: more than {MOST_ENTRIES:,} files and folders are below it. Name a smaller folder.")
    files = sorted(file for file in below if kind_of(file) in known and file.is_file() and not is_junk(file, root))
    if not files:
        raise UserError(f"{root}: no file to read there. Give files of the kinds {', '.join(known)}.")
    return files


def text_column(table: Table, names: Sequence[str]) -> list[str | None]:
    """The joined text of each row, None where all of its columns are missing."""
    return [join_text(parts) for parts in zip(*(table.columns[name] for name in names))]


def as_text_columns(names: Sequence[str], texts: Sequence[str | None]) -> dict[str, list[Any]]:
    """Whole texts as the columns `names`: the first one holds them, the others are None."""
    return {name: list(texts) if name == names[0] else [None] * len(texts) for name in names}

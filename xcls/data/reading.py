"""How a run reads documents: the format of its files and the cleaning of every text. Part of its configuration.

Training, evaluation and prediction use the same `Reading`; so the same text has the same probabilities in all three.
"""

from __future__ import annotations

import csv
import gzip
import os
import re
import shutil
import stat
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator

from xcls.config.schema import UserError
from xcls.data.class_folder import class_pieces
from xcls.data.formats import Format, NoColumn, Table, joined, kind_of
from xcls.data.readers import read_table, text_column
from xcls.data.text_file import text_lines
from xcls.runs.paths import is_stream

ID_COLUMNS = ("id", "ID", "Id")  # columns of row names, if the run's configuration names none


def as_it_is(text: str) -> str:
    """The text, unchanged."""
    return text


@dataclass(frozen=True)
class Reading:
    """`text`: the columns with the text. `form`: the format of tables, and the encoding of .txt files.

    `id`: the column with the names of rows. `clean`: applied to every text; `cleaning`: its name.
    """

    text: list[str]
    form: Format = Format()
    id: str | None = None
    clean: Callable[[str], str] = as_it_is
    cleaning: str = ""

    @property
    def identity(self) -> list[Any]:
        """All settings that change the texts read from a file, as plain values."""
        return [self.text, asdict(self.form), self.cleaning]


@dataclass
class Documents:
    """`texts`: cleaned, '' where there is none; `places`: such as `line 7`; `ids`: row names of the file, or None.

    `notes`: warnings. `format`: a sentence that says how a stream was read.
    """

    texts: list[str]
    places: list[str]
    ids: list[Any] | None = None
    notes: list[str] = field(default_factory=list)
    format: str = ""


def read_documents(source: str | Path, reading: Reading, *, table: bool = False) -> Documents:
    """The documents of a .txt file (one per line), a table (one per row), a folder of .txt files, or a stream.

    A stream is `-` (standard input) or a pipe. Nothing is left out or re-ordered. `table`: input of unknown format is
    read as a table. Raises UserError.
    """
    if str(source) != "-" and not Path(source).exists():
        raise UserError(f"input={source}: no such file (looked at {Path(source).absolute()}).")
    if is_stream(source) or (Path(source).is_file() and not kind_of(Path(source))):
        with _copied(source, reading, table) as (file, as_what):
            try:
                found = _read(file, reading)
            except UserError as error:
                raise UserError(str(error).replace(str(file), str(source))) from error
        found.notes = [text.replace(str(file), str(source)) for text in found.notes]
        found.format = as_what
    else:
        found = _read(Path(source), reading)
    if not found.texts:
        raise UserError(f"input={source}: there are no documents in it.")
    found.texts = [reading.clean(text) for text in found.texts]
    return found


def _read(file: Path, reading: Reading) -> Documents:
    encoding = reading.form.encoding
    if file.is_dir():
        found = joined(class_pieces(file, [""], encoding))
        return Documents(found.columns["text"], found.places)
    if file.stat().st_size == 0:
        raise UserError(f"input={file}: the file is empty. Give one document per line, or a table.")
    if kind_of(file) == ".txt":
        lines = list(text_lines(file, encoding))
        return Documents(lines, [f"line {number}" for number in range(1, len(lines) + 1)])
    found = _table(file, reading)
    named = [found.columns.get(name, []) for name in (reading.id or "", *ID_COLUMNS)]
    ids = next((column for column in named if any(value is not None for value in column)), None)
    return Documents([value or "" for value in text_column(found, reading.text)], found.places, ids, found.notes)


def _table(file: Path, reading: Reading) -> Table:
    """The columns with the texts and the rows' names. Raises UserError."""
    names = [name for name in dict.fromkeys([reading.id, *ID_COLUMNS]) if name and name not in reading.text]
    try:
        return read_table(file, reading.text, reading.form, optional=names)
    except NoColumn as error:
        remedy = error.hint or "If the text is in another column: text=<its name>."
        raise UserError(f"{error.found} The run was trained on the text of that column. {remedy}") from error


@contextmanager
def _copied(source: str | Path, reading: Reading, table: bool) -> Iterator[tuple[Path, str]]:
    """A temporary copy of a stream, with the suffix of its format, and a sentence about the format."""
    with tempfile.TemporaryDirectory(prefix="xcls-") as folder:
        raw = Path(folder) / "documents"
        try:
            with open(raw, "wb") as file:
                if str(source) == "-":
                    shutil.copyfileobj(sys.stdin.buffer, file)
                else:
                    with open(source, "rb") as stream:
                        mode = os.fstat(stream.fileno()).st_mode
                        if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not stream.isatty()):  # /dev/zero has no end
                            raise UserError(f"input={source}: this is a device. Name a file or a pipe.")
                        shutil.copyfileobj(stream, file)
        except OSError as error:
            raise UserError(f"input={source}: cannot be read ({error.strerror or error}).") from error
        kind = _kind(raw, reading, table)
        named = raw.with_name(raw.name + kind)
        yield (
            raw.rename(named),
            f"input={source}: read as {kind.removesuffix('.gz')}"
            + (", one document per line." if kind.startswith(".txt") else "."),
        )


def _kind(file: Path, reading: Reading, table: bool) -> str:
    """The suffix that fits the content; .csv or .tsv where the first line names the columns with the text."""
    with open(file, "rb") as stream:
        start = stream.read(4)
    packed = start.startswith(b"\x1f\x8b")
    if start in (b"PAR1", b"ARRO"):
        return ".parquet" if start == b"PAR1" else ".arrow"
    try:
        with (gzip.open if packed else open)(
            file, "rt", encoding=reading.form.encoding, errors="replace", newline=""
        ) as stream:
            line = next((line for line in stream if line.strip()), "").lstrip("\ufeff")
    except (LookupError, OSError, EOFError):
        line = ""  # the reader will report the error
    kind = ".csv" if table else ".txt"
    if re.match(r'\s*\{\s*("|$)', line):
        kind = ".jsonl"
    elif re.match(r"\s*\[\s*(\{|$)", line):
        kind = ".json"
    else:
        for mark, suffix in ((reading.form.separator, ".csv"), (",", ".csv"), ("\t", ".tsv")):
            fields = next(csv.reader([line], delimiter=mark), []) if mark else []
            if fields and set(reading.text) <= set(fields) and (reading.form.separator in (None, mark)):
                kind = suffix
                break
    return kind + (".gz" if packed else "")

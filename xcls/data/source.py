"""The interface of a source of text, and what all sources share: the place of files, and the content of a row.

A new data set is one module with a class like those beside this file, one YAML in `conf/dataset/`, and one test. Large
libraries are imported only when rows are made, so that a fingerprint takes milliseconds.
"""

from __future__ import annotations

import hashlib
import math
import os
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Sequence

from xcls.config.schema import UserError
from xcls.data.cache import digest
from xcls.runs.paths import at

if TYPE_CHECKING:
    from xcls.data.reading import Reading
    from xcls.data.rows import Rows


@dataclass
class Splits:
    """The data of a source. Each split has the columns `text` (str or None), `label` (int or None) and `id` (str).

    `validation` is None if a part of train shall be used; `unlabelled` is text only for MLM (labels None). `notes` are
    warnings for the run's record.
    """

    train: Rows
    test: Rows
    classes: list[str]
    validation: Rows | None = None
    unlabelled: Rows | None = None
    notes: list[str] = field(default_factory=list)


class Source(Protocol):
    """A source of text. Its constructor takes, by keyword, `path`, `text`, `label` and its own options."""

    def fingerprint(self) -> str:
        """A hash of the content: equal strings mean equal rows. Fast, and without torch. Raises UserError."""

    def load(self) -> Splits:
        """Reads everything. Raises UserError, with file, row and remedy, for problems that the user can solve."""

    def reading(self) -> Reading:
        """How files of this source are read, also new documents and extra text. Needs neither `path` nor files."""


def where(path: str | None, name: str) -> Path | None:
    """`path`, else `$XCLS_DATA/<name>/` if that exists, else None (the hub). UserError if `path` is not there."""
    if path is not None:
        found = at(path)
        if not found.is_file() and not found.is_dir():
            hub = (
                f" A data set of the hub: dataset.source.hub_id={path}, without dataset.path."
                if name != "files"
                else ""
            )
            raise UserError(f"dataset.path={path}: no such file or folder (looked at {found.absolute()}).{hub}")
        return found
    shelf = os.environ.get("XCLS_DATA")
    return at(shelf) / name if shelf and (at(shelf) / name).exists() else None


def files_digest(files: Sequence[Path], options: Sequence[Any] = (), *, root: Path | None = None) -> str:
    """sha256 of the contents of `files`, in order, and of `options` that change the rows.

    If `root` is a folder, the files' names relative to it count as well, because splits and classes depend on them.
    """
    contents = []
    for file in files:
        with open(file, "rb") as stream:
            total = hashlib.sha256()
            while block := stream.read(1 << 20):
                total.update(block)
        named = root is not None and root.is_dir()
        name = unicodedata.normalize("NFC", os.path.relpath(file, root).replace(os.sep, "/")) if named else ""
        contents.append([name, total.hexdigest()])
    return digest([contents, list(options)])


def data_fingerprint(source: Source, extra: Sequence[str] = ()) -> str:
    """The fingerprint of a run's data: that of the source, and the contents of the files under `extra`."""
    from xcls.data.readers import text_files

    if not extra:
        return source.fingerprint()
    return digest([source.fingerprint(), files_digest([file for path in extra for file in text_files(path)])])


def as_columns(names: Any, key: str = "dataset.text") -> list[str]:
    """One column name or a list of them, as a list. Raises UserError for anything else."""
    columns = names if isinstance(names, list) else [names]
    columns = [
        str(column) if isinstance(column, int) and not isinstance(column, bool) else column for column in columns
    ]
    if not columns or not all(isinstance(column, str) and column for column in columns):
        raise UserError(f"{key}={names!r}: give the name of a column, or a list of names.")
    return columns


def is_missing(value: Any) -> bool:
    """None, NaN, or nothing but white space."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def writable(text: str) -> str:
    """The text, encodable as UTF-8: single halves of surrogate pairs (possible in JSON) become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def join_text(parts: Sequence[Any]) -> str | None:
    """The text of one row: its columns joined by a space, None where all are missing."""
    kept = [str(part) for part in parts if not is_missing(part)]
    return writable(" ".join(kept)) if kept else None

"""A folder per class with a text file per document, the layout of many public archives; and the files to skip there."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Iterable, Iterator, Sequence

from xcls.config.schema import UserError
from xcls.data.formats import Table, in_pieces
from xcls.data.text_file import open_text

JUNK = (
    "__macosx",
    "thumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    "@eadir",
    "lost+found",
    "icon\r",
)
ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # written by `datasets`


def is_junk(path: Path, root: Path) -> bool:
    """Whether the path below `root` is hidden, or was made by an operating system, an archiver or a program."""
    names = [part.lower() for part in path.relative_to(root).parts]
    cached = path.suffix == ".arrow" and path.name.startswith("cache-")
    return cached or names[-1] in ABOUT or any(name.startswith((".", "~$")) or name in JUNK for name in names)


def by_name(root: Path, paths: Iterable[Path]) -> list[Path]:
    """Those of `paths` below `root` that are not junk, in an order that does not depend on how disks store accents."""
    return sorted(
        (path for path in paths if not is_junk(path, root)), key=lambda path: name_below(root, path).split("/")
    )


def name_below(root: Path, path: Path) -> str:
    """The path below `root` with its accents in one form (NFC): disks and archives differ in it."""
    return unicodedata.normalize("NFC", path.relative_to(root).as_posix())


def class_names(folder: Path) -> list[str]:
    """The names of the sub-folders, sorted, without hidden ones."""
    return [entry.name for entry in by_name(folder, folder.iterdir()) if entry.is_dir()]


def class_files(folder: Path, names: Sequence[str]) -> list[tuple[str, Path]]:
    """(class, file) of every .txt file below `folder/<class>/`, sorted; if there is none, files without a suffix.

    Raises UserError for an empty class.
    """
    found = []
    for name in names:
        below = [
            file
            for file in by_name(folder / name, (folder / name).rglob("*"))
            if file.suffix.lower() in (".txt", "") and file.is_file()
        ]
        files = [file for file in below if file.suffix] or below
        if not files:
            raise UserError(f"{folder / name}: no .txt files there; each class folder needs a file per document.")
        found += [(name, file) for file in files]
    return found


def class_pieces(folder: Path, names: Sequence[str], encoding: str = "utf-8") -> Iterator[Table]:
    """The documents in `folder/<name>/**/*.txt`, some at a time, as tables with the columns `text` and `label`.

    The label is the class name. Raises UserError for an empty class.
    """
    files = class_files(folder, names)
    rows = ((name_below(folder, file), [_whole_text(file, encoding), name]) for name, file in files)
    return in_pieces(rows, ["text", "label"])


def _whole_text(file: Path, encoding: str) -> str:
    with open_text(file, encoding) as stream:
        return stream.read().replace("\0", " ")

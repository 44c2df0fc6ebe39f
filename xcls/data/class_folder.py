"""A folder per class with a text file per document, the layout of many public archives."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, Sequence

from xcls.data.formats import CHARACTERS, PIECE, open_text
from xcls.schema import UserError


def class_names(folder: Path) -> list[str]:
    """The sub-folders, sorted; hidden ones left out."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def class_files(folder: Path, names: Sequence[str]) -> list[tuple[str, Path]]:
    """(class, file) of every text file below `folder/<class>/`, sorted. UserError for an empty class."""
    found = []
    for name in names:
        files = sorted((folder / name).rglob("*.txt"))
        if not files:
            raise UserError(f"{folder / name}: no .txt files there; each class folder needs a file per document.")
        found += [(name, file) for file in files]
    return found


def class_pieces(
    folder: Path, names: Sequence[str], encoding: str = "utf-8"
) -> Iterator[tuple[list[str], list[str], list[str]]]:
    """(texts, class names, places) of the documents in `folder/<name>/**/*.txt`, some at a time. UserError for an empty
    class."""
    texts, found, places, size = [], [], [], 0
    for name, file in class_files(folder, names):
        with open_text(file, encoding) as stream:
            texts.append(stream.read().replace("\0", " "))
        found.append(name)
        places.append(file.relative_to(folder).as_posix())
        size += len(texts[-1])
        if len(texts) == PIECE or size >= CHARACTERS:
            yield texts, found, places
            texts, found, places, size = [], [], [], 0
    yield texts, found, places


def read_class_folder(
    folder: Path, names: Sequence[str], encoding: str = "utf-8"
) -> tuple[list[str], list[str], list[str]]:
    """(texts, class names, places) of all of them. UserError for an empty class."""
    pieces = list(class_pieces(folder, names, encoding))
    texts, found, places = ([value for piece in pieces for value in piece[part]] for part in range(3))
    return texts, found, places

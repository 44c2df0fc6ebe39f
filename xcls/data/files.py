"""Text of the user's own: a csv, tsv, jsonl or parquet file, a folder with train and test, or a folder per class."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Iterator

import numpy as np

from xcls.data.cache import build_once, cache_folder, digest
from xcls.data.class_folder import class_files, class_names, class_pieces
from xcls.data.readers import TABLES, Format, Table, as_text_columns, kind_of, read_pieces, text_column
from xcls.data.rows import RowCollector, Rows, RowWriter, read_rows
from xcls.data.source import (
    Splits,
    as_columns,
    check_classes,
    class_order,
    files_digest,
    label_ids,
    name_of_class,
    where,
    writable,
)
from xcls.data.stratify import as_keys, carve, first_alike, text_key
from xcls.schema import UserError

VERSION = 1  # of the rows in the cache folder; goes up when they are read otherwise
NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
    "unlabelled": ("unlabelled", "unlabeled", "unsupervised"),
}
SMALL = 8_000_000  # bytes of files that are read into memory as a whole
ROW_ID = "<row id>"  # a key that no column of a file has


class Files:
    """Rows with the columns `text` (one, or several joined by a space) and `label` (numbers or names).

    `path` is one file, a folder with train[/validation]/test/unlabelled files (`train.csv`, `train-0.parquet`, …), or a
    folder per class with a .txt file per document, by itself or below `train/` and `test/`. Without a test part one is
    carved out: `test_share` of each class, drawn from `test_seed`. `id` names a column with stable row names.
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        text: str | list[str] = "text",
        label: str = "label",
        id: str | None = None,
        separator: str | None = None,
        quotes: bool = True,
        encoding: str = "utf-8",
        test_share: float = 0.2,
        test_seed: int = 0,
    ) -> None:
        root = where(path, "files")
        if root is None:
            raise UserError(
                "dataset=files: which? Set dataset.path=<a csv, tsv, jsonl or parquet file, a folder with "
                "train and test, or a folder per class>."
            )
        if not 0.0 < test_share < 1.0:
            raise UserError(f"dataset.source.test_share={test_share}: a share between 0 and 1 is needed.")
        if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
            raise UserError(f"dataset.source.separator={separator!r}: one character is needed, no quote and no line break.")
        self.root, self.text, self.label, self.id = root, as_columns(text), label, id
        self.form = Format(separator=separator, quotes=quotes, encoding=encoding)
        self.test_share, self.test_seed = test_share, test_seed

    def fingerprint(self) -> str:
        """Of the files' names below `path`, their contents and the options."""
        form = self.form
        return files_digest(
            self._files(),
            [
                self.text,
                self.label,
                self.id,
                form.separator,
                form.quotes,
                form.encoding,
                self.test_share,
                self.test_seed,
            ],
            root=self.root,
        )

    def load(self) -> Splits:
        """Reads all parts, names the classes by those of train, and carves a test part if there is none.

        Rows of larger files are kept in the cache folder, in a form that is read piece by piece, until the files change.
        """
        before = self._stamps()
        if sum(size for size, _ in before.values()) <= SMALL:
            made, about = self._read(None)
        else:
            name = digest([VERSION, self.fingerprint(), str(self.root), list(before)])[:24]

            def build(folder: Path) -> None:
                folder.mkdir()
                _, found = self._read(folder)
                if self._stamps() != before:
                    raise UserError(f"{self.root}: changed while it was read. Start again when nobody writes there.")
                (folder / "about.json").write_text(json.dumps(found), "utf-8")

            folder = build_once(cache_folder() / "rows" / name, build, what=f"the rows of {self.root}")
            about = json.loads((folder / "about.json").read_text("utf-8"))
            made = {split: read_rows(folder / split) for split in about["splits"]}
        notes = list(about["notes"])
        if "test" not in made:
            chosen = self._carve(made["train"])
            made["test"] = made["train"].select(np.flatnonzero(chosen))
            made["train"] = made["train"].select(np.flatnonzero(~chosen))
            notes.append(f"{self.root}: no test part there; {self.test_share:.0%} of each class was set aside as test.")
        return Splits(
            train=made["train"],
            validation=made.get("validation"),
            test=made["test"],
            unlabelled=made.get("unlabelled"),
            classes=about["classes"],
            notes=notes,
        )

    def _carve(self, rows: Rows) -> np.ndarray:
        """bool [R]: the rows that become test. Raises UserError where no class has two texts, so that none can."""
        keys, labels = rows.keys(), rows.labels
        alike = first_alike(keys)
        chosen = carve(labels, self.test_share, seed=self.test_seed, alike=alike)
        whole = (labels >= 0) & ~(keys == as_keys([text_key("")])).all(axis=1)
        if whole.any() and not chosen[whole].any():
            raise UserError(
                f"{self.root}: its {len(rows)} rows are too few to set a test part aside: {len(np.unique(alike[whole]))} different texts "
                "have a label, and no class has two of them. Give two or more texts of each class (and one more for validation), or "
                "a folder with train.csv and test.csv."
            )
        return chosen

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """Size and time of change of every file."""
        return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in self._files()}

    def _files(self) -> list[Path]:
        """Every file that is read, in order."""
        files = []
        for part in self._parts().values():
            for entry in part:
                files += [entry] if entry.is_file() else [file for _, file in class_files(entry, class_names(entry))]
        return files

    def _read(self, folder: Path | None) -> tuple[dict[str, Rows], dict[str, Any]]:
        """The rows of each split, in memory or below `folder`; their classes, and what was odd about the files."""
        classes: list[str] = []  # those of train, which comes first
        made, parts, notes = {}, self._parts(), []
        for split, entries in parts.items():
            keeper = RowCollector() if folder is None else RowWriter(folder / split)
            numbers: dict[str, int] = {}  # of train's classes as they come; they are put in order at the end
            rows = 0
            for piece in self._pieces(split, entries, notes):
                rows += len(piece.places)
                labels = piece.columns[self.label] if split != "unlabelled" else [None] * len(piece.places)
                if split == "train":
                    names = map(name_of_class, labels)
                    ids = [None if name is None else numbers.setdefault(name, len(numbers)) for name in names]
                else:
                    ids = label_ids(labels, classes, where=str(self.root), row_names=piece.places)
                keeper.add(text=text_column(piece, self.text), label=ids, id=piece.columns[ROW_ID])
            if split == "train":
                check_classes(set(numbers), rows, where=str(self.root), label=self.label)
                classes = class_order(set(numbers))
            order = {name: number for number, name in enumerate(classes)}
            made[split] = keeper.rows(np.array([order[name] for name in numbers], np.int64) if numbers else None)
        return made, {"splits": list(parts), "classes": classes, "notes": notes}

    def _parts(self) -> dict[str, list[Path]]:
        """The files, or the folder with class folders, of each split that is there. Raises UserError."""
        if self.root.is_file():
            return {"train": [self.root]}
        entries = sorted(entry for entry in self.root.iterdir() if not entry.name.startswith("."))
        tables = [entry for entry in entries if entry.is_file() and kind_of(entry) in TABLES]
        folders = [entry for entry in entries if entry.is_dir()]
        parts: dict[str, list[Path]] = {}
        for split, names in NAMES.items():
            found = [file for file in tables if file.name.split(".")[0].split("-")[0].lower() in names]
            for folder in folders if not found else ():
                if folder.name.lower() in names:
                    inside = sorted(file for file in folder.iterdir() if file.is_file() and kind_of(file) in TABLES)
                    found = inside or [folder]
            if found:
                parts[split] = found
        if "train" in parts:
            return parts
        if len(tables) == 1:
            return {"train": tables}
        if len(folders) >= 2 and not tables:
            return {"train": [self.root]}
        listing = ", ".join(entry.name for entry in entries[:12]) or "nothing"
        raise UserError(
            f"{self.root}: found {listing}. One table ({', '.join(TABLES)}), a train and a test part, or a "
            "folder per class with .txt files is needed."
        )

    def _pieces(self, split: str, entries: list[Path], notes: list[str]) -> Iterator[Table]:
        """The columns of one split, from tables or from class folders, some rows at a time, with ROW_ID."""
        for entry in entries:
            if entry.is_dir():
                yield from self._folder_pieces(entry)
                continue
            unlabelled = [] if split == "unlabelled" else [self.label]
            wanted = [*self.text, *unlabelled, *([self.id] if self.id else [])]
            seen = [np.empty((0, 2), np.uint64)]
            for piece in read_pieces(entry, wanted, self.form, optional=[self.label], notes=notes):
                if self.id:
                    ids = [writable(str(value)) for value in piece.columns[self.id]]
                    seen.append(as_keys([hash_of(name) for name in ids]))
                else:
                    ids = [writable(f"{entry.name}:{place.split()[-1]}") for place in piece.places]
                piece.columns[ROW_ID] = ids
                piece.columns.setdefault(self.label, [None] * len(piece.places))
                piece.places = [f"{entry.name} {place}" for place in piece.places]
                yield piece
            keys = np.concatenate(seen)
            if (first_alike(keys) != np.arange(len(keys))).any():
                raise UserError(
                    f"{entry}: values of the column '{self.id}' repeat; dataset.source.id needs a column "
                    "with a different value in each row."
                )

    def _folder_pieces(self, folder: Path) -> Iterator[Table]:
        for texts, labels, places in class_pieces(folder, class_names(folder), self.form.encoding):
            ids = [writable(place) for place in places]
            yield Table({**as_text_columns(self.text, texts), self.label: labels, ROW_ID: ids}, places)


def hash_of(name: str) -> bytes:
    """16 bytes that tell row names apart."""
    return hashlib.blake2b(name.encode(), digest_size=16).digest()

"""Text of the user's own: a csv, tsv, jsonl or parquet file, a folder with train and test, or a folder per class."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Iterator

import numpy as np

from xcls.config.schema import Labels, UserError
from xcls.data.cache import build_once, cache_folder, digest
from xcls.data.class_folder import by_name, class_files, class_names, class_pieces
from xcls.data.formats import Format, Table, kind_of, sign
from xcls.data.labels import ClassNames
from xcls.data.readers import TABLES, as_text_columns, read_pieces, text_column
from xcls.data.reading import Reading
from xcls.data.rows import Rows, RowWriter, read_rows
from xcls.data.source import Splits, as_columns, files_digest, where, writable
from xcls.data.stratify import as_keys, carve, first_alike, text_key

VERSION = 2  # of the rows in the cache folder; raise it when files are read in another way
NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
    "unlabelled": ("unlabelled", "unlabeled", "unsupervised"),
}
SMALL = 8_000_000  # bytes; data sets up to this size are read into memory and not cached
SHARD = re.compile(r"\d+-of-\d+")  # in the name of one of several shards
ROW_ID = "<row id>"  # a key that no column of a file has


class Files:
    """Rows with the columns `text` (one, or several joined by a space) and `label` (numbers or names).

    `path` is one file, a folder with train[/validation]/test/unlabelled files (`train.csv`, `train-0.parquet`, …), or a
    folder per class with a .txt file per document, by itself or below `train/` and `test/`. Without a test part,
    `test_share` of each class, drawn from `test_seed`, becomes test. `id` names a column with stable row names.
    `separator` and `escape` may be words (tab, semicolon, backslash); `header`: see `Format`; `labels`: see
    `xcls.config.schema.Labels`.
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        text: str | list[str] = "text",
        label: str | int = "label",
        id: str | int | None = None,
        separator: str | None = None,
        quotes: bool = True,
        escape: str | None = None,
        header: bool | list[str] = True,
        encoding: str = "utf-8",
        test_share: float = 0.2,
        test_seed: int = 0,
        labels: dict[str, Any] | None = None,
    ) -> None:
        if not 0.0 < test_share < 1.0:
            raise UserError(f"dataset.source.test_share={test_share}: a share between 0 and 1 is needed.")
        if header == []:
            raise UserError("dataset.source.header=[]: true, false, or the names of the columns are needed.")
        self.path, self.text, self.label = path, as_columns(text), str(label)
        self.id = None if id is None else str(id)
        self.form = Format(
            separator=sign("dataset.source.separator", separator),
            quotes=quotes,
            encoding=encoding,
            header=header,
            escape=sign("dataset.source.escape", escape),
        )
        self.labels = Labels(**(labels or {}))
        self.test_share, self.test_seed = test_share, test_seed

    @cached_property
    def root(self) -> Path:
        """Where the files are. Raises UserError."""
        root = where(self.path, "files")
        if root is None:
            raise UserError(
                "dataset=files: which? Set dataset.path=<a csv, tsv, jsonl or parquet file, a folder with "
                "train and test, or a folder per class>."
            )
        return root

    def reading(self) -> Reading:
        """How files are read, from the options."""
        return Reading(self.text, self.form, self.id)

    def fingerprint(self) -> str:
        """A hash of the files' names below `path`, their contents and the options."""
        form = self.form
        options: list[Any] = [self.text, self.label, self.id, form.separator, form.quotes, form.encoding]
        options += [self.test_share, self.test_seed]
        later, usual = asdict(form) | asdict(self.labels), asdict(Format()) | asdict(Labels())
        # Newer options count only where they are set, so that other data sets keep their digest.
        options += [[key, later[key]] for key in ("header", "escape", *vars(self.labels)) if later[key] != usual[key]]
        return files_digest(self._files(), options, root=self.root)

    def load(self) -> Splits:
        """Reads all parts, takes the classes from train, and sets a test part aside if there is none.

        Rows of larger files are kept in the cache folder until the files change, and are read from there piece by
        piece.
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
                    raise UserError(
                        f"{self.root}: changed while it was read. Start again when no program writes there."
                    )
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
        """The rows that become test, bool [R]. Raises UserError where no class has two different texts."""
        keys, labels = rows.keys(), rows.labels
        alike = first_alike(keys)
        chosen = carve(labels, self.test_share, seed=self.test_seed, alike=alike)
        whole = (labels >= 0) & ~(keys == as_keys([text_key("")])).all(axis=1)
        if whole.any() and not chosen[whole].any():
            raise UserError(
                f"{self.root}: its {len(rows)} rows are too few to set a test part aside: "
                f"{len(np.unique(alike[whole]))} different texts have a label, and no class has two of them. Give two "
                "or more texts of each class (and one more for validation), or a folder with train.csv and test.csv."
            )
        return chosen

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """Size and time of change of every file."""
        return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in self._files()}

    def _files(self) -> list[Path]:
        """Every file that is read, in order."""
        files = []
        for part in self._parts(self.root).values():
            for entry in part:
                files += [entry] if entry.is_file() else [file for _, file in class_files(entry, class_names(entry))]
        return files

    def _read(self, folder: Path | None) -> tuple[dict[str, Rows], dict[str, Any]]:
        """The rows of each split, in memory or below `folder`; their classes, and notes about problems in the files."""
        names, made, parts = ClassNames(self.labels), {}, self._parts(self.root)
        notes: list[str] = []
        for split, entries in parts.items():
            keeper = RowWriter(None if folder is None else folder / split)
            rows = labelled = 0
            for piece in self._pieces(split, entries, notes):
                rows += len(piece.places)
                labels = piece.columns[self.label] if split != "unlabelled" else [None] * len(piece.places)
                if split == "train":
                    ids = names.add(labels, folder=entries[0].is_dir())
                else:
                    ids = names.ids(labels, where=str(self.root), row_names=piece.places, folder=entries[0].is_dir())
                labelled += sum(number is not None for number in ids)
                keeper.add(text=text_column(piece, self.text), label=ids, id=piece.columns[ROW_ID])
            order = np.array(names.settle(), np.int64) if split == "train" and names.counts else None
            made[split] = keeper.rows(order)
            if split == "train":
                names.check(rows, where=str(self.root), label=self.label)
            elif split != "unlabelled" and not labelled:
                notes.append(
                    f"{self.root}: the {split} part has no labels in '{self.label}', so its {rows} rows are left out."
                )
                del made[split]
        notes += names.notes(str(self.root))
        return made, {"splits": list(made), "classes": names.classes, "notes": notes}

    def _parts(self, root: Path) -> dict[str, list[Path]]:
        """The files, or the folder with class folders, of each split that exists. Raises UserError."""
        if root.is_file():
            return {"train": [root]}
        entries = by_name(root, root.iterdir())
        tables = _tables(entries)
        folders = [entry for entry in entries if entry.is_dir()]
        parts: dict[str, list[Path]] = {}
        for split, names in NAMES.items():
            found = [file for file in tables if file.name.split(".")[0].split("-")[0].lower() in names]
            for folder in folders if not found else ():
                if folder.name.lower() in names:
                    found = _tables(by_name(folder, folder.iterdir())) or [folder]
            if found:
                parts[split] = found
        if "train" in parts:
            return parts
        if len(tables) == 1 or len({SHARD.sub("", file.name) for file in tables}) == 1:
            return {"train": tables}
        if len(folders) >= 2 and not tables:
            return {"train": [root]}
        if len(folders) == 1 and not tables:  # an unpacked archive or a repository has such an outer folder
            return self._parts(folders[0])
        listing = ", ".join(entry.name for entry in entries[:12]) or "nothing"
        raise UserError(
            f"{root}: found {listing}. Give one table ({', '.join(TABLES)}), a train and a test part, or a "
            "folder per class with .txt files."
        )

    def _pieces(self, split: str, entries: list[Path], notes: list[str]) -> Iterator[Table]:
        """The columns of one split, from tables or from class folders, some rows at a time, with ROW_ID."""
        for entry in entries:
            if entry.is_dir():
                yield from self._folder_pieces(entry)
                continue
            labelled = [self.label] if split == "train" else []
            wanted = [*self.text, *labelled, *([self.id] if self.id else [])]
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
        for piece in class_pieces(folder, class_names(folder), self.form.encoding):
            texts, labels = as_text_columns(self.text, piece.columns["text"]), piece.columns["label"]
            yield Table(
                {**texts, self.label: labels, ROW_ID: [writable(place) for place in piece.places]}, piece.places
            )


def _tables(entries: list[Path]) -> list[Path]:
    return [entry for entry in entries if entry.is_file() and kind_of(entry) in TABLES]


def hash_of(name: str) -> bytes:
    """A hash of 16 bytes, different for different row names."""
    return hashlib.blake2b(name.encode(), digest_size=16).digest()

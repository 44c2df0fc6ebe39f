"""Text of the user's own: a csv, tsv, jsonl or parquet file, a folder with train and test, or a folder per class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xcls.data.class_folder import class_files, class_names, read_class_folder
from xcls.data.readers import TABLES, Format, Table, as_text_columns, kind_of, read_table, text_column
from xcls.data.source import (
    Splits,
    as_columns,
    check_classes,
    class_order,
    column,
    files_digest,
    label_ids,
    make_rows,
    name_of_class,
    where,
)
from xcls.data.stratify import carve, first_alike, text_key
from xcls.schema import UserError

if TYPE_CHECKING:
    import datasets

NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
    "unlabelled": ("unlabelled", "unlabeled", "unsupervised"),
}
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
        files = []
        for part in self._parts().values():
            for entry in part:
                files += [entry] if entry.is_file() else [file for _, file in class_files(entry, class_names(entry))]
        form = self.form
        return files_digest(
            files,
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
        """Reads all parts, names the classes by those of train, and carves a test part if there is none."""
        tables = {split: self._read(split, entries) for split, entries in self._parts().items()}
        train = tables["train"]
        names = {name for name in map(name_of_class, train.columns[self.label]) if name is not None}
        check_classes(names, len(train.places), where=str(self.root), label=self.label)
        classes = class_order(names)
        made = {split: self._rows(split, table, classes) for split, table in tables.items()}
        notes = [note for table in tables.values() for note in table.notes]
        if "test" not in made:
            chosen = self._carve(column(made["train"], "text"), column(made["train"], "label"))
            made["test"] = made["train"].select(np.flatnonzero(chosen))
            made["train"] = made["train"].select(np.flatnonzero(~chosen))
            notes.append(f"{self.root}: no test part there; {self.test_share:.0%} of each class was set aside as test.")
        return Splits(
            train=made["train"],
            validation=made.get("validation"),
            test=made["test"],
            unlabelled=made.get("unlabelled"),
            classes=classes,
            notes=notes,
        )

    def _carve(self, texts: list[str | None], labels: list[int | None]) -> np.ndarray:
        """bool [R]: the rows that become test."""
        keys = [text_key(text or "") for text in texts]
        known = np.array([-1 if label is None else label for label in labels], np.int64)
        return carve(known, self.test_share, seed=self.test_seed, alike=first_alike(keys))

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

    def _read(self, split: str, entries: list[Path]) -> Table:
        """The columns of one split, from tables or from class folders."""
        whole = Table({name: [] for name in dict.fromkeys([*self.text, self.label, ROW_ID])}, [])
        for entry in entries:
            if entry.is_dir():
                part = self._read_folder(entry)
            else:
                unlabelled = [] if split == "unlabelled" else [self.label]
                wanted = [*self.text, *unlabelled, *([self.id] if self.id else [])]
                part = read_table(entry, wanted, self.form, optional=[self.label])
                ids = (
                    part.columns[self.id] if self.id else [f"{entry.name}:{place.split()[-1]}" for place in part.places]
                )
                part.columns[ROW_ID] = [str(value) for value in ids]
                if len(set(part.columns[ROW_ID])) < len(ids):
                    raise UserError(
                        f"{entry}: values of the column '{self.id}' repeat; dataset.source.id needs a column "
                        "with a different value in each row."
                    )
                part.columns.setdefault(self.label, [None] * len(part.places))
                part.places = [f"{entry.name} {place}" for place in part.places]
            for name, values in whole.columns.items():
                values += part.columns[name]
            whole.places += part.places
            whole.notes += part.notes
        return whole

    def _read_folder(self, folder: Path) -> Table:
        texts, labels, places = read_class_folder(folder, class_names(folder), self.form.encoding)
        return Table({**as_text_columns(self.text, texts), self.label: labels, ROW_ID: places}, places)

    def _rows(self, split: str, table: Table, classes: list[str]) -> datasets.Dataset:
        """One split as a data set; labels as numbers (none in unlabelled text)."""
        labels = table.columns[self.label] if split != "unlabelled" else [None] * len(table.places)
        ids = label_ids(labels, classes, where=str(self.root), row_names=table.places)
        return make_rows(text=text_column(table, self.text), label=ids, id=table.columns[ROW_ID])

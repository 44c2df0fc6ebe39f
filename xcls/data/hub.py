"""Data sets from the Hugging Face hub, and local folders that have the hub's layout."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Sequence

from xcls.config.schema import UserError
from xcls.data.class_folder import by_name
from xcls.data.formats import Table, joined
from xcls.data.readers import read_table, text_column
from xcls.data.reading import Reading
from xcls.data.rows import make_rows
from xcls.data.source import Splits, as_columns, files_digest, where


class HubSource:
    """A data set of the hub, or a copy of its parquet files (or of the official files) in a folder.

    A subclass sets `name`, `classes` and `reading`, and reads a folder by `folder_tables` and `folder_files`.
    """

    name: str
    classes: list[str]
    splits = ["train", "test"]

    def __init__(self, path: str | None, text: str | list[str], label: str, hub_id: str, revision: str | None) -> None:
        self.path, self.text, self.label = path, as_columns(text), label
        self.hub_id, self.revision = hub_id, revision
        self.options: list[object] = [self.text, self.label]  # of the fingerprint

    @cached_property
    def folder(self) -> Path | None:
        """Where the files are, None for the hub. Raises UserError."""
        return where(self.path, self.name)

    @property
    def columns(self) -> list[str]:
        """The columns of the hub's files that are read."""
        return [*self.text, self.label]

    def reading(self) -> Reading:
        """Tables with the columns `text`."""
        return Reading(self.text)

    def fingerprint(self) -> str:
        """A hash of the files' contents, or of the hub id and revision, and of the options."""
        if self.folder is None:
            return files_digest([], [f"hub:{self.hub_id}@{self.revision or 'main'}", *self.options])
        return files_digest(self.folder_files(self.folder), self.options, root=self.folder)

    def load(self) -> Splits:
        """Reads all splits; `unsupervised` is only text for MLM. Raises UserError."""
        if self.folder is None:
            tables = load_hub(self.hub_id, self.revision, self.columns, self.splits, name=self.name)
        else:
            tables = self.folder_tables(self.folder)
        clean, made = self.reading().clean, {}
        for split, table in tables.items():
            texts = [text and clean(text) for text in text_column(table, self.text)]
            found, name = table.columns[self.label], f"{self.name} {split}"
            labels = coded_labels(found, len(self.classes), where=name, places=table.places)
            made[split] = make_rows(text=texts, label=labels, id=[f"{split}-{row}" for row in range(len(texts))])
        unlabelled = made.get("unsupervised")
        return Splits(train=made["train"], test=made["test"], unlabelled=unlabelled, classes=self.classes)

    def folder_files(self, folder: Path) -> list[Path]:
        """Every file that is read. Raises UserError."""
        raise NotImplementedError

    def folder_tables(self, folder: Path) -> dict[str, Table]:
        """The splits, with the columns `text` and `label`. Raises UserError."""
        raise NotImplementedError


def load_hub(
    hub_id: str, revision: str | None, columns: Sequence[str], splits: Sequence[str], *, name: str
) -> dict[str, Table]:
    """The named splits of a hub data set, from the hub's local cache, else by download.

    Without a network the hub's client tries for half a minute; HF_HUB_OFFLINE=1 avoids that. Raises UserError, which
    says how to get the data.
    """
    from datasets import DatasetDict, load_dataset

    try:
        found = load_dataset(hub_id, revision=revision)
    except (ConnectionError, FileNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"dataset={name}: {hub_id} is not in the local cache, and the hub cannot be reached "
            f"({type(error).__name__}: {str(error).splitlines()[0][:160]}). Give a local copy with "
            f"dataset.path=<folder> or in $XCLS_DATA/{name}/, or run once with a network."
        ) from error
    if not isinstance(found, DatasetDict):
        raise UserError(f"dataset={name}: {hub_id} has no splits; {', '.join(splits)} are needed.")
    tables = {}
    for split in splits:
        if split not in found:
            raise UserError(f"dataset={name}: {hub_id} has no split '{split}', only {', '.join(found)}.")
        for wanted in columns:
            if wanted not in found[split].column_names:
                raise UserError(
                    f"dataset={name}: {hub_id} has no column '{wanted}', only "
                    f"{', '.join(found[split].column_names)}. Set dataset.text and dataset.label."
                )
        rows = found[split]
        tables[split] = Table(
            {wanted: list(rows[wanted]) for wanted in columns}, [f"row {n}" for n in range(1, len(rows) + 1)]
        )
    return tables


def parquet_files(folder: Path, splits: Sequence[str]) -> dict[str, list[Path]]:
    """The parquet files of each split in `folder` or up to two folders below.

    Names: `train.parquet`, `train-00000-of-00002.parquet`, ….
    """
    files = by_name(folder, (file for depth in ("", "*/", "*/*/") for file in folder.glob(depth + "*.parquet")))
    return {split: [file for file in files if file.stem.split("-")[0] == split] for split in splits}


def read_shards(files: Sequence[Path], columns: Sequence[str]) -> Table:
    """Several files as one table; rows are named by file and row. Raises UserError."""
    tables = [read_table(file, columns) for file in files]
    for file, table in zip(files, tables):
        table.places = [f"{file.name} {place}" for place in table.places]
    return joined(tables)


def coded_labels(values: Sequence[object], count: int, *, where: str, places: Sequence[str]) -> list[int | None]:
    """Checks labels that are class numbers 0 … count-1; None and -1 mean missing. Raises UserError for others."""
    found: list[int | None] = []
    for value, place in zip(values, places):
        if value is None or value == -1:
            found.append(None)
        elif isinstance(value, int) and 0 <= value < count:
            found.append(value)
        else:
            raise UserError(
                f"{where}, {place}: the label {value!r} is not a number from 0 to {count - 1}. For your own "
                "labels use dataset=files."
            )
    return found

"""AG News (Zhang, Zhao, LeCun 2015): 120,000 headlines with a sentence or two to train on, 7,600 to test, four classes.

From a folder in the official layout (`train.csv`, `test.csv`, no header: class 1-4, title, description), from a folder
with the hub's parquet files, or from the hub. The text is title and description joined by a space, as on the hub.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from xcls.config.schema import UserError
from xcls.data.hub import coded_labels, hub_fingerprint, load_hub, parquet_files, read_shards
from xcls.data.readers import Format, Table, as_text_columns, read_table, text_column
from xcls.data.reading import Reading
from xcls.data.source import Splits, as_columns, files_digest, make_rows, where

CLASSES = ["World", "Sports", "Business", "Sci/Tech"]
TEXTS = ["title", "description"]
OFFICIAL = Format(header=["class", "title", "description"])
SPLITS = ("train", "test")


class AgNews:
    """AG News. `text` and `label` name the columns of the hub's files; the official csv files have none to name."""

    def __init__(
        self,
        *,
        path: str | None = None,
        text: str | list[str] = "text",
        label: str = "label",
        hub_id: str = "fancyzhx/ag_news",
        revision: str | None = None,
    ) -> None:
        self.path = path
        self.text, self.label = as_columns(text), label
        self.hub_id, self.revision = hub_id, revision

    @cached_property
    def folder(self) -> Path | None:
        """Where the files are, None for the hub. Raises UserError."""
        return where(self.path, "ag_news")

    def reading(self) -> Reading:
        """Tables with the columns `text`, or in the official layout."""
        return Reading(self.text, bare=(OFFICIAL, TEXTS))

    def fingerprint(self) -> str:
        """Of the files' contents, or of the hub id and revision; and of the columns."""
        options = [self.text, self.label]
        if self.folder is None:
            return files_digest([], [hub_fingerprint(self.hub_id, self.revision), *options])
        return files_digest([file for split in SPLITS for file in self._files(split)], options, root=self.folder)

    def load(self) -> Splits:
        """Reads train and test."""
        made = {}
        tables = self._hub_tables() if self.folder is None else {split: self._table(split) for split in SPLITS}
        for split, table in tables.items():
            texts = text_column(table, self.text)
            labels = coded_labels(
                table.columns[self.label], len(CLASSES), where=f"ag_news {split}", places=table.places
            )
            made[split] = make_rows(text=texts, label=labels, id=[f"{split}-{row}" for row in range(len(texts))])
        return Splits(train=made["train"], test=made["test"], classes=CLASSES)

    def _hub_tables(self) -> dict[str, Table]:
        return load_hub(self.hub_id, self.revision, [*self.text, self.label], SPLITS, name="ag_news")

    def _files(self, split: str) -> list[Path]:
        """The official csv file of a split, or its parquet shards. Raises UserError when neither is there."""
        official = [Path(self.folder) / f"{split}.csv", Path(self.folder) / f"{split}.csv.gz"]
        found = [file for file in official if file.is_file()][:1] or parquet_files(self.folder, [split])[split]
        if not found:
            raise UserError(
                f"{self.folder}: no {split}.csv there. AG News is needed as train.csv and test.csv (no header: "
                "class 1-4, title, description) or as the hub's parquet files."
            )
        return found

    def _table(self, split: str) -> Table:
        files = self._files(split)
        if files[0].suffix == ".parquet":
            return read_shards(files, [*self.text, self.label])
        raw = read_table(files[0], OFFICIAL.header, OFFICIAL)
        first = 0 if raw.columns["class"][0].strip().isdigit() else 1  # some copies have a header after all
        numbers = [number.strip() for number in raw.columns["class"][first:]]
        labels: list[int | None] = []
        for number, place in zip(numbers, raw.places[first:]):
            if number and number not in ("1", "2", "3", "4"):
                raise UserError(f"{files[0]}, {place}: the class {number!r} is none of 1, 2, 3, 4.")
            labels.append(int(number) - 1 if number else None)
        parts = Table({name: raw.columns[name][first:] for name in TEXTS}, raw.places[first:])
        texts = text_column(parts, TEXTS)
        return Table({**as_text_columns(self.text, texts), self.label: labels}, parts.places, raw.notes)

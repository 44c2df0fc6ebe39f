"""AG News (Zhang, Zhao, LeCun 2015): 120,000 headlines with a sentence or two to train on, 7,600 to test, four classes.

From a folder in the official layout (`train.csv`, `test.csv`, no header: class 1-4, title, description), from a folder
with the hub's parquet files, or from the hub. The text is title and description joined by a space, as on the hub.
"""

from __future__ import annotations

from pathlib import Path

from xcls.config.schema import UserError
from xcls.data.hub import HubSource, parquet_files, read_shards
from xcls.data.readers import Format, Table, as_text_columns, read_table, text_column

CLASSES = ["World", "Sports", "Business", "Sci/Tech"]
TEXTS = ["title", "description"]
HEADER = ["class", *TEXTS]
OFFICIAL = Format(header=HEADER)


class AgNews(HubSource):
    """AG News. `text` and `label` name the columns of the hub's files; the official csv files have no column names."""

    name, classes = "ag_news", CLASSES

    def __init__(
        self,
        *,
        path: str | None = None,
        text: str | list[str] = "text",
        label: str = "label",
        hub_id: str = "fancyzhx/ag_news",
        revision: str | None = None,
    ) -> None:
        super().__init__(path, text, label, hub_id, revision)

    def folder_files(self, folder: Path) -> list[Path]:
        """The csv or parquet files of both splits. Raises UserError."""
        return [file for split in self.splits for file in self._split_files(folder, split)]

    def folder_tables(self, folder: Path) -> dict[str, Table]:
        """Train and test, from either layout. Raises UserError."""
        return {split: self._table(self._split_files(folder, split)) for split in self.splits}

    def _split_files(self, folder: Path, split: str) -> list[Path]:
        """The official csv file of a split, or its parquet shards. Raises UserError when neither is there."""
        official = [folder / f"{split}.csv", folder / f"{split}.csv.gz"]
        found = [file for file in official if file.is_file()][:1] or parquet_files(folder, [split])[split]
        if not found:
            raise UserError(
                f"{folder}: no {split}.csv there. Give AG News as train.csv and test.csv (no header: "
                "class 1-4, title, description) or as the hub's parquet files."
            )
        return found

    def _table(self, files: list[Path]) -> Table:
        if files[0].suffix == ".parquet":
            return read_shards(files, self.columns)
        raw = read_table(files[0], HEADER, OFFICIAL)
        first = 0 if raw.columns["class"][0].strip().isdigit() else 1  # some copies have a header after all
        numbers = [number.strip() for number in raw.columns["class"][first:]]
        labels: list[int | None] = []
        for number, place in zip(numbers, raw.places[first:]):
            if number and number not in ("1", "2", "3", "4"):
                raise UserError(f"{files[0]}, {place}: the class {number!r} is not one of 1, 2, 3, 4.")
            labels.append(int(number) - 1 if number else None)
        parts = Table({name: raw.columns[name][first:] for name in TEXTS}, raw.places[first:])
        texts = text_column(parts, TEXTS)
        return Table({**as_text_columns(self.text, texts), self.label: labels}, parts.places, raw.notes)

"""Large Movie Review Dataset (Maas et al. 2011): 25,000 reviews to train on, 25,000 to test, 50,000 without a label.

From a folder (the hub's parquet files, or the official archive unpacked: `train/pos/*.txt` …) or from the hub.
"""

from __future__ import annotations

import re
from pathlib import Path

from xcls.config.schema import UserError
from xcls.data.class_folder import by_name, class_pieces
from xcls.data.formats import Table, joined
from xcls.data.hub import HubSource, parquet_files, read_shards
from xcls.data.readers import as_text_columns
from xcls.data.reading import Reading

CLASSES = ["neg", "pos"]
_BREAK = re.compile(r"<br\s*/?>")


def without_breaks(text: str) -> str:
    """The text with a space for every `<br />`."""
    return _BREAK.sub(" ", text)


class Imdb(HubSource):
    """IMDb reviews. `use_unlabelled` adds the 50,000 to the text for MLM; `strip_breaks` reads `<br />` as a space."""

    name, classes = "imdb", CLASSES

    def __init__(
        self,
        *,
        path: str | None = None,
        text: str | list[str] = "text",
        label: str = "label",
        hub_id: str = "stanfordnlp/imdb",
        revision: str | None = None,
        use_unlabelled: bool = True,
        strip_breaks: bool = True,
    ) -> None:
        super().__init__(path, text, label, hub_id, revision)
        self.strip_breaks = strip_breaks
        self.splits = ["train", "test"] + ["unsupervised"] * use_unlabelled
        self.options += [use_unlabelled, strip_breaks]

    def reading(self) -> Reading:
        """Tables of reviews; `strip_breaks` sets how `<br />` is read."""
        return Reading(self.text, clean=without_breaks, cleaning="breaks") if self.strip_breaks else Reading(self.text)

    def folder_files(self, folder: Path) -> list[Path]:
        """The parquet files, or else the .txt files of the official archive."""
        files = [file for shards in parquet_files(folder, self.splits).values() for file in shards]
        return files or by_name(folder, folder.rglob("*.txt"))

    def folder_tables(self, folder: Path) -> dict[str, Table]:
        """From the parquet files, else from the official archive. Raises UserError where neither is there."""
        files = parquet_files(folder, self.splits)
        missing = [f"{split}.parquet" for split, shards in files.items() if not shards]
        if not missing:
            return {split: read_shards(shards, self.columns) for split, shards in files.items()}
        if (folder / "train" / "pos").is_dir() and (folder / "test" / "pos").is_dir():
            return {split: self._archive(folder, split) for split in self.splits}
        raise UserError(
            f"{folder}: no {', '.join(missing)} there. Give IMDb as the hub's parquet files (without "
            "unsupervised.parquet: dataset.source.use_unlabelled=false), or as the official archive, unpacked."
        )

    def _archive(self, folder: Path, split: str) -> Table:
        """One split of the official archive; its unlabelled reviews lie in train/unsup."""
        part, names = ("train", ["unsup"]) if split == "unsupervised" else (split, CLASSES)
        found = joined(class_pieces(folder / part, names))
        labels = [CLASSES.index(name) if name in CLASSES else -1 for name in found.columns["label"]]
        return Table({**as_text_columns(self.text, found.columns["text"]), self.label: labels}, found.places)

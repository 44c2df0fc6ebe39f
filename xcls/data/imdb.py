"""Large Movie Review Dataset (Maas et al. 2011): 25,000 reviews to train on, 25,000 to test, 50,000 without a label.

From a folder (the hub's parquet files, or the official archive unpacked: `train/pos/*.txt` …) or from the hub.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

from xcls.config.schema import UserError
from xcls.data.class_folder import by_name, read_class_folder
from xcls.data.hub import coded_labels, hub_fingerprint, load_hub, parquet_files, read_shards
from xcls.data.readers import Table, as_text_columns, text_column
from xcls.data.reading import Reading
from xcls.data.source import Splits, as_columns, files_digest, make_rows, where

CLASSES = ["neg", "pos"]
_BREAK = re.compile(r"<br\s*/?>")


def without_breaks(text: str) -> str:
    """The text with a space for every `<br />`."""
    return _BREAK.sub(" ", text)


class Imdb:
    """IMDb reviews. `use_unlabelled` adds the 50,000 to the text for MLM; `strip_breaks` reads `<br />` as a space."""

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
        self.path = path
        self.text, self.label = as_columns(text), label
        self.hub_id, self.revision = hub_id, revision
        self.use_unlabelled, self.strip_breaks = use_unlabelled, strip_breaks
        self.needed = ["train", "test"] + ["unsupervised"] * use_unlabelled

    @cached_property
    def folder(self) -> Path | None:
        """Where the files are, None for the hub. Raises UserError."""
        return where(self.path, "imdb")

    def reading(self) -> Reading:
        """Reviews as tables, with `<br />` as the options say."""
        return Reading(self.text, **({"clean": without_breaks, "cleaning": "breaks"} if self.strip_breaks else {}))

    def fingerprint(self) -> str:
        """Of the files' contents, or of the hub id and revision; and of the options."""
        options = [self.text, self.label, self.use_unlabelled, self.strip_breaks]
        if self.folder is None:
            return files_digest([], [hub_fingerprint(self.hub_id, self.revision), *options])
        files = [file for shards in parquet_files(self.folder, self.needed).values() for file in shards]
        return files_digest(files or by_name(self.folder, self.folder.rglob("*.txt")), options, root=self.folder)

    def load(self) -> Splits:
        """Reads train, test and, if wanted, the unlabelled reviews."""
        tables, clean = self._tables(), self.reading().clean
        made = {}
        for split, table in tables.items():
            texts = [text and clean(text) for text in text_column(table, self.text)]
            labels = coded_labels(table.columns[self.label], len(CLASSES), where=f"imdb {split}", places=table.places)
            made[split] = make_rows(text=texts, label=labels, id=[f"{split}-{row}" for row in range(len(texts))])
        return Splits(train=made["train"], test=made["test"], unlabelled=made.get("unsupervised"), classes=CLASSES)

    def _tables(self) -> dict[str, Table]:
        columns = [*self.text, self.label]
        if self.folder is None:
            return load_hub(self.hub_id, self.revision, columns, self.needed, name="imdb")
        files = parquet_files(self.folder, self.needed)
        if any(files.values()):
            for split, shards in files.items():
                if not shards:
                    raise UserError(
                        f"{self.folder}: no {split}.parquet there. "
                        + (
                            "Add it, or set dataset.source.use_unlabelled=false."
                            if split == "unsupervised"
                            else "Add it."
                        )
                    )
            return {split: read_shards(shards, columns) for split, shards in files.items()}
        if (self.folder / "train" / "pos").is_dir() and (self.folder / "test" / "pos").is_dir():
            return {split: self._archive(split) for split in self.needed}
        raise UserError(
            f"{self.folder}: IMDb is needed there, as train.parquet and test.parquet (the hub's files) or as "
            "train/pos/*.txt, train/neg/*.txt, test/… (the official archive, unpacked)."
        )

    def _archive(self, split: str) -> Table:
        """One split of the official archive; its unlabelled reviews lie in train/unsup."""
        part, names = ("train", ["unsup"]) if split == "unsupervised" else (split, CLASSES)
        texts, found, places = read_class_folder(Path(self.folder) / part, names)
        labels = [CLASSES.index(name) if name in CLASSES else -1 for name in found]
        return Table({**as_text_columns(self.text, texts), self.label: labels}, places)

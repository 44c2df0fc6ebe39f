"""ListOps of Long Range Arena (Tay et al. 2020, after Nangia and Bowman 2018): what does a long nested expression give?

`[MAX 4 3 [MIN 2 3 ] 1 0 ]` is 4: operators over lists, ten classes, 500 to 2,000 tokens. Made here from a seed, 96,000 +
2,000 + 2,000 expressions as there, no two alike; or read from the arena's own files. Square brackets are tokens and stay:
its reader lost them, and with them what belongs to which operator. The round ones in its files say nothing more and go.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Iterator

from xcls.config.schema import UserError
from xcls.data.cache import build_once, cache_folder, digest
from xcls.data.labels import label_ids
from xcls.data.listops_trees import Shape, as_text, expressions
from xcls.data.readers import Table, read_table, text_column
from xcls.data.reading import Reading
from xcls.data.source import Splits, as_columns, files_digest, make_rows, where

if TYPE_CHECKING:
    from xcls.data.rows import Rows

VERSION = 1  # of the generator; goes up when the expressions of a seed change
CLASSES = [str(digit) for digit in range(10)]
FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
BARREN = 200  # batches of trees without a new expression, after which there are too few of this shape


def without_round_brackets(text: str) -> str:
    """The expression without the round brackets of the arena's files."""
    return text.replace("( ", "").replace(" )", "")


class ListOps:
    """Expressions and their value. Without `path`: `*_size` of them from `seed`, more than `min_length` and fewer than
    `max_length` tokens, up to `max_depth` levels and `max_args` arguments. Test and validation come first, so that they
    are the same whatever `train_size` is."""

    def __init__(
        self,
        *,
        path: str | None = None,
        text: str | list[str] = "Source",
        label: str = "Target",
        seed: int = 0,
        train_size: int = 96_000,
        validation_size: int = 2_000,
        test_size: int = 2_000,
        min_length: int = 500,
        max_length: int = 2_000,
        max_depth: int = 10,
        max_args: int = 10,
    ) -> None:
        self.path = path
        self.text, self.label = as_columns(text), label
        self.seed, self.shape = seed, Shape(max_depth, max_args, min_length, max_length)
        self.sizes = {"test": test_size, "validation": validation_size, "train": train_size}
        for name, value, least in (
            ("seed", seed, 0),
            *((f"{split}_size", size, 1) for split, size in self.sizes.items()),
            ("min_length", min_length, 1),
            ("max_length", max_length, min_length + 2),
            ("max_depth", max_depth, 2),
            ("max_args", max_args, 2),
        ):
            if value < least:
                raise UserError(f"dataset.source.{name}={value}: at least {least} is needed.")

    @cached_property
    def folder(self) -> Path | None:
        """Where the arena's files are, None where expressions are made. Raises UserError."""
        return where(self.path, "listops")

    def reading(self) -> Reading:
        """The arena's tables, without their round brackets."""
        return Reading(self.text, clean=without_round_brackets, cleaning="round brackets")

    def fingerprint(self) -> str:
        """Of the seed, the sizes and the shape, or of the files' contents."""
        if self.folder is not None:
            return files_digest(list(self._files().values()), [self.text, self.label], root=self.folder)
        return digest([VERSION, self.seed, list(self.sizes.values()), list(vars(self.shape).values())])

    def load(self) -> Splits:
        """Reads the files, or the cached expressions; the first time (half a minute for all of them) makes them."""
        from xcls.data.rows import read_rows

        if self.folder is not None:
            made = {split: self._read(split, file) for split, file in self._files().items()}
        else:
            folder = build_once(
                cache_folder() / "listops" / self.fingerprint()[:16], self._build, what="the data set listops"
            )
            made = {split: read_rows(folder / split) for split in self.sizes}
        return Splits(train=made["train"], validation=made.get("validation"), test=made["test"], classes=CLASSES)

    def _build(self, folder: Path) -> None:
        """Writes the rows of each split into a folder of its own."""
        from tqdm import tqdm

        from xcls.data.rows import BATCH, RowWriter

        folder.mkdir()
        found = self._new_expressions()
        with tqdm(desc="listops: making expressions", total=sum(self.sizes.values()), mininterval=1.0) as bar:
            for split, size in self.sizes.items():
                writer = RowWriter(folder / split)
                for start in range(0, size, BATCH):
                    texts, labels = zip(*islice(found, min(BATCH, size - start)))
                    writer.add(text=texts, label=labels, id=[f"{split}-{start + row}" for row in range(len(texts))])
                    bar.update(len(texts))
                writer.rows()

    def _new_expressions(self) -> Iterator[tuple[str, int]]:
        """(text, value) of expressions that have not come before. Raises UserError where there are too few of this shape."""
        seen: set[bytes] = set()
        barren = 0
        for codes, offsets, answers in expressions(self.shape, seed=self.seed):
            before = len(seen)
            written, ends = as_text(codes, offsets)
            whole = written.tobytes()
            for start, end, answer in zip(ends.tolist(), ends[1:].tolist(), answers.tolist()):
                name = hashlib.blake2b(whole[start:end], digest_size=16).digest()
                if name not in seen:
                    seen.add(name)
                    yield whole[start:end].decode("ascii"), answer
            barren = barren + 1 if len(seen) == before else 0
            if barren == BARREN:
                raise UserError(
                    f"dataset=listops: only {len(seen)} different expressions have {self.shape.min_length} to "
                    f"{self.shape.max_length} tokens, {self.shape.max_depth} levels and {self.shape.max_args} arguments "
                    f"at most; {sum(self.sizes.values())} are needed. Widen dataset.source.min_length, max_length, "
                    "max_depth or max_args, or ask for fewer (train_size, validation_size, test_size)."
                )

    def _files(self) -> dict[str, Path]:
        """The arena's files that are there; train and test must be. Raises UserError."""
        assert self.folder is not None
        found = {split: self.folder / name for split, name in FILES.items() if (self.folder / name).is_file()}
        for split in ("train", "test"):
            if split not in found:
                raise UserError(
                    f"{self.folder}: no {FILES[split]} there. Long Range Arena's ListOps is needed as {', '.join(FILES.values())} "
                    "(columns Source and Target), or leave dataset.path out: then it is made here."
                )
        return found

    def _read(self, split: str, file: Path) -> Rows:
        """One of the arena's files, without its round brackets."""
        table: Table = read_table(file, [*self.text, self.label])
        texts = [without_round_brackets(text or "") for text in text_column(table, self.text)]
        for text, place in zip(texts, table.places):
            if "[" not in text or text.count("[") != text.count("]"):
                raise UserError(
                    f"{file}, {place}: the square brackets are missing or not in pairs ({text[:40]!r}). Without them an "
                    "expression has no value; take the file as Long Range Arena's generator wrote it."
                )
        labels = label_ids(table.columns[self.label], CLASSES, where=str(file), row_names=table.places)
        return make_rows(text=texts, label=labels, id=[f"{split}-{row}" for row in range(len(texts))])

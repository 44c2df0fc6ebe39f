"""ListOps of Long Range Arena (Tay et al. 2020, after Nangia and Bowman 2018): the value of a long nested expression.

`[MAX 4 3 [MIN 2 3 ] 1 0 ]` is 4: operators over lists, ten classes, 500 to 2,000 tokens. The expressions are drawn from
a seed, 96,000 + 2,000 + 2,000 as in the arena, without repeats. Square brackets stay as tokens: the arena's own reader
drops them, so that nothing says which numbers belong to which operator.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Callable, Iterator

from xcls.config.schema import UserError
from xcls.data.cache import build_once, cache_folder, digest
from xcls.data.reading import Reading
from xcls.data.rows import BATCH, RowWriter, read_rows
from xcls.data.source import Splits

VERSION = 2  # of the generator; raise it when the expressions of a seed change
CLASSES = [str(digit) for digit in range(10)]
OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(median(values)),  # rounded down
    "[SM": lambda values: sum(values) % 10,
}
NAMES = list(OPERATORS)
BARREN = 100_000  # after so many draws without a new expression, stop: there are too few of this shape


@dataclass(frozen=True)
class Shape:
    """Limits of expressions: levels, arguments of an operator, tokens (more than min_length, fewer than max_length)."""

    max_depth: int = 10
    max_args: int = 10
    min_length: int = 500
    max_length: int = 2000


def draw_expression(draw: Callable[[], float], shape: Shape, tokens: list[str], depth: int = 1) -> int:
    """Appends the tokens of a random expression and returns its value. `draw`: uniform in [0, 1).

    Above the deepest level, a node is an operator with probability 1/4, with two to `max_args` arguments; else it is a
    digit. An expression that is already too long is left unfinished.
    """
    if depth == shape.max_depth or draw() >= 0.25:
        digit = int(draw() * 10)
        tokens.append(CLASSES[digit])
        return digit
    name = NAMES[int(draw() * len(NAMES))]
    tokens.append(name)
    values = []
    for _ in range(2 + int(draw() * (shape.max_args - 1))):
        if len(tokens) >= shape.max_length:
            return 0
        values.append(draw_expression(draw, shape, tokens, depth + 1))
    tokens.append("]")
    return OPERATORS[name](values)


class ListOps:
    """Expressions and their value: `*_size` of them from `seed`, more than `min_length` and fewer than
    `max_length` tokens, up to `max_depth` levels and `max_args` arguments. Test and validation are drawn first, so that
    they do not depend on `train_size`."""

    def __init__(
        self,
        *,
        path: str | None = None,
        text: str | list[str] = "text",
        label: str = "label",
        seed: int = 0,
        train_size: int = 96_000,
        validation_size: int = 2_000,
        test_size: int = 2_000,
        min_length: int = 500,
        max_length: int = 2_000,
        max_depth: int = 10,
        max_args: int = 10,
    ) -> None:
        if path is not None or text != "text" or label != "label":
            raise UserError("dataset=listops is made from a seed: dataset.path, text and label do not apply.")
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

    def reading(self) -> Reading:
        """Tables of expressions, unchanged."""
        return Reading(["text"])

    def fingerprint(self) -> str:
        """A hash of the seed, the sizes and the shape."""
        return digest([VERSION, self.seed, list(self.sizes.values()), list(vars(self.shape).values())])

    def load(self) -> Splits:
        """Reads the expressions from the cache; the first time it generates them, in about two minutes."""
        folder = build_once(
            cache_folder() / "listops" / self.fingerprint()[:16], self._build, what="the data set listops"
        )
        train, validation, test = (read_rows(folder / split) for split in ("train", "validation", "test"))
        return Splits(train=train, validation=validation, test=test, classes=CLASSES)

    def _build(self, folder: Path) -> None:
        """Writes the rows of each split into a folder of its own."""
        from tqdm import tqdm

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
        """(text, value) of expressions without repeats. Raises UserError if too few of this shape exist."""
        seen: set[bytes] = set()
        barren, draw, shape = 0, random.Random(self.seed).random, self.shape
        while barren < BARREN:
            tokens: list[str] = []
            barren += 1
            value = draw_expression(draw, shape, tokens)
            text = " ".join(tokens)
            name = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if shape.min_length < len(tokens) < shape.max_length and name not in seen:
                seen.add(name)
                barren = 0
                yield text, value
        raise UserError(
            f"dataset=listops: only {len(seen)} different expressions have {self.shape.min_length} to "
            f"{self.shape.max_length} tokens, {self.shape.max_depth} levels and {self.shape.max_args} arguments "
            f"at most; {sum(self.sizes.values())} are needed. Widen dataset.source.min_length, max_length, "
            "max_depth or max_args, or ask for fewer (train_size, validation_size, test_size)."
        )

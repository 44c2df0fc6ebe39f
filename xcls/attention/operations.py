"""The operations and bytes a mechanism needs, by formula: `mode=bench` sets them beside the measured times.

Operations are those of the matrix products in the definition; a multiplication and an addition count as two, as in
PyTorch's counter. The normaliser, one more column of the values, is left out. Bytes count what must pass between memory
and cores if all intermediate results stay in the cache. Letters: B batch, H heads, N tokens, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Operations and bytes of one call."""

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Work:
        return Work(times * self.flops, times * self.bytes)

    def bound(self, flops_per_s: float, bytes_per_s: float) -> float:
        """The shortest possible time in seconds at these two rates (the roofline of Williams et al. 2009)."""
        return max(self.flops / flops_per_s, self.bytes / bytes_per_s)


@dataclass(frozen=True)
class Shape:
    """Sizes of one call; `itemsize` in bytes."""

    batch: int
    heads: int
    length: int
    head_dim: int
    itemsize: int

    @property
    def vectors(self) -> int:
        """B x H x N x D: the numbers in q."""
        return self.batch * self.heads * self.length * self.head_dim

    @property
    def pairs(self) -> int:
        """B x H x N x N."""
        return self.batch * self.heads * self.length**2

    @property
    def moved(self) -> float:
        """Bytes of q, k, v and the output, each once."""
        return 4.0 * self.itemsize * self.vectors

    def slots(self, chunk: int) -> int:
        """B x H x N, with N rounded up to whole chunks."""
        return self.batch * self.heads * -(-self.length // chunk) * chunk


def sorted_chunks_work(
    shape: Shape, *, rounds: int, size: int, reach: tuple[int, int] = (0, 0), key_width: int | None = None
) -> tuple[Work, Work]:
    """Inference and training of softmax in chunks of `size` sorted tokens, which see `reach` chunks before and after.

    Forward: two products per pair of slots, including empty slots and the spare chunks between examples. Backward:
    five, one of which computes the logits again. key_width: columns of q and k if not D. Bytes: in each round the
    sorted q and v and the output of the round; with several rounds, the outputs are read once more.
    """
    chunks = -(-shape.length // size)
    beside = sum(min(side, chunks - 1) for side in reach)
    pairs = float(rounds * shape.batch * (shape.heads * chunks + beside) * size) * (1 + beside) * size
    keys, values = (2.0 * pairs * width for width in (key_width or shape.head_dim, shape.head_dim))
    moved = float(shape.itemsize) * shape.vectors * (3 * rounds + (rounds + 1 if rounds > 1 else 0))
    return Work(keys + values, moved), Work(4 * keys + 3 * values, 3 * moved)

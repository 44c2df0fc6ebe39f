"""How many operations and bytes a mechanism must spend, by formula: what the measured times are held against.

Operations are those of matrix products, two for a multiplication and addition, as PyTorch's counter has them; bytes
are what has to pass between memory and cores when everything that is not part of the definition stays in the cache.
Letters: B batch, H heads, N tokens, D head width, E model width, R rotations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Callable

from torch import nn

from xcls.attention.lsh import Reformer
from xcls.attention.lsh_learned import ReformerLearned
from xcls.attention.lsh_local import ReformerLocal
from xcls.attention.smyrf import Smyrf
from xcls.attention.softmax import Sdpa, SdpaFused


@dataclass(frozen=True)
class Work:
    """Operations and bytes of one call."""

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def bound(self, flops_per_s: float, bytes_per_s: float) -> float:
        """The seconds below which no machine with these two rates can do it (the roofline of Williams et al. 2009)."""
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


def _sdpa(attention: Sdpa, shape: Shape) -> tuple[Work, Work]:
    """Q K^T and P V, 2 N^2 D each; four more products backward.

    The scores are written, read, and written and read again as probabilities: that is what explicit means.
    """
    product = 2.0 * shape.pairs * shape.head_dim
    moved = float(shape.itemsize) * (4 * shape.vectors + 4 * shape.pairs)
    return Work(2 * product, moved), Work(6 * product, 3 * moved)


def _sdpa_fused(attention: SdpaFused, shape: Shape) -> tuple[Work, Work]:
    """The same without the scores in memory, which the backward pass computes again: seven products."""
    product, moved = 2.0 * shape.pairs * shape.head_dim, 4.0 * shape.itemsize * shape.vectors
    return Work(2 * product, moved), Work(7 * product, 3 * moved)


def _attend_clusters(
    shape: Shape, *, rounds: int, size: int, reach: tuple[int, int] = (0, 0), key_width: int | None = None
) -> tuple[float, float]:
    """Operations of softmax within chunks of `size` tokens, which meet themselves and `reach` chunks before and behind:
    of inference and of training.

    Two products for each slot of a chunk, empty ones and the spare chunks between examples included; backward five, of
    which one is the logits again: they are not kept. key_width: of q and k where it is not D.
    """
    chunks = -(-shape.length // size)
    beside = sum(min(side, chunks - 1) for side in reach)
    pairs = float(rounds * shape.batch * (shape.heads * chunks + beside) * size) * (1 + beside) * size
    keys, values = (2.0 * pairs * width for width in (key_width or shape.head_dim, shape.head_dim))
    return keys + values, 4 * keys + 3 * values


def _cluster_bytes(shape: Shape, rounds: int) -> float:
    """In each round the sorted q and v and the round's output; the outputs are read once more where there are several."""
    passes = 3 * rounds + (rounds + 1 if rounds > 1 else 0)
    return float(shape.itemsize) * passes * shape.vectors


def _reformer(attention: Reformer, shape: Shape, *, unhashed: int = 0, coded: bool = False) -> tuple[Work, Work]:
    """x R for the hashes, which has no backward pass, x being read once more; and attention within chunks in each round.

    unhashed: rounds besides those that hash. coded: the columns of x R also widen q and k, x R then being computed with
    a gradient too.
    """
    hashed, columns = attention.rotations.shape[0], attention.rotations.shape[-1]
    columns = hashed * min(columns, -(-shape.length // (2 * attention.bucket_size)))
    hashes = Work(2.0 * shape.vectors * columns, float(shape.itemsize) * shape.vectors)
    codes = hashes.flops if coded else 0.0
    inference, training = _attend_clusters(
        shape,
        rounds=hashed + unhashed,
        size=attention.bucket_size,
        reach=(attention.chunks_before, attention.chunks_after),
        key_width=shape.head_dim + columns * coded,
    )
    moved = _cluster_bytes(shape, hashed + unhashed)
    return hashes + Work(inference + codes, moved), hashes + Work(training + 3 * codes, 3 * moved)


def _smyrf(attention: Smyrf, shape: Shape) -> tuple[Work, Work]:
    """q and k along each round's direction, and attention within clusters."""
    rounds, size = attention.directions.shape[0], attention.bucket_size
    hashes = Work(4.0 * rounds * shape.vectors, 2.0 * shape.itemsize * shape.vectors)
    inference, training = _attend_clusters(shape, rounds=rounds, size=size)
    moved = _cluster_bytes(shape, rounds) + float(shape.itemsize) * rounds * shape.vectors  # k, sorted by itself
    return hashes + Work(inference, moved), hashes + Work(training, 3 * moved)


FORMULAS: dict[type[nn.Module], Callable[[nn.Module, Shape], tuple[Work, Work]]] = {
    Sdpa: _sdpa,
    SdpaFused: _sdpa_fused,
    Reformer: _reformer,
    ReformerLocal: partial(_reformer, unhashed=1),
    ReformerLearned: partial(_reformer, coded=True),
    Smyrf: _smyrf,
}


def core_work(attention: nn.Module, shape: Shape) -> dict[str, Work] | None:
    """Work of inference and of training (forward and backward) of a mechanism without projections.

    A mechanism may bring its own formula as a method `operations(shape) -> (inference, training)`, each (flops, bytes).
    A subclass has its parent's formula. None where there is no formula.
    """
    own = getattr(attention, "operations", None)
    if own is not None:
        inference, training = (Work(*pair) for pair in own(shape))
        return {"inference": inference, "training": training}
    formula = next((FORMULAS[kind] for kind in type(attention).__mro__ if kind in FORMULAS), None)
    if formula is None:
        return None
    inference, training = formula(attention, shape)
    return {"inference": inference, "training": training}


def module_work(attention: nn.Module, shape: Shape) -> dict[str, Work] | None:
    """The same with projections: q, k (none where it is tied), v and output, 2 N E^2 each, thrice that in training."""
    core = core_work(attention, shape)
    if core is None:
        return None
    width, tokens = shape.heads * shape.head_dim, shape.batch * shape.length
    count = 4 - attention.ties_qk - 2 * (not attention.reads_qk)
    projection = Work(2.0 * tokens * width**2, float(shape.itemsize) * (2 * tokens * width + width**2))
    once = Work(count * projection.flops, count * projection.bytes)
    return {"inference": core["inference"] + once, "training": core["training"] + once + once + once}


BY_PART: dict[str, Callable[[nn.Module, Shape], dict[str, Work] | None]] = {"module": module_work, "core": core_work}


def work(part: str, attention: nn.Module, shape: Shape) -> dict[str, Work] | None:
    """By formula, for a part of the bench; None where there is no formula (a whole step, another package)."""
    return BY_PART[part](attention, shape) if part in BY_PART else None

"""A paired bootstrap of macro-F1 over examples and seeds. Plain numpy: thousands of replicates in a second or two.

Examples are drawn with replacement, the same ones for every run. Seeds cannot be treated so: from three of them one
draws the same three numbers again and again, and intervals made of these cover the truth 80 times of 100 and not 95.
What the seeds scatter beyond what other examples explain is added as a draw of Student's t (a parametric bootstrap),
with the degrees of freedom of Welch's test. tests/report/test_bootstrap.py counts how often both kinds of interval
cover the truth.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Iterator, Sequence

import numpy as np

from xcls.report.predictions import f1_of

CELLS = 4_000_000  # drawn at once: replicates x examples, 16 MB in 32 bits


def f1_replicates(
    labels: np.ndarray, said: Sequence[np.ndarray], *, classes: int, replicates: int, seed: int
) -> np.ndarray:
    """Macro-F1 of every run on resampled examples, [runs, replicates]; all runs see the same examples in a replicate.

    labels [N] and each of `said` [N] hold class numbers below `classes`.
    """
    patterns, of = _patterns(labels, said, classes)
    there = np.eye(classes, dtype=np.float32)[patterns[0]]
    named = [np.eye(classes, dtype=np.float32)[row] for row in patterns[1:]]
    table = np.concatenate([there, *named, *(there * one for one in named)], axis=1)  # [patterns, (1 + 2 runs) classes]
    runs, done = len(said), 0
    found = np.empty((runs, replicates))
    for weights in _draws(of, patterns.shape[1], replicates, np.random.default_rng(seed)):
        counts = (weights @ table).astype(np.float64).reshape(len(weights), 1 + 2 * runs, classes)  # whole, so exact
        found[:, done : done + len(weights)] = (
            f1_of(counts[:, 1 + runs :], counts[:, :1], counts[:, 1 : 1 + runs]).mean(axis=2).T
        )
        done += len(weights)
    return found


def _patterns(labels: np.ndarray, said: Sequence[np.ndarray], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Examples alike in label and in what every run says are one pattern: [1 + runs, patterns], and whose is which."""
    of = labels.astype(np.int64)
    for row in said:
        of = np.unique(of * classes + row, return_inverse=True)[1].reshape(-1)  # stays small, however many runs
    _, first = np.unique(of, return_index=True)
    return np.stack([labels[first], *(row[first] for row in said)]), of.astype(np.int32)


def _draws(of: np.ndarray, patterns: int, replicates: int, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """Blocks [replicates, patterns] in float32: how often a pattern is met when N examples are drawn with replacement.

    The draws depend on the number of examples alone, and not on which runs are looked at.
    """
    total = len(of)
    block = max(1, CELLS // total)
    for start in range(0, replicates, block):
        rows = min(block, replicates - start)
        met = of[draw.integers(total, size=(rows, total), dtype=np.int32)]
        met += np.arange(rows, dtype=np.int32)[:, None] * patterns
        yield np.bincount(met.ravel(), minlength=rows * patterns).reshape(rows, patterns).astype(np.float32)


@dataclass(frozen=True)
class Sample:
    """A group on some examples: macro-F1 of its runs, `scores` [runs], and in every replicate, [runs, replicates]."""

    scores: np.ndarray
    replicates: np.ndarray

    @property
    def seed_variance(self) -> float:
        """Variance of the mean of the runs because other seeds might have been taken; 0 of a single run.

        The scatter of the runs, less that part of it which comes with the examples and is in the replicates already.
        """
        runs = len(self.scores)
        if runs < 2:
            return 0.0
        own = self.replicates - self.replicates.mean(axis=0)
        return max(0.0, float(self.scores.var(ddof=1) - own.var(axis=1).sum() / (runs - 1))) / runs


def difference(mine: Sample, theirs: Sample, *, seed: int, name: str) -> np.ndarray:
    """Mean macro-F1 of one group minus that of the other in every replicate, [replicates].

    `name` is the pair's, so that its draws do not depend on which other groups there are.
    """
    values = mine.replicates.mean(axis=0) - theirs.replicates.mean(axis=0)
    parts = [(sample.seed_variance, len(sample.scores) - 1) for sample in (mine, theirs) if len(sample.scores) > 1]
    variance = sum(part for part, _ in parts)
    if variance <= 0:
        return values
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    own = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return values + variance**0.5 * _student(freedom, len(values), np.random.default_rng([seed, own]))


def _student(freedom: float, size: int, draw: np.random.Generator) -> np.ndarray:
    """`size` draws of Student's t, one from each of as many equally likely intervals, in random order.

    Of plain draws with two to four degrees of freedom, as three seeds give, thousands still leave the ends of an
    interval uncertain by a tenth of its width.
    """
    from scipy.special import stdtrit

    return draw.permutation(stdtrit(freedom, (np.arange(size) + 0.5) / size))


def percentile_interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """The middle `level` of the replicates."""
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)

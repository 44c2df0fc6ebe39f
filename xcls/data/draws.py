"""Random numbers without a state: each is a function of a key and a counter, whatever the order and the worker.

SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"): the i-th number of the stream
with a given key is a hash of `key + i * GOLDEN`, so each can be computed by itself. All arithmetic is modulo 2**64.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def scramble(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, a bijection of uint64 [..] whose every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))


def key(parts: Sequence[int | np.ndarray]) -> np.ndarray:
    """Hashes integers or integer arrays (broadcast together) to stream keys, uint64 [..]; their order matters."""
    joined = np.zeros(1, np.uint64)
    for part in parts:
        joined = scramble((joined ^ np.atleast_1d(np.asarray(part)).astype(np.uint64)) + GOLDEN)
    return joined


def draw(keys: np.ndarray, counter: np.ndarray) -> np.ndarray:
    """Number `counter` of each stream in `keys` (broadcast), uint64 [..], uniform over all 2**64 values."""
    return scramble(keys + (counter.astype(np.uint64) + np.uint64(1)) * GOLDEN)


def uniform(numbers: np.ndarray) -> np.ndarray:
    """uint64 [..] -> float64 [..] in [0, 1), from the upper 53 bits."""
    return (numbers >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(count: int, parts: Sequence[int]) -> np.ndarray:
    """A permutation of 0 … count-1, int64 [count], a function of `parts`; the same in every version of numpy."""
    return np.argsort(draw(key(parts), np.arange(count)), kind="stable")

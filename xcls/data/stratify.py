"""Stratified samples of rows, drawn from a seed and the same on every machine."""

from __future__ import annotations

import hashlib
from typing import Sequence

import numpy as np

from xcls.data.draws import permutation


def text_key(text: str) -> bytes:
    """A hash that is equal for two texts with the same words in the same order, whatever the white space and case."""
    return hashlib.blake2b(" ".join(text.split()).casefold().encode("utf-8", "surrogatepass"), digest_size=16).digest()


def as_keys(keys: Sequence[bytes]) -> np.ndarray:
    """Keys of at most 16 bytes as an array, uint64 [R, 2], which needs an eighth of the memory."""
    return np.frombuffer(b"".join(key.ljust(16, b"\0") for key in keys), np.uint64).reshape(-1, 2)


def first_alike(keys: np.ndarray) -> np.ndarray:
    """For each row of keys uint64 [R, 2] (from as_keys), the first row with the same key: int64 [R]."""
    if not len(keys):
        return np.empty(0, np.int64)
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: of equal keys the first row comes first
    new = np.ones(len(keys), bool)
    new[1:] = False
    for column in (0, 1):
        ordered = keys[order, column]
        new[1:] |= ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(new)
    found = np.empty(len(keys), np.int64)
    found[order] = np.repeat(order[starts], np.diff(starts, append=len(keys)))
    return found


def stands_in(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of the keys uint64 [R, 2] are among `others` uint64 [S, 2], bool [R]."""
    return first_alike(np.concatenate([others, keys]))[len(others) :] < len(others)


def allocate(sizes: np.ndarray, count: int) -> np.ndarray:
    """Distributes `count` over groups in proportion to their sizes int64 [G], by largest remainders: int64 [G].

    Each non-empty group gets at least one, if `count` allows; none gets more than its size.
    """
    count = min(count, int(sizes.sum()))
    exact = sizes * (count / max(int(sizes.sum()), 1))
    places = np.minimum(np.maximum(np.floor(exact).astype(np.int64), (sizes > 0) & (count >= len(sizes))), sizes)
    order = np.argsort(-(exact - np.floor(exact)), kind="stable")
    while places.sum() < count:
        for group in order:
            if places.sum() < count and places[group] < sizes[group]:
                places[group] += 1
    while places.sum() > count:
        places[np.argmax(places)] -= 1
    return places


def sample(labels: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Positions of `count` rows of int64 labels [R], stratified, in ascending order: int64 [count]."""
    classes, sizes = np.unique(labels, return_counts=True)
    chosen = []
    for label, places in zip(classes, allocate(sizes, count)):
        rows = np.flatnonzero(labels == label)
        chosen.append(rows[permutation(len(rows), [seed, int(label)])[:places]])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def carve(labels: np.ndarray, share: float, *, seed: int, alike: np.ndarray) -> np.ndarray:
    """Splits off `share` of each class of labels int64 [R]: bool [R], True in the smaller part.

    `alike` [R] (from first_alike) keeps rows with the same text on the same side. A class with two or more texts has at
    least one on each side; a single text stays in the larger part.
    """
    chosen = np.zeros(len(labels), bool)
    firsts = np.flatnonzero(alike == np.arange(len(labels)))
    for label in np.unique(labels[firsts]):
        rows = firsts[labels[firsts] == label]
        places = min(max(round(share * len(rows)), 1), len(rows) - 1)
        chosen[rows[permutation(len(rows), [seed, int(label)])[:places]]] = True
    return chosen[alike]

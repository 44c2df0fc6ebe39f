"""Near-duplicates by MinHash over shingles of words; each candidate pair is checked by its exact Jaccard similarity.

Broder 1997, "On the resemblance and containment of documents"; banding as in Leskovec, Rajaraman, Ullman, ch. 3.
"""

from __future__ import annotations

import re
import zlib
from typing import Iterable

import numpy as np

from xcls.data.draws import GOLDEN, draw, key, scramble

_WORD = re.compile(r"[a-z0-9]+")


def shingles(text: str, size: int) -> np.ndarray:
    """The hashes of all runs of `size` words (lower case, only letters and digits): sorted uint64 [S], no repeats."""
    words = np.array([zlib.crc32(word.encode()) for word in _WORD.findall(text.lower())], np.uint64)
    size = max(1, min(size, len(words)))
    count = max(len(words) - size + 1, 0)
    joined = np.zeros(count, np.uint64)
    for offset in range(size):
        joined = scramble((joined ^ words[offset : offset + count]) + GOLDEN)
    return np.unique(joined)


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Size of the intersection over size of the union of two sorted sets without repeats."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(len(one) + len(other) - shared, 1)


def keep_first(
    texts: Iterable[str], *, similarity: float = 0.7, size: int = 3, bands: int = 16, rows: int = 4
) -> list[int]:
    """Positions of the texts that are not near-duplicates of an earlier kept text.

    Two texts are near-duplicates at a Jaccard similarity of `similarity` or more. With 16 bands of 4 rows, a pair at
    0.7 is found with probability 0.988, one at 0.8 with 0.9998. Texts without words are dropped.
    """
    seeds = draw(key([0]), np.arange(bands * rows))[:, None]  # [M, 1]
    weights = draw(key([1]), np.arange(rows))
    buckets: list[dict[int, list[int]]] = [{} for _ in range(bands)]
    sets: dict[int, np.ndarray] = {}
    for position, text in enumerate(texts):
        own = shingles(text, size)
        if not len(own):
            continue
        lowest = scramble(own[None] ^ seeds).min(axis=1).reshape(bands, rows)  # [M, S] to [bands, rows]
        places = scramble(lowest * (weights | np.uint64(1))).sum(axis=1, dtype=np.uint64).tolist()
        rivals = {other for bucket, place in zip(buckets, places) for other in bucket.get(place, ())}
        if any(jaccard(own, sets[other]) >= similarity for other in rivals):
            continue
        sets[position] = own
        for bucket, place in zip(buckets, places):
            bucket.setdefault(place, []).append(position)
    return list(sets)

"""Which combinations of several axes are tried: all pairs or a spread of them, and every one in the slow suite."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from itertools import combinations, product
from typing import Any

import pytest

FULL = os.environ.get("XCLS_TESTS") == "full"  # set by `make test-slow`


def pairwise(*axes: list[Any]) -> list[tuple[Any, ...]]:
    """Rows with one value of each axis, so that any two values of two axes meet in at least one row."""
    if FULL or len(axes) < 3:
        return list(product(*axes))
    missing = {
        (a, i, b, j)
        for a, b in combinations(range(len(axes)), 2)
        for i in range(len(axes[a]))
        for j in range(len(axes[b]))
    }
    rows = []
    while missing:
        a, i, b, j = min(missing)
        row = {a: i, b: j}
        for axis in range(len(axes)):
            if axis not in row:
                gains = [
                    sum((*min((c, k), (axis, value)), *max((c, k), (axis, value))) in missing for c, k in row.items())
                    for value in range(len(axes[axis]))
                ]
                shift = len(rows) % len(gains)  # equal gains: each value in its turn
                row[axis] = max(range(len(gains)), key=lambda value: (gains[value], (value - shift) % len(gains)))
        missing -= {(c, row[c], d, row[d]) for c, d in combinations(range(len(axes)), 2)}
        rows.append(tuple(axes[c][row[c]] for c in range(len(axes))))
    return rows


def spread(first: list[Any], *others: list[Any], times: int = 2) -> list[tuple[Any, ...]]:
    """Each value of the first axis with `times` combinations of the others, which are taken evenly from all there
    are.
    """
    rest = list(product(*others))
    if FULL or times >= len(rest):
        return list(product(first, *others))
    step = next(
        step for step in range(round(0.618 * len(rest)), 2 * len(rest)) if step and math.gcd(step, len(rest)) == 1
    )
    return [
        (value, *rest[(row * times + turn) * step % len(rest)])
        for row, value in enumerate(first)
        for turn in range(times)
    ]


def few(values: Iterable[Any], number: int) -> list[Any]:
    """All values as parameters of one test, those after the first `number` in the slow suite."""
    return [
        value
        if place < number
        else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
        for place, value in enumerate(values)
    ]

"""The choice of combinations leaves out no pair, and no value."""

from __future__ import annotations

from itertools import combinations, product

from tests.pairwise import FULL, pairwise, spread

AXES = [list("abcdefg"), list("xyz"), [0, 1], [True, False]]


def test_all_pairs_meet_in_few_rows() -> None:
    rows = pairwise(*AXES)
    for a, b in combinations(range(len(AXES)), 2):
        assert {(row[a], row[b]) for row in rows} == set(product(AXES[a], AXES[b]))
    assert len(set(rows)) == len(rows) and (FULL or len(rows) <= 24)  # 21 is the least, 84 are all


def test_a_spread_has_every_value_about_as_often() -> None:
    rows = spread(*AXES, times=3)
    assert len(set(rows)) == len(rows) and (FULL or len(rows) == 21)
    for place, axis in enumerate(AXES):
        counts = [sum(row[place] == value for row in rows) for value in axis]
        assert max(counts) - min(counts) <= 1
    assert len(spread(*AXES, times=99)) == 84

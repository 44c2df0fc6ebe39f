"""Random numbers as a function of their place."""

from __future__ import annotations

import numpy as np

from xcls.data.draws import draw, key, permutation, uniform


def test_uniform_numbers_fill_their_range_evenly() -> None:
    numbers = uniform(draw(key([3, np.arange(200)])[:, None], np.arange(500)[None]))
    counts, _ = np.histogram(numbers, bins=50, range=(0.0, 1.0))
    chi_square = ((counts - 2000.0) ** 2 / 2000.0).sum()  # 49 degrees of freedom: mean 49, standard deviation 9.9
    assert 15 < chi_square < 100
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 5 / np.sqrt(numbers.size)
    assert abs(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]) < 5 / np.sqrt(numbers.size)


def test_keys_depend_on_every_part_and_on_their_order() -> None:
    keys = [int(key(parts)[0]) for parts in ([1, 2], [2, 1], [1, 3], [1], [0, 1], [1, 0])]
    assert len(set(keys)) == len(keys)


def test_numbers_are_the_same_on_every_machine() -> None:
    assert permutation(8, [0, 1]).tolist() == [0, 6, 7, 4, 3, 2, 1, 5]
    assert sorted(permutation(1000, [5]).tolist()) == list(range(1000))

"""Shares of masking, proven statistically; and what the masks may depend on."""

from __future__ import annotations

import numpy as np
import pytest

from xcls.config.schema import Masking
from xcls.data.masking import IGNORED, MASK_ID, mask_tokens, word_starts

VOCAB = 1000


def tokens(rows: int, length: int) -> np.ndarray:
    """[CLS] tokens [SEP] and two [PAD], int64 [rows, length]."""
    ids = np.random.default_rng(0).integers(5, VOCAB, (rows, length))
    ids[:, 0], ids[:, -3], ids[:, -2:] = 2, 3, 0
    ids[:, 5] = 1
    return ids


def masked(ids: np.ndarray, **changes) -> tuple[np.ndarray, np.ndarray]:
    settings = {"seed": 0, "epoch": 0, "index": np.arange(len(ids)), "masking": Masking(), "vocab_size": VOCAB}
    return mask_tokens(ids, **{**settings, **changes})


def within_five_sigma(count: int, total: int, share: float) -> bool:
    return abs(count - share * total) < 5 * np.sqrt(total * share * (1 - share))


@pytest.mark.parametrize("masking", [Masking(), Masking(probability=0.3, mask_share=0.5, random_share=0.4)])
def test_shares_are_those_of_the_configuration(masking: Masking) -> None:
    ids = tokens(2000, 100)
    inputs, labels = masked(ids, masking=masking)
    chosen = labels != IGNORED
    assert within_five_sigma(chosen.sum(), (ids >= 5).sum(), masking.probability)
    became_mask = (inputs == MASK_ID) & chosen
    unchanged = (inputs == ids) & chosen
    at_random = chosen & ~became_mask & ~unchanged
    by_chance = masking.random_share / (VOCAB - 5)  # a random token may be the token itself
    assert within_five_sigma(became_mask.sum(), chosen.sum(), masking.mask_share)
    assert within_five_sigma(at_random.sum(), chosen.sum(), masking.random_share - by_chance)
    assert within_five_sigma(unchanged.sum(), chosen.sum(), 1 - masking.mask_share - masking.random_share + by_chance)
    np.testing.assert_array_equal(labels[chosen], ids[chosen])
    np.testing.assert_array_equal(inputs[~chosen], ids[~chosen])


def test_every_position_is_equally_likely() -> None:
    _, labels = masked(tokens(20_000, 20))
    counts = (labels != IGNORED).sum(0)[[i for i in range(1, 17) if i != 5]]
    expected = 20_000 * 0.15
    assert ((counts - expected) ** 2 / (expected * 0.85)).sum() < 15 + 5 * np.sqrt(30)  # 15 degrees of freedom


def test_special_tokens_are_neither_chosen_nor_put_in() -> None:
    ids = tokens(500, 60)
    ids[7, 1:57] = 1  # a document without any other token
    inputs, labels = masked(ids, masking=Masking(probability=0.95, mask_share=0.0, random_share=1.0))
    assert (labels[ids < 5] == IGNORED).all() and (inputs[ids < 5] == ids[ids < 5]).all()
    changed = inputs[labels != IGNORED]
    assert changed.min() >= 5 and changed.max() < VOCAB and len(np.unique(changed)) > 0.95 * (VOCAB - 5)


def test_fresh_masks_change_with_the_epoch_and_fixed_ones_do_not() -> None:
    ids = tokens(20, 50)
    for fresh in (True, False):
        first, again, later = (masked(ids, epoch=epoch, masking=Masking(fresh=fresh))[0] for epoch in (3, 3, 4))
        np.testing.assert_array_equal(first, again)
        assert np.array_equal(first, later) is not fresh
    assert not np.array_equal(masked(ids, seed=1)[0], masked(ids, seed=2)[0])


def test_masks_of_an_example_depend_on_no_batch_mate_and_on_no_padding() -> None:
    ids = tokens(16, 40)
    inputs, labels = masked(ids)
    order = np.array([7, 2, 11])
    wider = np.pad(ids[order], ((0, 0), (0, 9)))
    other_inputs, other_labels = masked(wider, index=order)
    np.testing.assert_array_equal(other_inputs[:, :40], inputs[order])
    np.testing.assert_array_equal(other_labels[:, :40], labels[order])
    alike = masked(np.repeat(ids[:1], 2, axis=0), index=np.array([0, 1]))[0]
    assert not np.array_equal(alike[0], alike[1]), "two examples with the same text are masked differently"


def test_whole_words_are_chosen_as_wholes() -> None:
    continues = np.arange(VOCAB) % 3 == 0  # a third of the vocabulary goes on with a word
    ids = tokens(3000, 60)
    _, labels = masked(ids, masking=Masking(whole_word=True), continues=continues)
    chosen = labels != IGNORED
    starts = word_starts(ids, ids >= 5, continues)
    of_start = np.take_along_axis(chosen, starts, axis=1)
    np.testing.assert_array_equal(chosen[ids >= 5], of_start[ids >= 5])
    rows, places = np.nonzero(starts == np.arange(60)[None])
    words = ids[rows, places] >= 5
    assert within_five_sigma(chosen[rows[words], places[words]].sum(), words.sum(), 0.15)


def test_words_start_where_they_should() -> None:
    continues = np.isin(np.arange(20), [10, 11])
    ids = np.array([[2, 10, 11, 7, 10, 1, 11, 3, 0]])
    assert word_starts(ids, ids >= 5, continues).tolist() == [[0, 1, 1, 3, 3, 5, 6, 7, 8]]


def test_whole_word_masking_needs_to_know_words() -> None:
    with pytest.raises(ValueError, match="continues"):
        masked(tokens(2, 10), masking=Masking(whole_word=True))

"""Scores of classifications, checked by hand and against definitions."""

from __future__ import annotations

import numpy as np
import pytest

from xcls.train.metrics import auroc, guess_message, scores, softmax


def test_scores_by_hand() -> None:
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]])
    found = scores(labels, probabilities)
    assert found["accuracy"] == 0.75
    f1 = [2 / 3, 0.8]  # precision 1, recall 1/2; precision 2/3, recall 1
    assert found["macro_f1"] == pytest.approx(np.mean(f1))
    assert found["weighted_f1"] == pytest.approx(np.mean(f1))
    assert found["auroc"] == 1.0
    assert found["loss"] == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.7]).mean())


def test_auroc_is_the_mean_of_one_vs_rest() -> None:
    draws = np.random.default_rng(0)
    labels, probabilities = draws.integers(0, 3, 60), softmax(draws.normal(size=(60, 3)))

    def pairs(score: np.ndarray, positive: np.ndarray) -> float:
        differences = score[positive][:, None] - score[~positive][None]
        return float((differences > 0).mean() + 0.5 * (differences == 0).mean())

    expected = np.mean([pairs(probabilities[:, c], labels == c) for c in range(3)])
    assert auroc(labels, probabilities) == pytest.approx(expected)


def test_a_missing_class_has_no_auroc_but_counts_in_f1() -> None:
    found = scores(np.array([0, 1, 0]), softmax(np.array([[3.0, 0, 0], [0, 3, 0], [3, 0, 0]])))
    assert found["auroc"] is None
    assert found["accuracy"] == 1.0
    assert found["macro_f1"] == pytest.approx(2 / 3)
    assert found["weighted_f1"] == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_give_none(bad: float) -> None:
    probabilities = np.array([[0.5, 0.5], [bad, 0.0]])
    assert set(scores(np.array([0, 1]), probabilities).values()) == {None}


def test_one_class_for_all_rows_is_told() -> None:
    labels = np.repeat([0, 1, 2], [5, 3, 2])
    found = scores(labels, np.tile([0.6, 0.3, 0.1], (10, 1)))
    assert found["predicted_classes"] == 1 and found["macro_f1"] == pytest.approx(2 * 0.5 / 1.5 / 3)
    assert "1 of 3" in guess_message(found, 3)
    learned = scores(labels, np.eye(3)[labels])
    assert learned["predicted_classes"] == 3 and guess_message(learned, 3) == ""


def test_no_rows_give_none() -> None:
    assert set(scores(np.zeros(0, np.int64), np.zeros((0, 2))).values()) == {None}


def test_softmax_of_large_logits() -> None:
    found = softmax(np.array([[1e4, 0.0], [-1e4, -1e4]], np.float32))
    np.testing.assert_allclose(found, [[1.0, 0.0], [0.5, 0.5]])

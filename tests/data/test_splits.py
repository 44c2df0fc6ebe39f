"""From rows to splits: nothing stands on two sides, everything odd is counted and said."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xcls.config.schema import Dataset, UserError
from xcls.data.reading import Reading
from xcls.data.rows import make_rows
from xcls.data.source import Splits
from xcls.data.splits import Prepared, prepare
from xcls.data.stratify import allocate, as_keys, carve, first_alike, sample

Row = tuple


class Rows:
    """A source with the rows it was given: (text, label)."""

    def __init__(self, train: list[Row], test: list[Row], **more: list[Row]) -> None:
        self.parts = {"train": train, "test": test, **more}

    def fingerprint(self) -> str:
        return "rows"

    def reading(self) -> Reading:
        return Reading(["text"])

    def load(self) -> Splits:
        made = {}
        for name, rows in self.parts.items():
            texts, labels = ([row[column] for row in rows] for column in (0, 1))
            made[name] = make_rows(text=texts, label=labels, id=[f"{name}-{i}" for i in range(len(rows))])
        return Splits(classes=["a", "b"], **made)


def rows(count: int, prefix: str = "text", every: int = 3) -> list[Row]:
    return [(f"{prefix} {i}", int(i % every == 0)) for i in range(count)]


def said(prepared: Prepared, words: str) -> bool:
    return any(words in warning for warning in prepared.report["warnings"])


def test_validation_is_stratified_seeded_and_disjoint() -> None:
    made = prepare(Rows(rows(300), rows(30, "test")), Dataset())
    assert Counter(made.validation["label"]) == {0: 20, 1: 10} and Counter(made.train["label"]) == {0: 180, 1: 90}
    ids = [set(part["id"]) for part in (made.train, made.validation, made.test)]
    assert sum(map(len, ids)) == len(set.union(*ids)) == 330
    assert set(prepare(Rows(rows(300), rows(30, "test")), Dataset()).validation["id"]) == ids[1]
    assert set(prepare(Rows(rows(300), rows(30, "test")), Dataset(split_seed=1)).validation["id"]) != ids[1]
    assert made.report["rows"] == {"train": 270, "test": 30, "validation": 30, "unlabelled": 0, "mlm": 270}
    assert made.report["classes"]["test"] == {"a": 20, "b": 10} and made.report["warnings"] == []


def test_repeated_texts_stay_on_one_side() -> None:
    made = prepare(Rows([(f"text {i % 40}", i % 2) for i in range(400)], rows(9, "test")), Dataset(validation=0.3))
    assert not set(made.train["text"]) & set(made.validation["text"])
    assert made.report["train_repeated"] == 360 and said(made, "360 of 400 rows of train repeat")


def test_contrary_labels_are_counted() -> None:
    made = prepare(Rows(rows(50) + [("TEXT  1", 1), ("text 1", 0)], rows(9, "test")), Dataset())
    assert made.report["train_contrary"] == 1 and said(made, "train-50, a repetition of train-1")


def test_missing_rows_are_counted_and_skipped_or_refused() -> None:
    bad = [(None, 0), ("  \n", 1), ("x", None), ("y", 0)]
    made = prepare(Rows(rows(30) + bad, rows(9, "test") + bad[:1]), Dataset())
    assert (made.report["train_no_text"], made.report["train_no_label"], made.report["test_no_text"]) == (2, 1, 1)
    assert len(made.train) + len(made.validation) == 31 and len(made.test) == 9
    assert said(made, "train: 2 rows have no text and 1 no label (the first is train-30); 3 of 34")
    with pytest.raises(UserError, match=r"train: 2 rows have no text.*train-30.*dataset.missing=skip"):
        prepare(Rows(rows(30) + bad, rows(9, "test")), Dataset(missing="refuse"))
    with pytest.raises(UserError, match="no row of test"):
        prepare(Rows(rows(30), bad[:2]), Dataset())


@pytest.mark.parametrize("leak", ["warn", "drop"])
def test_a_leak_is_counted_warned_about_and_dropped_if_wanted(leak: str) -> None:
    made = prepare(Rows(rows(30) + [("test  3", 1), ("TEST 4", 0)], rows(9, "test")), Dataset(leak=leak))
    assert made.report["train_leak"] == 2 and said(made, "2 rows of train are also in test (the first is train-30)")
    left = {text.casefold() for part in (made.train, made.validation) for text in part["text"]}
    assert ("test 4" in left) is (leak == "warn")


def test_a_given_validation_part_is_held_apart_too() -> None:
    source = Rows(rows(30) + [("mine 1", 0)], rows(9, "test"), validation=rows(12, "mine") + [("test 1", 0)])
    made = prepare(source, Dataset(leak="drop"))
    assert (made.report["train_leak"], made.report["validation_leak"]) == (1, 1)
    assert len(made.validation) == 12 and "mine 1" not in made.train["text"]
    with pytest.raises(UserError, match="leaves nothing"):
        prepare(Rows(rows(9, "test"), rows(9, "test")), Dataset(leak="drop"))


def test_mlm_text_is_train_and_more_without_what_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("extra line\ntest 3\n")
    loose = [(text, None) for text in ("free text", "TEST 2", None, *(f"text {i}" for i in range(40)))]
    source = Rows(rows(40), rows(9, "test"), unlabelled=loose)
    made = prepare(source, Dataset(extra=[str(tmp_path / "more.txt")]))
    held_out = {text.casefold() for part in (made.validation, made.test) for text in part["text"]}
    assert not held_out & {text.casefold() for text in made.mlm_texts}
    assert {"free text", "extra line", *made.train["text"]} <= set(made.mlm_texts)
    assert made.report["mlm_held_out"] == 2 + len(made.validation)
    assert made.report["rows"]["extra"] == 2 and made.report["rows"]["mlm"] == len(made.mlm_texts)
    with pytest.raises(UserError, match="no such file"):
        prepare(source, Dataset(extra=["nowhere.txt"]))


def test_a_limit_is_stratified_and_spares_test() -> None:
    source = Rows(rows(600), rows(90, "test"), unlabelled=[(f"free {i}", None) for i in range(540)])
    made = prepare(source, Dataset(limit=60))
    assert Counter(made.train["label"]) == {0: 40, 1: 20} and len(made.test) == 90
    assert Counter(made.validation["label"]) == {0: 40, 1: 20} and len(made.mlm_texts) == 60 + 54
    assert said(made, "quick look") and not said(prepare(source, Dataset(limit=10_000)), "quick look")


@pytest.mark.parametrize(("limit", "left"), [(2, 1000), (900, 1000), (1440, 1200)])
def test_a_limit_leaves_a_validation_that_can_be_scored(limit: int, left: int) -> None:
    made = prepare(Rows(rows(1800), rows(9, "test"), validation=rows(1500, "mine")), Dataset(limit=limit))
    assert (len(made.train), len(made.validation)) == (limit, left)


def test_classes_that_cannot_be_learnt_are_said() -> None:
    with pytest.raises(UserError, match="have 1 class"):
        prepare(Rows([("x", 0), ("y", 0), ("z", 0)], rows(9, "test")), Dataset())
    assert said(prepare(Rows(rows(30), [("only", 0)]), Dataset()), "test has no row of the classes b")


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(0, 120))
def test_places_are_allocated_whole_and_never_beyond_a_class(sizes: list[int], count: int) -> None:
    places = allocate(np.array(sizes), count)
    assert places.sum() == min(count, sum(sizes)) and (places >= 0).all() and (places <= sizes).all()
    if len(sizes) <= count <= sum(sizes):
        assert (places[np.array(sizes) > 0] > 0).all()


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=60),
    st.floats(0.01, 0.9),
    st.integers(0, 3),
)
def test_carving_keeps_repeats_together_and_classes_on_both_sides(pairs: list, share: float, seed: int) -> None:
    labels = np.array([label for label, _ in pairs])
    alike = first_alike(as_keys([bytes([label, text]) for label, text in pairs]))
    chosen = carve(labels, share, seed=seed, alike=alike)
    assert (chosen == chosen[alike]).all()
    for label in np.unique(labels):
        texts = {text for other, text in pairs if other == label}
        sides = {bool(side) for side in chosen[labels == label]}
        assert sides == ({True, False} if len(texts) > 1 else {False})
    assert (np.sort(sample(labels, len(labels), seed=seed)) == np.arange(len(labels))).all()

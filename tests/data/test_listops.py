"""ListOps: expressions as Long Range Arena draws them, with values that a second, plain evaluator finds too."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from xcls.config.schema import UserError
from xcls.data import listops
from xcls.data.listops import CLASSES, OPERATORS, ListOps, Shape, draw_expression

SMALL = {"train_size": 300, "validation_size": 40, "test_size": 50, "min_length": 20, "max_length": 80, "max_depth": 5}
LIKE = Shape(max_depth=5, max_args=6, min_length=10, max_length=120)


def value(text: str) -> int:
    """What an expression gives, by reading it from left to right with a stack."""
    stack: list[list] = [[]]
    for token in text.split():
        if token.startswith("["):
            stack.append([token])
        elif token != "]":
            stack[-1].append(int(token))
        else:
            operator, *values = stack.pop()
            assert len(values) >= 2
            result = {"[MIN": min, "[MAX": max, "[MED": statistics.median, "[SM": lambda v: sum(v) % 10}[operator](
                values
            )
            stack[-1].append(int(result))
    assert len(stack) == 1 and len(stack[0]) == 1
    return stack[0][0]


def depth_of(tokens: list[str]) -> int:
    depths = np.cumsum([token.startswith("[") - (token == "]") for token in tokens])
    return int(depths.max())


def some(count: int, shape: Shape, seed: int = 0) -> tuple[list[str], list[int]]:
    draw, texts, values = random.Random(seed).random, [], []
    while len(texts) < count:
        tokens: list[str] = []
        answer = draw_expression(draw, shape, tokens)
        if shape.min_length < len(tokens) < shape.max_length:
            texts.append(" ".join(tokens))
            values.append(answer)
    return texts, values


@pytest.mark.parametrize("shape", [Shape(), LIKE, Shape(2, 3, 3, 6), Shape(9, 8, 200, 230)], ids=str)
def test_an_independent_evaluator_finds_every_value(shape: Shape) -> None:
    texts, values = some(150, shape)
    assert [value(text) for text in texts] == values
    for tokens in map(str.split, texts):
        assert shape.min_length < len(tokens) < shape.max_length and set(tokens) <= {*CLASSES, *OPERATORS, "]"}
        assert depth_of(tokens) < shape.max_depth  # digits are a level below


def test_the_operators_give_what_the_paper_says() -> None:
    given = {"[MIN": [2, 3], "[MAX": [4, 3, 2, 1, 0], "[MED": [9, 2, 5], "[SM": [9, 8]}
    assert {name: OPERATORS[name](values) for name, values in given.items()} == {
        "[MIN": 2,
        "[MAX": 4,
        "[MED": 5,
        "[SM": 7,
    }
    assert OPERATORS["[MED"]([1, 4]) == 2 and Shape() == Shape(10, 10, 500, 2000)


def test_operators_digits_and_arguments_are_drawn_alike() -> None:
    """The shares of 2,000 expressions: each operator a quarter, each digit a tenth, two to max_args arguments."""
    wide = Shape(max_depth=3, max_args=4, min_length=1, max_length=1000)
    counts = Counter(token for text in some(2000, wide)[0] for token in text.split())
    for names, share in ((OPERATORS, 1 / 4), (CLASSES, 1 / 10)):
        total = sum(counts[name] for name in names)
        assert all(abs(counts[name] - share * total) < 5 * (share * total) ** 0.5 for name in names)
    assert counts["]"] == sum(counts[name] for name in OPERATORS)


def test_splits_have_their_sizes_nothing_in_common_and_the_same_rows_every_time(own_cache: Path) -> None:
    splits = ListOps(**SMALL).load()
    parts = [list(rows["text"]) for rows in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [300, 40, 50] and len({text for part in parts for text in part}) == 390
    assert [value(text) for text in parts[2]] == list(splits.test["label"]) and splits.classes == CLASSES
    assert list(splits.test["id"])[:2] == ["test-0", "test-1"]
    built = sorted((own_cache / "listops").glob("*/*/*.*"))
    assert len(built) == 12
    content = [file.read_bytes() for file in built]
    built[0].parents[1].rename(own_cache / "old")
    assert list(ListOps(**SMALL).load().train["text"]) == parts[0]
    assert [file.read_bytes() for file in built] == content
    fewer = ListOps(**{**SMALL, "train_size": 100}).load()
    assert list(fewer.test["text"]) == parts[2] and list(fewer.train["text"]) == parts[0][:100]
    assert list(ListOps(**SMALL, seed=1).load().test["text"]) != parts[2]


def test_they_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ListOps(**SMALL).load()
    monkeypatch.setattr(listops, "draw_expression", lambda *_, **__: pytest.fail("made again"))
    assert list(ListOps(**SMALL).load().train["text"]) == list(first.train["text"])
    changes = [{"seed": 1}, {"train_size": 301}, {"max_args": 9}, {"min_length": 21}]
    assert len({ListOps(**{**SMALL, **change}).fingerprint() for change in [{}, *changes]}) == 5


def test_what_cannot_be_made_is_refused(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listops, "BARREN", 2000)
    with pytest.raises(UserError, match=r"only \d+ different expressions.*max_depth"):
        ListOps(min_length=3, max_length=6, max_depth=2, max_args=2, train_size=100_000).load()
    assert [path.name for path in (own_cache / "listops").iterdir() if path.suffix != ".lock"] == []
    for setting, number in (("train_size", 0), ("max_args", 1), ("max_length", 501), ("seed", -1)):
        with pytest.raises(UserError, match=f"dataset.source.{setting}={number}: at least"):
            ListOps(**{setting: number})

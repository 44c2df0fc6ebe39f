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
from xcls.data.listops import CLASSES, ListOps
from xcls.data.listops_trees import OPERATORS, TOKENS, Shape, as_text, expressions

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


def plain(draws: random.Random, shape: Shape, depth: int = 1) -> list[str]:
    """Tokens of a tree as the paper's recursion draws it: an operator one time in four, else a digit."""
    if depth == shape.max_depth or draws.random() > 0.25:
        return [str(draws.randrange(10))]
    arguments = [plain(draws, shape, depth + 1) for _ in range(draws.randint(2, shape.max_args))]
    return [draws.choice(OPERATORS), *(token for argument in arguments for token in argument), "]"]


def depth_of(tokens: list[str]) -> int:
    depths = np.cumsum([token.startswith("[") - (token == "]") for token in tokens])
    return int(depths.max())


def some(count: int, shape: Shape, seed: int = 0) -> tuple[list[str], list[int]]:
    texts, values = [], []
    for codes, offsets, answers in expressions(shape, seed=seed):
        flat, ends = as_text(codes, offsets)
        texts += [flat[a:b].tobytes().decode() for a, b in zip(ends, ends[1:])]
        values += answers.tolist()
        if len(texts) >= count:
            return texts[:count], values[:count]


@pytest.mark.parametrize("shape", [Shape(), LIKE, Shape(2, 3, 3, 6), Shape(9, 8, 200, 230)], ids=str)
def test_an_independent_evaluator_finds_every_value(shape: Shape) -> None:
    texts, values = some(150, shape)
    assert [value(text) for text in texts] == values
    for tokens in map(str.split, texts):
        assert shape.min_length < len(tokens) < shape.max_length and set(tokens) <= set(TOKENS)
        assert depth_of(tokens) < shape.max_depth  # digits are a level below


def test_the_examples_of_the_paper() -> None:
    assert [value(text) for text in ("[MAX 4 3 [MIN 2 3 ] 1 0 ]", "[SM 9 8 ]", "[MED 1 4 ]", "[MED 9 2 5 ]")] == [
        4,
        7,
        2,
        5,
    ]
    assert [len(token.split()) for token in TOKENS] == [1] * 15 and Shape() == Shape(10, 10, 500, 2000)


def test_trees_are_drawn_as_the_recursion_draws_them() -> None:
    """Lengths, values, depths and operators of 4,000 expressions, against 4,000 of the plain recursion."""
    draws, theirs = random.Random(1), []
    while len(theirs) < 4000:
        tokens = plain(draws, LIKE)
        if LIKE.min_length < len(tokens) < LIKE.max_length:
            theirs.append(tokens)
    ours = [text.split() for text in some(4000, LIKE, seed=1)[0]]
    for measure in (
        len,
        depth_of,
        lambda tokens: value(" ".join(tokens)),
        lambda tokens: tokens[0] == "[SM",
        lambda tokens: tokens.count("]"),
    ):
        one, other = (np.array([float(measure(tokens)) for tokens in side]) for side in (ours, theirs))
        error = np.sqrt(one.var() / len(one) + other.var() / len(other))
        assert abs(one.mean() - other.mean()) < 4.5 * error
        places = np.quantile(other, np.linspace(0, 1, 11))
        shares = [np.searchsorted(np.sort(side), places, side="right") / len(side) for side in (one, other)]
        assert np.abs(shares[0] - shares[1]).max() < 0.05  # by chance in one pair of samples of 10,000
    counts = Counter(token for tokens in ours for token in tokens)
    assert len({counts[digit] for digit in CLASSES}) > 1 and 0.95 < counts["3"] / counts["7"] < 1.05
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
    monkeypatch.setattr(listops, "expressions", lambda *_, **__: pytest.fail("made again"))
    assert list(ListOps(**SMALL).load().train["text"]) == list(first.train["text"])
    changes = [{"seed": 1}, {"train_size": 301}, {"max_args": 9}, {"min_length": 21}]
    assert len({ListOps(**{**SMALL, **change}).fingerprint() for change in [{}, *changes]}) == 5


ROUND = "( ( ( [MAX 4 ) ( ( ( [MIN 2 ) 3 ) ] ) ) ] )"


def test_what_cannot_be_made_is_refused(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listops, "BARREN", 3)
    with pytest.raises(UserError, match=r"only \d+ different expressions.*max_depth"):
        ListOps(min_length=3, max_length=6, max_depth=2, max_args=2, train_size=100_000).load()
    assert [path.name for path in (own_cache / "listops").iterdir() if path.suffix != ".lock"] == []
    for setting, number in (("train_size", 0), ("max_args", 1), ("max_length", 501), ("seed", -1)):
        with pytest.raises(UserError, match=f"dataset.source.{setting}={number}: at least"):
            ListOps(**{setting: number})

"""ListOps expressions (Nangia, Bowman 2018) as Long Range Arena draws them (Tay et al. 2020), many trees at a time.

A node is an operator with probability 1/4 above the deepest level, and has two to `max_args` arguments; else it is a
digit. Expressions are kept whose tokens, brackets counted and round ones not written, are more than `min_length` and
fewer than `max_length`. Trees grow level by level as flat arrays: the arguments of an operator stand side by side in the
next level, in the order of their operators, so that sums over arguments are sums over neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator

import numpy as np

from xcls.data.draws import draw, key

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")  # smallest, largest, median (rounded down), sum modulo 10
END = len(OPERATORS) + 10
TOKENS = (*map(str, range(10)), *OPERATORS, "]")  # a token's code is its place here
ROOTS = 4096  # trees that grow together


@dataclass(frozen=True)
class Shape:
    """How large expressions may be; the defaults are Long Range Arena's."""

    max_depth: int = 10
    max_args: int = 10
    min_length: int = 500
    max_length: int = 2000


@dataclass
class Level:
    """The nodes of one depth in all trees: the tree each belongs to, its code (digit or operator), its arguments (0: a
    digit). All int64 [n]."""

    tree: np.ndarray
    code: np.ndarray
    args: np.ndarray

    def of(self, kept: np.ndarray, number: np.ndarray) -> Level:
        """Only the trees `kept` bool [trees], numbered anew by `number` int64 [trees]."""
        chosen = kept[self.tree]
        return Level(number[self.tree[chosen]], self.code[chosen], self.args[chosen])


def expressions(shape: Shape, *, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Endless batches of accepted expressions, each (codes uint8 [T], offsets int64 [E + 1], answers int64 [E])."""
    number = 0
    while True:
        yield _write(_grow(shape, seed, number))
        number += 1


def _grow(shape: Shape, seed: int, number: int) -> list[Level]:
    """The levels of the accepted ones of `ROOTS` trees. Each root is an operator: a lone digit is never long enough."""
    levels: list[Level] = []
    tree = np.arange(ROOTS)
    lengths = np.zeros(ROOTS, np.int64)
    for depth in range(1, shape.max_depth + 1):
        level = _level(tree, depth, shape, draw(key([seed, number, depth]), np.arange(len(tree))))
        levels.append(level)
        inner = level.args > 0
        lengths += np.bincount(level.tree, 1 + inner, ROOTS).astype(np.int64)
        waiting = np.bincount(level.tree, level.args, ROOTS)  # at least a token each
        going = inner & (lengths + waiting < shape.max_length)[level.tree]  # what is too long already grows no more
        lengths[waiting + lengths >= shape.max_length] = shape.max_length
        tree = np.repeat(level.tree[going], level.args[going])
        if not len(tree):
            break
    kept = (lengths > shape.min_length) & (lengths < shape.max_length)
    order = np.cumsum(kept) - 1
    return [level.of(kept, order) for level in levels]


def _level(tree: np.ndarray, depth: int, shape: Shape, bits: np.ndarray) -> Level:
    """Draws the nodes of one level: uint64 `bits` [n] decide kind, digit, operator and number of arguments."""
    inner = (bits & np.uint64(3)) == 0 if depth > 1 else np.ones(len(tree), bool)
    inner &= depth < shape.max_depth

    def upto(shift: int, choices: int) -> np.ndarray:  # uniform over 0 … choices-1, but for one part in 10**5
        return (((bits >> np.uint64(shift)) & np.uint64(0xFFFFF)) * np.uint64(choices) >> np.uint64(20)).astype(
            np.int64
        )

    code = np.where(inner, 10 + upto(2, len(OPERATORS)), upto(22, 10))
    return Level(tree, code, np.where(inner, 2 + upto(42, shape.max_args - 1), 0))


def _write(levels: list[Level]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes, offsets, answers) of whole trees: sizes and answers from the leaves up, places from the roots down."""
    sizes, answers = [np.ones(len(levels[-1].tree), np.int64)], [levels[-1].code]
    for level in levels[-2::-1]:
        inner = level.args > 0
        size, answer = np.ones(len(inner), np.int64), level.code.copy()
        if inner.any():
            starts = _starts(level.args[inner])
            size[inner] = 2 + np.add.reduceat(sizes[0], starts)
            answer[inner] = _answer(level.code[inner], level.args[inner], starts, answers[0])
        sizes.insert(0, size)
        answers.insert(0, answer)
    offsets = np.concatenate([[0], np.cumsum(sizes[0])])
    codes = np.full(offsets[-1], END, np.uint8)  # a closing bracket wherever nothing else is written
    place = offsets[:-1]
    for depth, level in enumerate(levels):
        codes[place] = level.code
        inner = level.args > 0
        if inner.any():
            before = _starts(sizes[depth + 1])
            within = before - np.repeat(before[_starts(level.args[inner])], level.args[inner])
            place = np.repeat(place[inner] + 1, level.args[inner]) + within
    return codes, offsets, answers[0]


def _answer(code: np.ndarray, args: np.ndarray, starts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What operators `code` [n] give for their `args` [n] values, which begin at `starts` [n] of `values`."""
    rank = np.sort(np.repeat(np.arange(len(args)), args) * 16 + values) % 16  # values sorted within each operator
    median = (rank[starts + (args - 1) // 2] + rank[starts + args // 2]) // 2
    total = np.add.reduceat(values, starts) % 10
    return np.choose(code - 10, [rank[starts], rank[starts + args - 1], median, total])


def _starts(counts: np.ndarray) -> np.ndarray:
    """Where each of several runs begins that stand one behind the other."""
    return np.cumsum(counts) - counts


def as_text(codes: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The expressions as text, tokens separated by one space: (ASCII bytes uint8 [T'], offsets int64 [E + 1])."""
    widest = max(map(len, TOKENS)) + 1
    written = [f"{token} " for token in TOKENS]
    table = np.array([list(word.ljust(widest).encode()) for word in written], np.uint8)
    width = np.array([len(word) for word in written])[codes]
    width[offsets[1:] - 1] -= 1  # no space at the end
    text = table[codes][np.arange(widest) < width[:, None]]
    return text, np.concatenate([[0], np.cumsum(width)])[offsets]

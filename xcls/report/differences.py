"""Differences of mean macro-F1 between groups, each with its interval, or with the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Sequence

import numpy as np

from xcls.report.bootstrap import Sample, difference, f1_replicates, percentile_interval
from xcls.report.predictions import Predictions, Unusable, read_predictions
from xcls.report.settings import Bootstrap

if TYPE_CHECKING:
    from xcls.report.aggregate import Board, Group
    from xcls.report.collect import Run

HOLDS, BROKEN, OPEN = "holds", "does not hold", "cannot tell"
RATIO = "×"
DIGITS = 9


@dataclass(frozen=True)
class Interval:
    """A difference in percentage points, or a ratio of costs, and the interval around it. Without one, `reason` says why."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    examples: int = 0
    over: str = ""  # what was drawn: 'examples and seeds', or 'examples' where there is but one seed
    reason: str = ""
    unit: str = "pp"  # or RATIO

    def tells(self, relation: str, threshold: float) -> str:
        """Does `difference <= (or >=) threshold` hold over the whole interval, nowhere in it, or can one not tell?"""
        if self.low is None or self.high is None:
            return ""
        low, high = (self.low, self.high) if relation == "<=" else (-self.high, -self.low)
        limit = threshold if relation == "<=" else -threshold
        return HOLDS if high <= limit else BROKEN if low > limit else OPEN

    @property
    def turned(self) -> Interval:
        """The same difference the other way round."""
        if self.value is None or self.low is None or self.high is None:
            return self
        return Interval(0.0 - self.value, 0.0 - self.high, 0.0 - self.low, self.examples, self.over)


@dataclass(frozen=True)
class _Drawn:
    """A group on one split: which examples these are, how many, and the sample."""

    examples: str
    count: int
    sample: Sample


class Differences:
    """Compares groups by the predictions that their runs left. What was read and drawn is kept: ask in any order."""

    def __init__(self, *, settings: Bootstrap, references: Sequence[str] = ()) -> None:
        self.settings, self.references = settings, references
        # board -> group -> its runs' predictions by split; (board, split) -> group -> sample; or why there is none
        self._read: dict[str, dict[str, list[dict[str, Predictions]] | str]] = {}
        self._samples: dict[tuple[str, str], dict[str, _Drawn | str]] = {}

    def between(self, group: Group, other: Group, board: Board, split: str) -> Interval:
        """Mean macro-F1 of `group` minus that of `other`, both of `board`, on validation or test."""
        found = self._drawn(board, split)
        most = f"not among the first {self.settings.most_groups} groups (bootstrap.most_groups)"
        mine, theirs = found.get(group.id, most), found.get(other.id, most)
        for one, drawn in ((group, mine), (other, theirs)):
            if isinstance(drawn, str):
                return Interval(reason=f"{one.label}: {drawn}")
        assert isinstance(mine, _Drawn) and isinstance(theirs, _Drawn)
        if mine.examples != theirs.examples:
            return Interval(reason=f"{group.label} and {other.label} were scored on different examples")
        if group.id > other.id:  # the draws of a pair are the same from both ends
            return self.between(other, group, board, split).turned
        values = difference(mine.sample, theirs.sample, seed=self.settings.seed, name=f"{split} {group.id} {other.id}")
        low, high = percentile_interval(100 * values, self.settings.level)
        value = round(100 * float(mine.sample.scores.mean() - theirs.sample.scores.mean()), DIGITS)
        return Interval(value + 0.0, round(low, DIGITS) + 0.0, round(high, DIGITS) + 0.0, mine.count, _over(group, other))

    def recomputed(self, board: Board) -> int:
        """How many runs' scores were made again from their predictions and agree with their records."""
        self._drawn(board, "validation")
        return sum(len(told) for told in self._read[board.name].values() if not isinstance(told, str))

    def _drawn(self, board: Board, split: str) -> dict[str, _Drawn | str]:
        """The samples of all groups that are looked at, on one split."""
        if board.name not in self._read:
            self._read[board.name] = {group.id: _predictions_of(group) for group in self._wanted(board)}
        if (board.name, split) not in self._samples:
            self._samples[board.name, split] = self._draw(split, self._read[board.name])
        return self._samples[board.name, split]

    def _draw(self, split: str, read: dict[str, list[dict[str, Predictions]] | str]) -> dict[str, _Drawn | str]:
        """Groups that were scored on the same examples are drawn together."""
        found: dict[str, _Drawn | str] = {}
        alike: dict[str, dict[str, list[Predictions]]] = {}
        for name, told in read.items():
            if isinstance(told, str):
                found[name] = told
            elif any(split not in one for one in told):
                found[name] = f"a run has no predictions for {split}"
            elif len({one[split].examples for one in told}) > 1:
                found[name] = "its runs were scored on different examples"
            else:
                alike.setdefault(told[0][split].examples, {})[name] = [one[split] for one in told]
        for examples, groups in alike.items():
            runs = [one for own in groups.values() for one in own]
            settings = {"replicates": self.settings.replicates, "seed": self.settings.seed}
            drawn = f1_replicates(runs[0].labels, [one.said for one in runs], classes=runs[0].classes, **settings)
            place = 0
            for name, own in groups.items():
                sample = Sample(np.array([one.macro_f1 for one in own]), drawn[place : place + len(own)])
                found[name] = _Drawn(examples, len(own[0].labels), sample)
                place += len(own)
        return found

    def _wanted(self, board: Board) -> list[Group]:
        """The groups that intervals are made for: the best ranked, the references, the baselines."""
        done = [group for group in board.groups if group.runs]
        most = self.settings.most_groups
        others = [group for group in done[most:] if group.attention in self.references]
        return [*done[:most], *others, *(group for group in board.baselines if group.runs)]


def _predictions_of(group: Group) -> list[dict[str, Predictions]] | str:
    """The predictions of every run of a group, or why they cannot be used: none is left out in silence."""
    found, wrong = [], []
    for run in sorted(group.runs, key=_order):
        try:
            found.append(read_predictions(run))
        except Unusable as error:
            wrong.append(f"seed {run.record.seed}: {error}")
    if not wrong:
        return found
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return f"{wrong[0]}{more}"


def _order(run: Run) -> tuple[int, str]:
    return run.record.seed, run.record.hash


def _over(group: Group, other: Group) -> str:
    """What was drawn. A baseline is fitted without a seed; one seed of a group tells nothing about others."""
    seeded = [one for one in (group, other) if one.record.mode != "baseline"]
    single = [one.label for one in seeded if len(one.runs) < 2]
    if len(single) == len(seeded):
        return "examples (one seed)"
    return f"examples and seeds (one seed of {single[0]})" if single else "examples and seeds"

"""Differences of mean macro-F1 between groups, each with its interval, or with the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Sequence

from xcls.report.intervals import Sample, half_width
from xcls.report.predictions import Predictions, Unusable, read_predictions
from xcls.report.settings import Intervals

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
    over: str = ""  # what could have come out otherwise: 'examples and seeds', or 'examples' where there is but one seed
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


class Differences:
    """Compares groups by the predictions that their runs left. What was read is kept: ask in any order."""

    def __init__(self, *, settings: Intervals, references: Sequence[str] = ()) -> None:
        self.settings, self.references = settings, references
        # board -> group -> its runs' predictions by split; (board, split) -> group -> sample; or why there is none
        self._read: dict[str, dict[str, list[dict[str, Predictions]] | str]] = {}
        self._samples: dict[tuple[str, str], dict[str, Sample | str]] = {}

    def between(self, group: Group, other: Group, board: Board, split: str) -> Interval:
        """Mean macro-F1 of `group` minus that of `other`, both of `board`, on validation or test."""
        nothing = group.learned_nothing or other.learned_nothing
        if nothing:
            return Interval(reason=nothing)
        found = self._scored(board, split)
        most = f"not among the first {self.settings.most_groups} groups (intervals.most_groups)"
        mine, theirs = found.get(group.id, most), found.get(other.id, most)
        for one, told in ((group, mine), (other, theirs)):
            if isinstance(told, str):
                return Interval(reason=f"{one.label}: {told}")
        assert isinstance(mine, Sample) and isinstance(theirs, Sample)
        if mine.examples != theirs.examples:
            return Interval(reason=f"{group.label} and {other.label} were scored on different examples")
        half = 100 * half_width(mine, theirs, level=self.settings.level)
        value = round(100 * float(mine.scores.mean() - theirs.scores.mean()), DIGITS) + 0.0
        low, high = (round(min(max(end, -100.0), 100.0), DIGITS) + 0.0 for end in (value - half, value + half))
        return Interval(value, low, high, len(mine.effects), _over(group, other))

    def recomputed(self, board: Board) -> int:
        """How many runs' scores were made again from their predictions and agree with their records."""
        self._scored(board, "validation")
        return sum(len(told) for told in self._read[board.name].values() if not isinstance(told, str))

    def _scored(self, board: Board, split: str) -> dict[str, Sample | str]:
        """What is known of all groups that are looked at, on one split."""
        if board.name not in self._read:
            self._read[board.name] = {group.id: _predictions_of(group) for group in self._wanted(board)}
        if (board.name, split) not in self._samples:
            read = self._read[board.name]
            self._samples[board.name, split] = {name: _sample(told, split) for name, told in read.items()}
        return self._samples[board.name, split]

    def _wanted(self, board: Board) -> list[Group]:
        """The groups that intervals are made for: the best ranked, the references, the baselines."""
        done = [group for group in board.groups if group.runs]
        most = self.settings.most_groups
        others = [group for group in done[most:] if group.attention in self.references]
        return [*done[:most], *others, *(group for group in board.baselines if group.runs)]


def _sample(told: list[dict[str, Predictions]] | str, split: str) -> Sample | str:
    """What intervals are made of, from the predictions of a group's runs, or why there are none."""
    if isinstance(told, str):
        return told
    if any(split not in one for one in told):
        return f"a run has no predictions for {split}"
    runs = [one[split] for one in told]
    if len({one.examples for one in runs}) > 1:
        return "its runs were scored on different examples"
    return Sample.of(runs)


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
    """What could have come out otherwise. A baseline is fitted without a seed; one seed of a group tells nothing about others."""
    seeded = [one for one in (group, other) if one.record.mode != "baseline"]
    single = [one.label for one in seeded if len(one.runs) < 2]
    if len(single) == len(seeded):
        return "examples (one seed)"
    return f"examples and seeds (one seed of {single[0]})" if single else "examples and seeds"

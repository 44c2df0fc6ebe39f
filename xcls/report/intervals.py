"""Differences of mean macro-F1 between groups scored on the same examples, with intervals or the reason for none.

Two things are random: the examples of the split (each class keeps its number of rows: splits are stratified), and the
seeds. docs/intervals.md derives the formulas and gives their coverage, which tests/report/coverage.py measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np
from scipy.special import stdtrit

from xcls.report.groups import Group
from xcls.report.predictions import Predictions, Unusable, read_predictions
from xcls.report.settings import Intervals
from xcls.report.table import signed

HOLDS, BROKEN, OPEN = "holds", "does not hold", "cannot tell"
DIGITS = 9
SHRINKAGE_ROWS = 2.0  # a class with this many rows gets half the weight, classes of equal size the other half
MIN_CHANGED_ROWS = 2.0  # no interval is narrower than a change in the predictions of this many rows makes it
SUBTRACTED_SHARE = 0.8  # of `Sample.own`, from the variance of the seeds; all of it is too much with two seeds


def row_effects(predictions: Predictions) -> np.ndarray:
    """The effect of each row on macro-F1: macro-F1 minus what it is without that row's prediction, float64 [rows].

    A correct prediction raises the F1 of its class, a wrong one lowers that of the predicted class. The size depends on
    the other rows, so it is averaged over the class and, for small classes, over all classes of equal size.
    """
    support, predicted, hits = predictions.counts()
    total, rows = support + predicted, np.maximum(support, 1)
    now = 2 * hits / np.maximum(total, 1)
    last = now - 2 * np.maximum(hits - 1, 0) / np.maximum(total - 1, 1)  # one hit fewer
    further = 2 * (hits + 1) / (total + 1) - now  # one hit more
    lift = _shrunk((hits * last + (support - hits) * further) / rows, support, weights=rows)
    wrong = predicted - hits
    drop = np.where(wrong > 0, now - 2 * hits / np.maximum(total - 1, 1), 2 * hits / (total + 1) - now)
    drop = _shrunk(drop, support, weights=wrong + 1e-9)
    labels, said = predictions.labels, predictions.said
    return np.where(labels == said, lift[labels], drop[said]) / predictions.classes


def _shrunk(values: np.ndarray, support: np.ndarray, *, weights: np.ndarray) -> np.ndarray:
    """values [classes], shrunk towards the mean over classes with as many rows: the fewer rows, the more."""
    _, like = np.unique(support, return_inverse=True)
    mean = np.bincount(like, weights * values) / np.bincount(like, weights)
    own = support / (support + SHRINKAGE_ROWS)
    return own * values + (1 - own) * mean[like]


@dataclass(frozen=True)
class Sample:
    """A group on one split. Only samples with equal `examples` can be compared.

    scores: macro-F1 of its runs [runs]. effects: the mean of their `row_effects` [rows]. strata: `row_strata` [rows].
    min_variance: `min_variance`. own: the variance over examples of one run's deviation from that mean.
    """

    examples: str
    scores: np.ndarray
    effects: np.ndarray
    strata: np.ndarray
    min_variance: float
    own: float

    @classmethod
    def of(cls, runs: list[Predictions]) -> Sample:
        """The sample of `runs`, all on the same examples."""
        first = runs[0]
        strata, effects = row_strata(first.labels, first.classes), np.stack([row_effects(run) for run in runs])
        mean, scores = effects.mean(axis=0), np.array([run.macro_f1 for run in runs])
        own = sum(variance(one - mean, strata)[0] for one in effects) / max(len(runs) - 1, 1)
        return cls(first.examples, scores, mean, strata, min_variance(first.labels, first.classes), own)


def row_strata(labels: np.ndarray, classes: int) -> np.ndarray:
    """The stratum (class) of each row, [rows]. Classes of one row form one stratum; a single such class takes in the
    next smallest."""
    support = np.bincount(labels, minlength=classes)
    single = support == 1
    if single.sum() == 1:
        single[np.argsort(np.where(support > 0, support, len(labels) + 1), kind="stable")[:2]] = True
    return np.where(single[labels], classes, labels)


def variance(effects: np.ndarray, strata: np.ndarray) -> tuple[float, float]:
    """Variance of the sum of `effects` [rows], drawn within `strata` [rows], and its degrees of freedom.

    If few rows contribute, the degrees of freedom are few: ten rows that differ among thousands are a small sample.
    """
    size = np.maximum(np.bincount(strata), 1)
    squares = (effects - (np.bincount(strata, effects) / size)[strata]) ** 2 * (size / np.maximum(size - 1, 1))[strata]
    total, scatter = squares.sum(), ((squares - (np.bincount(strata, squares) / size)[strata]) ** 2).sum()
    whole = float((size - 1).sum())
    return float(total), min(whole, 2 * total**2 / scatter) if scatter > 0 else whole


def min_variance(labels: np.ndarray, classes: int) -> float:
    """The variance if `MIN_CHANGED_ROWS` rows were predicted differently, so that no interval has width 0."""
    support = np.bincount(labels, minlength=classes)
    return MIN_CHANGED_ROWS * float((1 / support[support > 0]).sum()) / (len(labels) * classes**2)


def half_width(mine: Sample, theirs: Sample, *, level: float) -> float:
    """Half the width of the interval of `mine` minus `theirs`, from 0 to 1.

    The squares of two half-widths are added: that of the examples and that of the seeds (Welch). One t quantile for the
    summed variance (Satterthwaite) is too small if two or three seeds happen to agree.
    """
    tail = (1 + level) / 2
    examples, freedom = variance(mine.effects - theirs.effects, mine.strata)
    if examples < mine.min_variance:
        examples, freedom = mine.min_variance, 0.0
    squared = stdtrit(max(freedom, 2 * MIN_CHANGED_ROWS), tail) ** 2 * examples
    parts = [(one.scores.var(ddof=1) / len(one.scores), one) for one in (mine, theirs) if len(one.scores) > 1]
    seeds = sum(part for part, _ in parts)
    beyond = seeds - SUBTRACTED_SHARE * sum(one.own / len(one.scores) for _, one in parts)
    if beyond > 0:
        welch = seeds**2 / sum(part**2 / (len(one.scores) - 1) for part, one in parts)
        squared += stdtrit(welch, tail) ** 2 * beyond
    return float(squared**0.5)


@dataclass(frozen=True)
class Interval:
    """A difference in percentage points, or a ratio of costs, and its interval. `reason`: why there is none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    examples: int = 0
    over: str = ""  # what is random: 'examples and seeds', or 'examples (one seed)'
    reason: str = ""

    def compare(self, relation: str, threshold: float) -> str:
        """Does `value <= (or >=) threshold` hold in all of the interval (HOLDS), in none (BROKEN), in a part (OPEN)?"""
        if self.low is None or self.high is None:
            return ""
        low, high = (self.low, self.high) if relation == "<=" else (-self.high, -self.low)
        limit = threshold if relation == "<=" else -threshold
        return HOLDS if high <= limit else BROKEN if low > limit else OPEN

    @property
    def text(self) -> str:
        """`−1.20 … +0.31` percentage points; '' without an interval."""
        return "" if self.low is None else f"{signed(self.low)} … {signed(self.high)}"


class Differences:
    """Compares groups by the predictions of their runs. What was read is cached."""

    def __init__(self, *, settings: Intervals, references: Sequence[str] = ()) -> None:
        self.settings, self.references = settings, references
        self._read: dict[str, list[dict[str, Predictions]]] = {}  # group -> its runs' predictions by split
        self._samples: dict[tuple[str, str], Sample | Unusable] = {}

    def between(self, group: Group, other: Group, split: str) -> Interval:
        """Mean macro-F1 of `group` minus that of `other`, both of one data set, on validation or test."""
        nothing = group.learned_nothing or other.learned_nothing
        if nothing:
            return Interval(reason=nothing)
        mine, theirs = (self._sample(one, split) for one in (group, other))
        if isinstance(mine, Unusable):
            return Interval(reason=f"{group.label}: {mine}")
        if isinstance(theirs, Unusable):
            return Interval(reason=f"{other.label}: {theirs}")
        if mine.examples != theirs.examples:
            return Interval(reason=f"{group.label} and {other.label} were scored on different examples")
        half = 100 * half_width(mine, theirs, level=self.settings.level)
        value = round(100 * float(mine.scores.mean() - theirs.scores.mean()), DIGITS) + 0.0
        low, high = (round(min(max(end, -100.0), 100.0), DIGITS) + 0.0 for end in (value - half, value + half))
        return Interval(value, low, high, len(mine.effects), _random_parts(group, other))

    def _sample(self, group: Group, split: str) -> Sample | Unusable:
        """The sample of a group, from the predictions of its runs, or why there is none."""
        place = (group.id, split)
        if place not in self._samples:
            try:
                self._samples[place] = self._make(group, split)
            except Unusable as error:
                self._samples[place] = error
        return self._samples[place]

    def _make(self, group: Group, split: str) -> Sample:
        most, groups = self.settings.most_groups, group.results.groups
        first = [one for one in groups if one.runs][:most]
        if group in groups and group not in first and group.attention not in self.references:
            raise Unusable(f"not among the first {most} groups (intervals.most_groups)")
        if group.id not in self._read:
            self._read[group.id] = _predictions_of(group)
        predictions = self._read[group.id]
        if any(split not in one for one in predictions):
            raise Unusable(f"a run has no predictions for {split}")
        runs = [one[split] for one in predictions]
        if len({one.examples for one in runs}) > 1:
            raise Unusable("its runs were scored on different examples")
        return Sample.of(runs)


def _predictions_of(group: Group) -> list[dict[str, Predictions]]:
    """The predictions of all runs of a group. Raises Unusable if one cannot be used: no run is left out silently."""
    found, wrong = [], []
    for run in sorted(group.runs, key=lambda run: (run.record.seed, run.record.hash)):
        try:
            found.append(read_predictions(run))
        except Unusable as error:
            wrong.append(f"seed {run.record.seed}: {error}")
    if wrong:
        raise Unusable(wrong[0] + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""))
    return found


def _random_parts(group: Group, other: Group) -> str:
    """What is random, as text. A baseline has no seed; from one seed of a group the variance of seeds is unknown."""
    seeded = [one for one in (group, other) if one.record.mode != "baseline"]
    single = [one.label for one in seeded if len(one.runs) < 2]
    if len(single) == len(seeded):
        return "examples (one seed)"
    return f"examples and seeds (one seed of {single[0]})" if single else "examples and seeds"

"""The ratio of a cost of two groups: its interval over the seeds, outlier runs, and which run to repeat.

The median of each group counts, so one disturbed run of three does not decide. The interval is Student's t on the
logarithms of the costs. If the two groups ran in turns, it is made from the ratios of the seeds, which removes drift of
the machine; otherwise from the two groups, with the degrees of freedom of Welch's test.
"""

from __future__ import annotations

import math
from statistics import fmean, median, variance

from scipy.special import stdtrit

from xcls.report.groups import Group
from xcls.report.intervals import DIGITS, OPEN, Interval
from xcls.report.load import Run
from xcls.report.measures import MEASURES

LARGEST = 500.0  # of a logarithm


def cost_interval(group: Group, other: Group, name: str, level: float) -> Interval:
    """The interval of the ratio `group` / `other` in the cost `name`; none if a group has only one value."""
    mine, theirs = (_logs(one, name) for one in (group, other))
    if min(len(mine), len(theirs)) < 2:
        return Interval(reason=f"fewer than two seeds of {(group if len(mine) < 2 else other).label} have it")
    paired = in_turns(group, other) and len(mine) == len(theirs) == len(group.runs)
    gaps = [[one - two for one, two in zip(mine, theirs)]] if paired else [mine, theirs]
    parts = [variance(values) / len(values) for values in gaps]
    spread, half = sum(parts), 0.0
    if spread > 0:
        freedom = spread**2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, gaps))
        half = float(stdtrit(freedom, (1 + level) / 2)) * spread**0.5
    # Both medians exist: each group has at least two values.
    mean, value = fmean(mine) - fmean(theirs), (group.stat(name).median or 0.0) / (other.stat(name).median or 1.0)
    low, high = math.exp(max(mean - half, -LARGEST)), math.exp(min(mean + half, LARGEST))
    ends = round(min(low, value), DIGITS), round(max(high, value), DIGITS)  # always contains the ratio of the medians
    return Interval(round(value, DIGITS), *ends, over="seeds in pairs" if paired else "seeds")


def in_turns(group: Group, other: Group) -> bool:
    """Do both groups have the same seeds, and did the two runs of a seed start one after the other (A B A B …)?"""
    runs = sorted([*group.runs, *other.runs], key=lambda run: run.record.started)
    pairs = list(zip(runs[::2], runs[1::2]))
    alike = all(one.record.seed == two.record.seed and (one in group.runs) != (two in group.runs) for one, two in pairs)
    known = len({run.record.started for run in runs}) == len(runs)
    once = len({one.record.seed for one, _ in pairs}) == len(pairs)
    return group is not other and len(group.runs) == len(other.runs) and alike and known and once


def why_undecided(group: Group, other: Group, name: str, *, interval: Interval, threshold: float, factor: float) -> str:
    """Why these seeds do not decide whether the ratio is at most `threshold`, and which run to repeat; '' if they do.

    A run was disturbed if its cost is more than `factor` times the median of the other runs of its group, or less than
    1/`factor` of it. Of several, the most expensive one is named: a disturbance makes a run more expensive.
    """
    relative = [(times, run.place, one, run) for one in (group, other) for times, run in _relative_to_others(one, name)]
    far = [item for item in relative if not 1 / factor <= item[0] <= factor]
    if far:
        times, place, one, run = max(far, key=lambda item: item[:2])
        message = f"{name} of {one.label}, seed {run.record.seed}, is {times:.3g}× the median of its other seeds"
        return f"{message}: repeat {place}"
    if interval.low is None or interval.compare("<=", threshold) != OPEN:
        return ""
    span, place = f"{interval.low:.3g} … {interval.high:.3g}", max(relative, key=lambda item: item[:2])[1]
    return f"the interval of the {name} ratio, {span}, spans {threshold:g}: add seeds, or repeat {place}"


def _relative_to_others(group: Group, name: str) -> list[tuple[float, Run]]:
    """(cost / median cost of the other runs of the group, run) for each run; empty for a group with one value."""
    costs = [(MEASURES[name].of(run.record), run) for run in group.runs]
    known = [(value, run) for value, run in costs if value is not None and value > 0]
    found = []
    for place, (value, run) in enumerate(known):
        others = [theirs for theirs, _ in known[:place] + known[place + 1 :]]
        found += [(value / median(others), run)] if others else []
    return found


def _logs(group: Group, name: str) -> list[float]:
    """The logarithms of the positive costs, in the order of the seeds."""
    values = [MEASURES[name].of(run.record) for run in sorted(group.runs, key=lambda run: run.record.seed)]
    return [math.log(value) for value in values if value is not None and value > 0]

"""WNF-1 and WNF-2 as written: each claim with values, thresholds and margins; PASS, FAIL or MISSING and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Callable, Sequence

from xcls.report.bench import beside
from xcls.report.cost_ratio import cost_interval, doubt, unlike_groups, unlike_paths
from xcls.report.groups import DatasetResults, Group, without_attention
from xcls.report.intervals import Differences, Interval
from xcls.report.load import Bench, Found
from xcls.report.measures import CONDITIONS, memory_measure, survived
from xcls.report.settings import Claims, FamilyClaims, Settings

PASS, FAIL, MISSING = "PASS", "FAIL", "MISSING"
UNDECIDED = "OPEN"  # of a cost claim: measured, but these runs cannot tell
SPLITS = {"validation": "macro_f1", "test": "test_macro_f1"}
LONGER = {"kind": "kind of device", "threads": "thread count", "compile": "compile setting"}  # than in a table
DIGITS = 9  # 0.85 - 0.80 is not 0.05 in binary: values are compared at nine digits, far below any that is reported


@dataclass(frozen=True)
class Measured:
    """One number of a claim. `margin` is positive on the passing side; value None means it could not be measured.

    `interval` stands beside a difference of macro-F1 and decides nothing: the verdict is by the value, as written. A
    cost ratio is `undecided` where its interval spans the threshold or a run was disturbed; `reason` then says what to
    repeat.
    """

    name: str
    value: float | None
    relation: str  # '<=' or '>='
    threshold: float
    reason: str = ""
    interval: Interval | None = None
    undecided: bool = False
    bench: float | None = None  # the same ratio as mode=bench has measured it in turns
    bench_says: str = ""  # whether it is on the same side of 1, and where it is

    @property
    def margin(self) -> float | None:
        """The distance to the threshold, positive where the claim holds."""
        if self.value is None:
            return None
        return round((self.threshold - self.value) * (1 if self.relation == "<=" else -1), DIGITS)

    @property
    def state(self) -> str:
        """PASS, also exactly at the threshold; FAIL; MISSING without a value; UNDECIDED."""
        if self.margin is not None and self.undecided:
            return UNDECIDED
        return MISSING if self.margin is None else PASS if self.margin >= 0 else FAIL

    @property
    def told(self) -> str:
        """What the interval says of the threshold: holds, does not hold, cannot tell; '' without an interval."""
        return "" if self.interval is None else self.interval.tells(self.relation, self.threshold)


@dataclass(frozen=True)
class Claim:
    """One claim about one group, on one split, against one reference."""

    code: str  # 'WNF-1 cost', 'WNF-2 quality', 'WNF-2 stability'
    state: str
    measured: tuple[Measured, ...] = ()
    reason: str = ""
    remark: str = ""  # in what the costs compared were measured differently
    hindered: bool = False  # MISSING for a reason that holds for all its numbers, measured or not


@dataclass
class Study:
    """The runs of a report, their groups by data set, and the verdicts on them.

    `claims_for` gives the thresholds of a group and what is wrong with them, or ''. `references`: the mechanisms that
    others are compared with; the first decides. `differences` makes the intervals of macro-F1.
    """

    settings: Settings
    found: Found
    groups: Sequence[Group]
    boards: Sequence[DatasetResults]
    claims_for: Callable[[Group], tuple[Claims, str]]
    references: Sequence[str]
    differences: Differences
    benches: Sequence[Bench] = ()
    made: dict[tuple[str, str, str], Verdict] = field(default_factory=dict)

    def verdict(self, group: Group, board: DatasetResults, reference: str, split: str = "validation") -> Verdict:
        """The verdict on `group` against the mechanism named `reference`, on `split` (validation or test)."""
        place = (group.id, reference, split)
        if place not in self.made:
            self.made[place] = Verdict(group, board, reference, split, self)
        return self.made[place]


@dataclass
class Verdict:
    """All claims about a group, against a reference, on a split."""

    group: Group
    board: DatasetResults
    reference: str
    split: str
    study: Study

    def __post_init__(self) -> None:
        self.limits, self.reason = self.study.claims_for(self.group)  # reason: why there is no claim to judge
        self.reference_group, self.no_reference = find_reference(self.group, self.board, self.reference)
        self.baseline, self.family = strictest(self.board.baselines), self.limits.family(self.group.attention)
        if self.family is None:
            self.reason = self.reason or "no claim is made for it"

    @cached_property
    def claims(self) -> tuple[Claim, ...]:
        """The claims that are made for the group's mechanism."""
        if self.reason or self.family is None:
            return ()
        made = (self._cost(self.family), self._quality(self.family), self._stability(self.family))
        return tuple(claim for claim in made if claim is not None)

    @property
    def state(self) -> str:
        """PASS_WNF: FAIL if one claim fails, else MISSING if one is missing or open, else PASS."""
        state = every([claim.state for claim in self.claims]) if self.claims else MISSING
        return MISSING if state == UNDECIDED else state

    @property
    def reasons(self) -> list[str]:
        """Why there is no verdict on claims that are missing or open, each reason once."""
        waiting = [claim.reason for claim in self.claims if claim.state in (MISSING, UNDECIDED) and claim.reason]
        return list(dict.fromkeys(waiting))

    def _cost(self, family: FamilyClaims) -> Claim | None:
        """WNF-1: the time or the memory is low enough, and the macro-F1 is not too far below the reference."""
        memory = memory_measure(self.group.device.get("kind"))
        limits = {"time_per_epoch": family.max_time_ratio, memory: family.max_memory_ratio}
        saving = [self._ratio(name, limit) for name, limit in limits.items() if limit is not None]
        if not saving:
            return None
        loss, other = self._loss(family), self.reference_group
        state = every([some([m.state for m in saving]), *(m.state for m in loss)])
        remark = "" if other is None else "; ".join(unlike_groups(self.group, other))
        return self._claim("WNF-1 cost", state, [*saving, *loss], self._hindrance(cost=True), remark)

    def _quality(self, family: FamilyClaims) -> Claim | None:
        """WNF-2: far enough above the baseline, and not too far below the reference."""
        if family.min_gain_pp is None:
            return None
        sides, reason = (self.group, self.baseline), no_baseline(self.board)
        measured = [
            self._difference("macro-F1 gain (pp)", *sides, ">=", family.min_gain_pp, reason),
            *self._loss(family),
        ]
        return self._claim("WNF-2 quality", every([m.state for m in measured]), measured, self._hindrance())

    def _stability(self, family: FamilyClaims) -> Claim | None:
        """WNF-2: enough seeds, no NaN, no lack of memory (survived ones count too), and the seeds close together."""
        if family.max_spread_pp is None:
            return None
        stat = self.group.stat(SPLITS[self.split])
        whole = stat.n == len(self.group.runs) and stat.high is not None and stat.low is not None
        value = _rounded((stat.high - stat.low) * 100) if whole else None  # type: ignore[operator]
        reason = "" if whole else "a run has no macro-F1"
        measured = [Measured("macro-F1 spread (pp)", value, "<=", family.max_spread_pp, reason)]
        causes = [f"seed {run.record.seed}: {run.record.cause}" for run in self.group.broken]
        causes += [f"seed {run.record.seed}: {told}" for run in self.group.runs for told in survived(run.record)]
        if causes and self.group.record.seq_len == self.limits.seq_len:
            return Claim("WNF-2 stability", FAIL, tuple(measured), "; ".join(causes))
        return self._claim("WNF-2 stability", measured[0].state, measured, self._hindrance())

    def _claim(self, code: str, state: str, measured: list[Measured], hindrance: str, remark: str = "") -> Claim:
        if hindrance:
            return Claim(code, MISSING, tuple(measured), hindrance, remark, hindered=True)
        told = "; ".join(dict.fromkeys(m.reason for m in measured if m.state == state and m.reason))
        return Claim(code, state, tuple(measured), told if state in (MISSING, UNDECIDED) else "", remark)

    def _hindrance(self, cost: bool = False) -> str:
        """Why the claims do not apply to this group, or ''."""
        group, other, length = self.group, self.reference_group, self.group.record.seq_len
        if group.learned_nothing:
            return group.learned_nothing
        if length != self.limits.seq_len:
            return f"seq_len is {length}; the claims are made at {self.limits.seq_len}"
        if self._seeds(group) or not cost or other is None:
            return self._seeds(group)
        if self._seeds(other):
            return self._seeds(other)
        if group.shared or other.shared:
            return f"another job ran on the device of {(group if group.shared else other).label}"
        path = unlike_paths(group, other)
        return path and f"{path}; run all on one device with one micro-batch, so that they compute alike"

    def _seeds(self, group: Group) -> str:
        """`2 of 3 seeds have completed`, or '' where there are enough."""
        done, need = len(group.seeds), self.limits.min_seeds
        whose = "" if group is self.group else f" of {group.label}"
        return f"{done} of {need} seeds{whose} have completed" if done < need else ""

    def _ratio(self, name: str, threshold: float) -> Measured:
        group, other, title = (
            self.group,
            self.reference_group,
            "time ratio" if name == "time_per_epoch" else "memory ratio",
        )
        value = None if other is None else _rounded(ratio(group, other, name))
        if other is None or value is None:
            return Measured(title, None, "<=", threshold, self.no_reference or f"{name} was not measured")
        interval, factor = (
            cost_interval(group, other, name, self.study.settings.intervals.level),
            self.limits.max_cost_factor,
        )
        told = doubt(group, other, name, interval=interval, threshold=threshold, factor=factor)
        bench = beside(group, other, name, value, self.study.benches)
        return Measured(title, value, "<=", threshold, told, interval, bool(told), *bench)

    def _loss(self, family: FamilyClaims) -> list[Measured]:
        """The loss of macro-F1 against the reference, where one is claimed."""
        if family.max_loss_pp is None:
            return []
        other = self.reference_group
        reason = self.no_reference or (self._seeds(other) if other else "")
        return [self._difference("macro-F1 loss (pp)", other, self.group, "<=", family.max_loss_pp, reason)]

    def _difference(
        self, name: str, above: Group | None, below: Group | None, relation: str, threshold: float, reason: str
    ) -> Measured:
        """Macro-F1 of one group over that of another. `reason`: why it cannot be measured, where that is known."""
        if reason or above is None or below is None:
            return Measured(name, None, relation, threshold, reason)
        value = difference_pp(above, below, self.split)
        if value is None:
            reason = self.group.learned_nothing or above.learned_nothing or below.learned_nothing
            reason = reason or f"no {self.split} macro-F1"
        interval = None
        if above is not below:
            interval = self.study.differences.between(above, below, self.board, self.split)
        return Measured(name, value, relation, threshold, reason, interval)


def every(states: list[str]) -> str:
    """FAIL if one is FAIL, else MISSING if one is, else UNDECIDED if one is, else PASS."""
    return next((state for state in (FAIL, MISSING, UNDECIDED) if state in states), PASS)


def some(states: list[str]) -> str:
    """PASS if one is PASS, else UNDECIDED if one is, else MISSING if one is, else FAIL."""
    return next((state for state in (PASS, UNDECIDED, MISSING) if state in states), FAIL)


def ratio(group: Group, other: Group, name: str) -> float | None:
    """`group` over `other` in a cost, of each the median; None where one is missing or the divisor is not positive."""
    above, below = group.stat(name).middle, other.stat(name).middle
    return None if above is None or below is None or below <= 0 else above / below


def difference_pp(group: Group, other: Group, split: str) -> float | None:
    """Mean macro-F1 of `group` minus that of `other`, in percentage points; None where one of them learned nothing."""
    if group.learned_nothing or other.learned_nothing:
        return None
    mine, theirs = group.stat(SPLITS[split]).mean, other.stat(SPLITS[split]).mean
    return None if mine is None or theirs is None else _rounded((mine - theirs) * 100)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


def strictest(baselines: list[Group]) -> Group | None:
    """The baseline the claims are measured against: of several on the same rows the one that scores highest."""
    scored = [(group.stat("macro_f1").mean, group.id, group) for group in baselines if group.runs]
    scored = [item for item in scored if item[0] is not None]
    return max(scored, key=lambda item: item[:2])[2] if scored else None


def no_baseline(board: DatasetResults) -> str:
    """Why a board has no baseline, or ''."""
    if strictest(board.baselines) is not None:
        return ""
    if any(group.key["rows"] is None for group in board.groups):
        return "the record does not say on which rows it was trained"
    causes = [run.record.cause or run.record.status for group in board.baselines for run in group.others]
    return f"the baseline did not complete: {causes[0]}" if causes else "no baseline was trained on these rows"


def find_reference(group: Group, board: DatasetResults, name: str) -> tuple[Group | None, str]:
    """The group of mechanism `name` that equals `group` in everything but `attention.*`, or None and the reason."""
    place = group.id, name
    if place not in board.references:
        own = group.attention == name and bool(group.runs)
        named = board.of_mechanism.get(name, [])
        board.references[place] = (group, "") if own else twin_among(named, group, name)
    return board.references[place]


def twin_among(named: list[Group], group: Group, name: str) -> tuple[Group | None, str]:
    """Of the groups of one mechanism, `name`, the one alike in everything but `attention.*`, or None and the reason.

    Of several (SDPA with different settings of its own) it is the one that shares most settings with `group`.
    """
    twins = [other for other in named if other.twin == group.twin]
    same = [other for other in twins if other.device == group.device]
    if len(same) == 1:
        return same[0], ""
    if not same:
        if twins:
            differ = sorted({k for other in twins for k in group.device if other.device.get(k) != group.device.get(k)})
            words = {key: LONGER.get(key, CONDITIONS.get(key, key)) for key in differ}
            told = [f"another {word}" + ("" if key in word else f" ({key})") for key, word in words.items()]
            return None, f"the {name} runs alike have {' and '.join(told)}"
        return None, _unlike(group, named, name)
    shared = [sum(_own(other).get(key) == value for key, value in _own(group).items()) for other in same]
    if shared.count(max(shared)) == 1:
        return same[shared.index(max(shared))], ""
    return None, f"{len(same)} {name} groups are alike in everything but attention"


def _unlike(group: Group, named: list[Group], name: str) -> str:
    """Why none of the groups of mechanism `name` can be the reference: what the closest one has otherwise."""
    if not named:
        return f"no completed {name} run on these rows"
    mine = without_attention(group.key)
    differ = []
    for other in named:
        theirs = without_attention(other.key)
        differ.append(sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k)))
    closest = min(differ, key=lambda keys: (len(keys), keys))
    more = f" and {len(closest) - 3} more" if len(closest) > 3 else ""
    return f"no {name} run alike in everything but attention; the closest differs in {', '.join(closest[:3])}{more}"


def _own(group: Group) -> dict[str, Any]:
    return {key: value for key, value in group.key.items() if key.startswith("attention.")}

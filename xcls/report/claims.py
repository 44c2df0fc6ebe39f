"""WNF-1 and WNF-2 as written: each claim with values, thresholds and margins; PASS, FAIL or MISSING and why."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Callable, Sequence

from xcls.report.bench import beside
from xcls.report.conditions import WORDS, unlike_groups, unlike_paths
from xcls.report.cost_ratio import cost_interval, doubt
from xcls.report.groups import DatasetResults, Group, without_attention
from xcls.report.intervals import Differences, Interval
from xcls.report.load import Bench
from xcls.report.measures import memory_measure, survived
from xcls.report.settings import Claims, FamilyClaims

PASS, FAIL, MISSING = "PASS", "FAIL", "MISSING"
UNDECIDED = "OPEN"  # of a cost claim: measured, but these runs cannot tell
SPLITS = {"validation": "macro_f1", "test": "test_macro_f1"}
LONGER = {"kind": "kind of device", "threads": "thread count", "compile": "compile setting"}  # than in a table
DIGITS = 9  # 0.85 - 0.80 is not 0.05 in binary: values are compared at nine digits, far below any that is reported


@dataclass(frozen=True)
class Measured:
    """One number of a claim. `margin` is positive on the passing side; value None means it could not be measured.

    `interval` stands beside a difference of macro-F1 and decides nothing: the verdict is by the value, as written. A cost
    ratio is `undecided` where its interval spans the threshold or a run was disturbed; `reason` then says what to repeat.
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


@dataclass(frozen=True)
class Verdict:
    """All claims about a group. `state` is FAIL if one fails, else MISSING if one is missing or open, else PASS."""

    group: Group
    reference: str
    split: str
    claims: tuple[Claim, ...]
    reason: str = ""  # why there is no claim to judge
    reference_group: Group | None = None
    baseline: Group | None = None

    @property
    def state(self) -> str:
        """What stands in the column PASS_WNF."""
        state = every([claim.state for claim in self.claims]) if self.claims else MISSING
        return MISSING if state == UNDECIDED else state

    @property
    def reasons(self) -> list[str]:
        """Why there is no verdict on claims that are missing or open, each reason once."""
        waiting = [claim.reason for claim in self.claims if claim.state in (MISSING, UNDECIDED) and claim.reason]
        return list(dict.fromkeys(waiting))


@dataclass
class ClaimEvaluator:
    """Judges the groups of a board. `claims_for` gives the thresholds of a group and what is wrong with them, or ''.

    `differences` makes the intervals of macro-F1; None: there are none. `level` is that of the cost ratios.
    """

    claims_for: Callable[[Group], tuple[Claims, str]]
    differences: Differences | None = None
    level: float = 0.95
    benches: Sequence[Bench] = ()
    _made: dict[tuple[str, str, str], Verdict] = field(default_factory=dict)

    def verdict(self, group: Group, board: DatasetResults, reference: str, split: str) -> Verdict:
        """The verdict on `group` against the mechanism named `reference`, on `split` (validation or test)."""
        place = (group.id, reference, split)
        if place not in self._made:
            self._made[place] = self._judge(group, board, reference, split)
        return self._made[place]

    def _judge(self, group: Group, board: DatasetResults, reference: str, split: str) -> Verdict:
        claims, fault = self.claims_for(group)
        family = claims.family(group.attention)
        other, no_reference = find_reference(group, board, reference)
        baseline = strictest(board.baselines)
        if fault:
            return Verdict(group, reference, split, (), fault, other, baseline)
        if family is None:
            return Verdict(group, reference, split, (), "no claim is made for it", other, baseline)
        case = _Case(group, other, no_reference, baseline, board, claims, split, self)
        made = [case.cost(family), case.quality(family), case.stability(family)]
        return Verdict(group, reference, split, tuple(c for c in made if c is not None), "", other, baseline)


@dataclass(frozen=True)
class _Case:
    """What a group's claims are judged by."""

    group: Group
    other: Group | None
    no_reference: str
    baseline: Group | None
    board: DatasetResults
    claims: Claims
    split: str
    judge: ClaimEvaluator

    def cost(self, family: FamilyClaims) -> Claim | None:
        """WNF-1: the time or the memory is low enough, and the macro-F1 is not too far below the reference."""
        if family.max_time_ratio is None and family.max_memory_ratio is None:
            return None
        limits = {"time_per_epoch": family.max_time_ratio}
        limits[memory_measure(self.group.device.get("kind"))] = family.max_memory_ratio
        saving = [self._ratio(name, limit) for name, limit in limits.items() if limit is not None]
        loss = [] if family.max_loss_pp is None else [self._loss(family.max_loss_pp)]
        state = every([some([m.state for m in saving]), *(m.state for m in loss)])
        claim = self._claim("WNF-1 cost", state, [*saving, *loss], self._hindrance(cost=True))
        unlike = [] if self.other is None else unlike_groups(self.group, self.other)
        return replace(claim, remark="; ".join(unlike))

    def quality(self, family: FamilyClaims) -> Claim | None:
        """WNF-2: far enough above the baseline, and not too far below the reference."""
        if family.min_gain_pp is None:
            return None
        measured = [self._gain(family.min_gain_pp)]
        if family.max_loss_pp is not None:
            measured.append(self._loss(family.max_loss_pp))
        return self._claim("WNF-2 quality", every([m.state for m in measured]), measured, self._hindrance())

    def stability(self, family: FamilyClaims) -> Claim | None:
        """WNF-2: enough seeds, no NaN, no lack of memory (survived ones count too), and the seeds close together."""
        if family.max_spread_pp is None:
            return None
        stat = self.group.stat(SPLITS[self.split])
        spread = None if stat.high is None or stat.low is None else (stat.high - stat.low) * 100
        gap = "" if stat.n == len(self.group.runs) else "a run has no macro-F1"
        value = None if gap else _rounded(spread)
        measured = [Measured("macro-F1 spread (pp)", value, "<=", family.max_spread_pp, gap)]
        causes = [f"seed {run.record.seed}: {run.record.cause}" for run in self.group.broken]
        causes += [f"seed {run.record.seed}: {told}" for run in self.group.runs for told in survived(run.record)]
        if causes and self.group.record.seq_len == self.claims.seq_len:
            return Claim("WNF-2 stability", FAIL, tuple(measured), "; ".join(causes))
        return self._claim("WNF-2 stability", measured[0].state, measured, self._hindrance())

    def _claim(self, code: str, state: str, measured: list[Measured], hindrance: str) -> Claim:
        if hindrance:
            return Claim(code, MISSING, tuple(measured), hindrance, hindered=True)
        told = "; ".join(dict.fromkeys(m.reason for m in measured if m.state == state and m.reason))
        return Claim(code, state, tuple(measured), told if state in (MISSING, UNDECIDED) else "")

    def _hindrance(self, cost: bool = False) -> str:
        """Why the claims do not apply to this group, or ''."""
        if self.group.learned_nothing:
            return self.group.learned_nothing
        if self.group.record.seq_len != self.claims.seq_len:
            return f"seq_len is {self.group.record.seq_len}; the claims are made at {self.claims.seq_len}"
        need = self.claims.min_seeds
        if len(self.group.seeds) < need:
            return f"{len(self.group.seeds)} of {need} seeds have completed"
        if cost and self.other is not None:
            if len(self.other.seeds) < need:
                return f"{len(self.other.seeds)} of {need} seeds of {self.other.label} have completed"
            if self.group.shared or self.other.shared:
                return f"another job ran on the device of {(self.group if self.group.shared else self.other).label}"
            if path := unlike_paths(self.group, self.other):
                return f"{path}; run all on one device with one micro-batch, so that they compute alike"
        return ""

    def _ratio(self, name: str, threshold: float) -> Measured:
        title = "time ratio" if name == "time_per_epoch" else "memory ratio"
        if self.other is None:
            return Measured(title, None, "<=", threshold, self.no_reference)
        value = _rounded(ratio(self.group, self.other, name))
        if value is None:
            return Measured(title, None, "<=", threshold, f"{name} was not measured")
        interval = cost_interval(self.group, self.other, name, self.judge.level)
        factor = self.claims.max_cost_factor
        told = doubt(self.group, self.other, name, interval=interval, threshold=threshold, factor=factor)
        bench = beside(self.group, self.other, name, value, self.judge.benches)
        return Measured(title, value, "<=", threshold, told, interval, bool(told), *bench)

    def _loss(self, threshold: float) -> Measured:
        need, reason = self.claims.min_seeds, self.no_reference
        if self.other is not None and len(self.other.seeds) < need:
            reason = f"{len(self.other.seeds)} of {need} seeds of {self.other.label} have completed"
        return self._difference("macro-F1 loss (pp)", self.other, self.group, "<=", threshold, reason)

    def _gain(self, threshold: float) -> Measured:
        reason = no_baseline(self.board)
        return self._difference("macro-F1 gain (pp)", self.group, self.baseline, ">=", threshold, reason)

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
        return Measured(name, value, relation, threshold, reason, self._interval(above, below))

    def _interval(self, group: Group, other: Group | None) -> Interval | None:
        if self.judge.differences is None or other is None or group is other:
            return None
        return self.judge.differences.between(group, other, self.board, self.split)


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
            words = {key: LONGER.get(key, WORDS.get(key, key)) for key in differ}
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

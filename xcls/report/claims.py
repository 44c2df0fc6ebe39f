"""WNF-1 and WNF-2 as written: each claim with values, thresholds and margins; PASS, FAIL or MISSING and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Sequence

from xcls.config.schema import UserError, flatten
from xcls.report.bench import beside
from xcls.report.cost_ratio import cost_interval, doubt
from xcls.report.groups import DatasetResults, Group
from xcls.report.intervals import DIGITS, Differences, Interval
from xcls.report.load import Bench, Found
from xcls.report.measures import survived
from xcls.report.references import (
    SPLITS,
    difference_pp,
    find_reference,
    no_baseline,
    ratio,
    unlike_groups,
    unlike_paths,
)
from xcls.report.settings import Claims, FamilyClaims, Settings, claims_from

PASS, FAIL, MISSING = "PASS", "FAIL", "MISSING"
UNDECIDED = "OPEN"  # of a cost claim: measured, but these runs cannot tell
WORST = (FAIL, MISSING, UNDECIDED, PASS)  # the worst first
TIME, MEMORY = "time ratio", "memory ratio"
LOSS, GAIN, SPREAD = "macro-F1 loss (pp)", "macro-F1 gain (pp)", "macro-F1 spread (pp)"
# One of the first numbers must hold, and all of the second. Without a threshold of the first nothing is claimed.
CLAIMS = {
    "WNF-1 cost": ((TIME, MEMORY), (LOSS,)),
    "WNF-2 quality": ((GAIN,), (LOSS,)),
    "WNF-2 stability": ((SPREAD,), ()),
}


@dataclass(frozen=True)
class Measured:
    """One number that claims are made about. Without a `threshold` nothing is claimed; a value None was not measured.

    `interval` stands beside a difference of macro-F1 and decides nothing: the verdict is by the value, as written. A
    cost ratio is `undecided` where its interval spans the threshold or a run was disturbed; `reason` then says what to
    repeat.
    """

    name: str
    value: float | None
    relation: str  # '<=' or '>='
    threshold: float | None
    reason: str = ""
    interval: Interval | None = None
    undecided: bool = False
    bench: float | None = None  # the same ratio as mode=bench has measured it in turns
    bench_says: str = ""  # whether it is on the same side of 1, and where it is

    @property
    def margin(self) -> float | None:
        """The distance to the threshold, positive where the claim holds."""
        if self.value is None or self.threshold is None:
            return None
        return round((self.threshold - self.value) * (1 if self.relation == "<=" else -1), DIGITS)

    @property
    def state(self) -> str:
        """PASS, also exactly at the threshold; FAIL; MISSING without a value; UNDECIDED."""
        if self.margin is None:
            return MISSING
        return UNDECIDED if self.undecided else PASS if self.margin >= 0 else FAIL

    @property
    def told(self) -> str:
        """What the interval says of the threshold: holds, does not hold, cannot tell; '' without an interval."""
        if self.interval is None or self.threshold is None:
            return ""
        return self.interval.tells(self.relation, self.threshold)


@dataclass(frozen=True)
class Claim:
    """One claim about one group, on one split, against one reference."""

    code: str  # one of CLAIMS
    state: str
    measured: list[Measured]
    reason: str = ""
    remark: str = ""  # in what the costs compared were measured differently
    hindered: bool = False  # MISSING for a reason that holds for all its numbers, measured or not


@dataclass
class Study:
    """The runs of a report, their groups by data set, and the verdicts on them.

    `typed`: the keys below `claims` that were typed; they win over an experiment's own claims.
    """

    settings: Settings
    found: Found
    groups: Sequence[Group]
    boards: Sequence[DatasetResults]
    benches: Sequence[Bench] = ()
    typed: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.references = self.settings.claims.references  # what others are compared with; the first decides
        self.differences = Differences(settings=self.settings.intervals, references=self.references)
        self._verdicts: dict[tuple[str, str, str], Verdict] = {}
        self._references: dict[tuple[str, str], tuple[Group | None, str]] = {}

    @property
    def names(self) -> list[str]:
        """What the runs' experiments say they are about."""
        return sorted({run.record.study for run in self.found.runs if run.record.study})

    def verdict(self, group: Group, reference: str, split: str = "validation") -> Verdict:
        """The verdict on `group` against the mechanism named `reference`, on `split` (validation or test)."""
        place = (group.id, reference, split)
        if place not in self._verdicts:
            self._verdicts[place] = Verdict(group, reference, split, self)
        return self._verdicts[place]

    def reference(self, group: Group, name: str) -> tuple[Group | None, str]:
        """`find_reference`, looked for once."""
        place = (group.id, name)
        if place not in self._references:
            self._references[place] = find_reference(group, name)
        return self._references[place]

    def limits(self, group: Group) -> tuple[Claims, str]:
        """The thresholds of a group, and what is wrong with them: the report's, over them its experiment's `claims`,
        over these what was typed."""
        claims = self.settings.claims
        configs = [run.record.config.items() for run in group.runs]
        own = [{key[7:]: value for key, value in config if key.startswith("claims.")} for config in configs] or [{}]
        if any(other != own[0] for other in own):
            return claims, "its runs state different claims"
        stated = {key: value for key, value in own[0].items() if not self._is_typed(key)}
        try:
            return claims_from({**flatten(asdict(claims)), **stated}), ""
        except UserError as error:
            return claims, f"in its own configuration: {error}"

    def _is_typed(self, key: str) -> bool:
        return any(not node or f"{key}.".startswith(f"{node}.") for node in self.typed)


@dataclass
class Verdict:
    """All claims about a group, against a reference, on a split."""

    group: Group
    reference: str
    split: str
    study: Study

    def __post_init__(self) -> None:
        self.limits, self.reason = self.study.limits(self.group)  # reason: why there is no claim to judge
        self.reference_group, self.no_reference = self.study.reference(self.group, self.reference)
        family = self.limits.family(self.group.attention)
        self.reason = self.reason or ("no claim is made for it" if family is None else "")
        self.family = FamilyClaims() if self.reason or family is None else family

    @cached_property
    def numbers(self) -> dict[str, Measured]:
        """Name to number, of all that can be claimed."""
        group, other, family, board = self.group, self.reference_group, self.family, self.group.board
        short = self._seeds(other) if other and family.max_loss_pp is not None else ""
        made = [
            self._ratio(TIME, group.costs["time"], family.max_time_ratio),
            self._ratio(MEMORY, group.costs["memory"], family.max_memory_ratio),
            self._difference(LOSS, other, group, "<=", family.max_loss_pp, self.no_reference or short),
            self._difference(GAIN, group, board.baseline, ">=", family.min_gain_pp, no_baseline(board)),
            self._spread(),
        ]
        return {number.name: number for number in made}

    @cached_property
    def claims(self) -> list[Claim]:
        """The claims that are made for the group's mechanism."""
        limited = {name: number for name, number in self.numbers.items() if number.threshold is not None}
        made = {
            code: [[limited[name] for name in names if name in limited] for names in CLAIMS[code]] for code in CLAIMS
        }
        return [self._claim(code, either, also) for code, (either, also) in made.items() if either]

    @property
    def state(self) -> str:
        """PASS_WNF: FAIL if one claim fails, else MISSING if one is missing or open, else PASS."""
        state = min((claim.state for claim in self.claims), key=WORST.index, default=MISSING)
        return MISSING if state == UNDECIDED else state

    @property
    def reasons(self) -> list[str]:
        """Why there is no verdict on claims that are missing or open, each reason once."""
        waiting = [claim.reason for claim in self.claims if claim.state in (MISSING, UNDECIDED) and claim.reason]
        return list(dict.fromkeys(waiting))

    def _claim(self, code: str, either: list[Measured], also: list[Measured]) -> Claim:
        """The claim that the best of `either` and all of `also` hold."""
        best = max((number.state for number in either), key=WORST.index)
        state = min([best, *(number.state for number in also)], key=WORST.index)
        measured, cost, other = [*either, *also], TIME in CLAIMS[code][0], self.reference_group
        if SPREAD in CLAIMS[code][0] and self.group.record.seq_len == self.limits.seq_len:
            causes = [f"seed {run.record.seed}: {run.record.cause}" for run in self.group.broken]
            causes += [f"seed {run.record.seed}: {told}" for run in self.group.runs for told in survived(run.record)]
            if causes:  # NaN or lack of memory, survived ones count too
                return Claim(code, FAIL, measured, "; ".join(causes))
        remark = "; ".join(unlike_groups(self.group, other)) if cost and other else ""
        hindrance = self._hindrance(cost)
        if hindrance:
            return Claim(code, MISSING, measured, hindrance, remark, hindered=True)
        told = "; ".join(dict.fromkeys(number.reason for number in measured if number.state == state and number.reason))
        return Claim(code, state, measured, told if state in (MISSING, UNDECIDED) else "", remark)

    def _hindrance(self, cost: bool) -> str:
        """Why the claims, on costs or others, do not apply to this group, or ''."""
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

    def _ratio(self, title: str, name: str, threshold: float | None) -> Measured:
        """The cost `name` over that of the reference."""
        group, other = self.group, self.reference_group
        value = None if other is None else ratio(group, other, name)
        if other is None or value is None:
            return Measured(title, None, "<=", threshold, self.no_reference or f"{name} was not measured")
        value = round(value, DIGITS)
        if threshold is None:
            return Measured(title, None if other is group else value, "<=", None)
        interval = cost_interval(group, other, name, self.study.settings.intervals.level)
        factor = self.limits.max_cost_factor
        told = doubt(group, other, name, interval=interval, threshold=threshold, factor=factor)
        bench = beside(group, other, name, value, self.study.benches)
        return Measured(title, value, "<=", threshold, told, interval, bool(told), *bench)

    def _difference(
        self, name: str, above: Group | None, below: Group | None, relation: str, threshold: float | None, reason: str
    ) -> Measured:
        """Macro-F1 of one group over that of another. `reason`: why it cannot be measured, where that is known."""
        if reason or above is None or below is None or (above is below and threshold is None):
            return Measured(name, None, relation, threshold, reason)
        value = difference_pp(above, below, self.split)
        if value is None:
            reason = self.group.learned_nothing or above.learned_nothing or below.learned_nothing
            reason = reason or f"no {self.split} macro-F1"
        interval = None
        if threshold is not None and above is not below:
            interval = self.study.differences.between(above, below, self.split)
        return Measured(name, value, relation, threshold, reason, interval)

    def _spread(self) -> Measured:
        """Macro-F1 of the best seed over the worst."""
        stat, threshold = self.group.stat(SPLITS[self.split]), self.family.max_spread_pp
        if stat.low is None or stat.high is None or stat.n < len(self.group.runs):
            return Measured(SPREAD, None, "<=", threshold, "a run has no macro-F1")
        return Measured(SPREAD, round((stat.high - stat.low) * 100, DIGITS), "<=", threshold)

"""The claims of WNF-1 and WNF-2: values, thresholds, margins, and PASS, FAIL or MISSING with the reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Sequence

from xcls.config.schema import UserError, flatten
from xcls.report.bench import bench_ratio
from xcls.report.cost_ratio import cost_interval, why_undecided
from xcls.report.groups import DatasetResults, Group
from xcls.report.intervals import DIGITS, Differences, Interval
from xcls.report.load import Bench, Found
from xcls.report.measures import recovered_faults
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
UNDECIDED = "OPEN"  # of a cost claim: the interval is too wide to decide, or a run was disturbed
WORST = (FAIL, MISSING, UNDECIDED, PASS)  # the worst first
TIME, MEMORY = "time ratio", "memory ratio"
LOSS, GAIN, SPREAD = "macro-F1 loss (pp)", "macro-F1 gain (pp)", "macro-F1 spread (pp)"
# Each claim is (alternatives, requirements): at least one alternative and all requirements must hold. Without a
# threshold for any alternative, the claim is not made.
CLAIMS = {
    "WNF-1 cost": ((TIME, MEMORY), (LOSS,)),
    "WNF-2 quality": ((GAIN,), (LOSS,)),
    "WNF-2 stability": ((SPREAD,), ()),
}


@dataclass(frozen=True)
class Measured:
    """One number and its threshold. Threshold None: no claim is made about it. Value None: it was not measured.

    The interval of a macro-F1 difference is shown only; the value decides, as the specification says. A cost ratio is
    `undecided` if its interval contains the threshold or a run was disturbed; `reason` then says what to repeat.
    """

    name: str
    value: float | None
    relation: str  # '<=' or '>='
    threshold: float | None
    reason: str = ""
    interval: Interval | None = None
    undecided: bool = False
    bench: float | None = None  # the same ratio as measured by mode=bench, interleaved
    bench_says: str = ""  # whether it is on the same side of 1, and the folder it comes from

    @property
    def margin(self) -> float | None:
        """The distance to the threshold, positive if the claim holds."""
        if self.value is None or self.threshold is None:
            return None
        return round((self.threshold - self.value) * (1 if self.relation == "<=" else -1), DIGITS)

    @property
    def state(self) -> str:
        """PASS (also exactly at the threshold), FAIL, MISSING (no value or no threshold) or UNDECIDED."""
        if self.margin is None:
            return MISSING
        return UNDECIDED if self.undecided else PASS if self.margin >= 0 else FAIL

    @property
    def interval_says(self) -> str:
        """What the interval says about the threshold: holds, does not hold or cannot tell; '' without an interval."""
        if self.interval is None or self.threshold is None:
            return ""
        return self.interval.compare(self.relation, self.threshold)


@dataclass(frozen=True)
class Claim:
    """One claim about one group, on one split, against one reference."""

    code: str  # one of CLAIMS
    state: str
    measured: list[Measured]
    reason: str = ""
    remark: str = ""  # measurement conditions that differ between the two groups
    not_applicable: bool = False  # MISSING for a reason that concerns the whole claim, not one number


@dataclass
class Study:
    """The runs of a report, their groups by data set, and the verdicts on them.

    `typed`: the keys below `claims` given on the command line; they override the claims of an experiment.
    """

    settings: Settings
    found: Found
    groups: Sequence[Group]
    datasets: Sequence[DatasetResults]
    benches: Sequence[Bench] = ()
    typed: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.references = self.settings.claims.references  # mechanisms that others are compared with; the first decides
        self.differences = Differences(settings=self.settings.intervals, references=self.references)
        self._verdicts: dict[tuple[str, str, str], Verdict] = {}
        self._references: dict[tuple[str, str], tuple[Group | None, str]] = {}

    @property
    def names(self) -> list[str]:
        """The `study` texts of the experiments that the runs belong to."""
        return sorted({run.record.study for run in self.found.runs if run.record.study})

    def verdict(self, group: Group, reference: str, split: str = "validation") -> Verdict:
        """The verdict on `group` against the mechanism named `reference`, on `split` (validation or test)."""
        place = (group.id, reference, split)
        if place not in self._verdicts:
            self._verdicts[place] = Verdict(group, reference, split, self)
        return self._verdicts[place]

    def reference(self, group: Group, name: str) -> tuple[Group | None, str]:
        """`find_reference`, cached."""
        place = (group.id, name)
        if place not in self._references:
            self._references[place] = find_reference(group, name)
        return self._references[place]

    def thresholds(self, group: Group) -> tuple[Claims, str]:
        """The thresholds for a group, and what is wrong with them or ''.

        Later ones win: the report's own, the `claims` of the group's experiment, the command line.
        """
        claims = self.settings.claims
        configs = [run.record.config.items() for run in group.runs]
        own = [{key[7:]: value for key, value in config if key.startswith("claims.")} for config in configs] or [{}]
        if any(other != own[0] for other in own):
            return claims, "its runs have different claims in their configurations"
        stated = {key: value for key, value in own[0].items() if not self._is_typed(key)}
        try:
            return claims_from({**flatten(asdict(claims)), **stated}), ""
        except UserError as error:
            return claims, f"in its own configuration: {error}"

    def _is_typed(self, key: str) -> bool:
        return any(not node or f"{key}.".startswith(f"{node}.") for node in self.typed)


@dataclass
class Verdict:
    """All claims about a group, against a reference, on a split.

    The state of a claim, first rule that applies:

    1. stability at the claims' seq_len: FAIL if a run had NaN or ran out of memory, even if it recovered
    2. MISSING if a run of the group learned nothing, seq_len is not that of the claims, or there are too few seeds
    3. cost: MISSING if the reference has too few seeds, a device was shared, or code paths differ (`unlike_paths`)
    4. else the states of its numbers: the best alternative and all requirements (CLAIMS)
    """

    group: Group
    reference: str
    split: str
    study: Study

    def __post_init__(self) -> None:
        self.thresholds, self.no_claim = self.study.thresholds(self.group)  # no_claim: why no claim is made
        self.reference_group, self.no_reference = self.study.reference(self.group, self.reference)
        family = self.thresholds.family(self.group.attention)
        self.no_claim = self.no_claim or ("no claim is made for it" if family is None else "")
        self.family = FamilyClaims() if self.no_claim or family is None else family

    @cached_property
    def numbers(self) -> dict[str, Measured]:
        """Every number that a claim can be about, by name."""
        group, other, family, results = self.group, self.reference_group, self.family, self.group.results
        short = self._seeds(other) if other and family.max_loss_pp is not None else ""
        made = [
            self._ratio(TIME, group.costs["time"], family.max_time_ratio),
            self._ratio(MEMORY, group.costs["memory"], family.max_memory_ratio),
            self._difference(LOSS, other, group, "<=", family.max_loss_pp, self.no_reference or short),
            self._difference(GAIN, group, results.baseline, ">=", family.min_gain_pp, no_baseline(results)),
            self._spread(),
        ]
        return {number.name: number for number in made}

    @cached_property
    def claims(self) -> list[Claim]:
        """The claims made for the mechanism of the group."""
        limited = {name: number for name, number in self.numbers.items() if number.threshold is not None}
        made = {
            code: [[limited[name] for name in names if name in limited] for names in CLAIMS[code]] for code in CLAIMS
        }
        return [self._claim(code, any_of, all_of) for code, (any_of, all_of) in made.items() if any_of]

    @property
    def state(self) -> str:
        """PASS_WNF: FAIL if one claim fails, else MISSING if one is missing or open, else PASS."""
        state = min((claim.state for claim in self.claims), key=WORST.index, default=MISSING)
        return MISSING if state == UNDECIDED else state

    @property
    def reasons(self) -> list[str]:
        """Why claims are missing or open, each reason once."""
        waiting = [claim.reason for claim in self.claims if claim.state in (MISSING, UNDECIDED) and claim.reason]
        return list(dict.fromkeys(waiting))

    def _claim(self, code: str, any_of: list[Measured], all_of: list[Measured]) -> Claim:
        """Combines: at least one of `any_of`, and all of `all_of`."""
        best = max((number.state for number in any_of), key=WORST.index)
        state = min([best, *(number.state for number in all_of)], key=WORST.index)
        measured, cost, other = [*any_of, *all_of], TIME in CLAIMS[code][0], self.reference_group
        if SPREAD in CLAIMS[code][0] and self.group.record.seq_len == self.thresholds.seq_len:
            causes = [f"seed {run.record.seed}: {run.record.cause}" for run in self.group.broken]
            causes += [
                f"seed {run.record.seed}: {fault}" for run in self.group.runs for fault in recovered_faults(run.record)
            ]
            if causes:  # NaN or out of memory; faults the run recovered from count too
                return Claim(code, FAIL, measured, "; ".join(causes))
        remark = "; ".join(unlike_groups(self.group, other)) if cost and other else ""
        blocker = self._blocker(cost)
        if blocker:
            return Claim(code, MISSING, measured, blocker, remark, not_applicable=True)
        reason = "; ".join(
            dict.fromkeys(number.reason for number in measured if number.state == state and number.reason)
        )
        return Claim(code, state, measured, reason if state in (MISSING, UNDECIDED) else "", remark)

    def _blocker(self, cost: bool) -> str:
        """Why a whole claim is MISSING for this group, or ''. `cost`: it is a claim about costs."""
        group, other, length = self.group, self.reference_group, self.group.record.seq_len
        if group.learned_nothing:
            return group.learned_nothing
        if length != self.thresholds.seq_len:
            return f"seq_len is {length}; the claims are made at {self.thresholds.seq_len}"
        if self._seeds(group) or not cost or other is None:
            return self._seeds(group)
        if self._seeds(other):
            return self._seeds(other)
        if group.shared or other.shared:
            return f"another job ran on the device of {(group if group.shared else other).label}"
        path = unlike_paths(group, other)
        return path and f"{path}; run all on one device with one micro-batch, so that they compute alike"

    def _seeds(self, group: Group) -> str:
        """`2 of 3 seeds have completed`, or '' if there are enough."""
        done, need = len(group.seeds), self.thresholds.min_seeds
        whose = "" if group is self.group else f" of {group.label}"
        return f"{done} of {need} seeds{whose} have completed" if done < need else ""

    def _ratio(self, title: str, name: str, threshold: float | None) -> Measured:
        """The cost `name`, divided by that of the reference."""
        group, other = self.group, self.reference_group
        value = None if other is None else ratio(group, other, name)
        if other is None or value is None:
            return Measured(title, None, "<=", threshold, self.no_reference or f"{name} was not measured")
        value = round(value, DIGITS)
        if threshold is None:
            return Measured(title, None if other is group else value, "<=", None)
        interval = cost_interval(group, other, name, self.study.settings.intervals.level)
        factor = self.thresholds.max_cost_factor
        reason = why_undecided(group, other, name, interval=interval, threshold=threshold, factor=factor)
        bench = bench_ratio(group, other, name, value, self.study.benches)
        return Measured(title, value, "<=", threshold, reason, interval, bool(reason), *bench)

    def _difference(
        self, name: str, above: Group | None, below: Group | None, relation: str, threshold: float | None, reason: str
    ) -> Measured:
        """Macro-F1 of `above` minus that of `below`. `reason`: why it cannot be measured, if that is known already."""
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
        """Macro-F1 of the best seed minus that of the worst."""
        stat, threshold = self.group.stat(SPLITS[self.split]), self.family.max_spread_pp
        if stat.low is None or stat.high is None or stat.n < len(self.group.runs):
            return Measured(SPREAD, None, "<=", threshold, "a run has no macro-F1")
        return Measured(SPREAD, round((stat.high - stat.low) * 100, DIGITS), "<=", threshold)

"""Groups over seeds, boards of groups that saw the same rows, and their ranking."""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from xcls.record import Record, is_guess
from xcls.report.circumstances import gathered
from xcls.report.collect import Found, Run
from xcls.report.identify import attention_name, device_of, settings, without_attention
from xcls.report.labels import name_groups
from xcls.report.measures import MEASURES, is_cost

BROKE_DOWN = re.compile(r"\b(nan|inf|oom)\b|not finite|non-?finite|out[ -]of[ -]memory|OutOfMemory", re.IGNORECASE)


@dataclass(frozen=True)
class Stat:
    """A measure over the seeds of a group. `sd` is the sample standard deviation (n - 1), None at n = 1."""

    n: int = 0
    best: float | None = None
    mean: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    middle: float | None = None  # what stands for the group: the median of a cost, the mean of anything else


@dataclass
class Group:
    """All runs alike but for the seed, on one kind of device. `runs` completed, each hash once; `others` did not."""

    key: dict[str, Any]
    device: dict[str, Any]
    runs: list[Run] = field(default_factory=list)
    others: list[Run] = field(default_factory=list)
    label: str = ""
    rank: int | None = None

    @property
    def record(self) -> Record:
        """One record of the group, for what all of them share."""
        return (self.runs or self.others)[0].record

    @cached_property
    def id(self) -> str:
        """Eight hex digits that name the group wherever its runs lie."""
        return hashlib.sha256(_text([self.key, self.device]).encode()).hexdigest()[:8]

    @cached_property
    def twin(self) -> str:
        """Equal for groups that are alike in everything but `attention.*` and the device."""
        return _text(without_attention(self.key))

    @cached_property
    def circumstances(self) -> dict[str, set[str]]:
        """Under which circumstances its costs were measured."""
        return gathered(run.record for run in self.runs)

    @property
    def attention(self) -> str:
        """The mechanism's name; '' for a baseline."""
        return attention_name(self.record)

    @property
    def seeds(self) -> list[int]:
        """The seeds that completed."""
        return sorted({run.record.seed for run in self.runs})

    @cached_property
    def learned_nothing(self) -> str:
        """`seeds 0, 1: macro-F1 0.077, a guess gives 0.125` of the completed runs that learned nothing, or ''."""
        told: dict[str, list[int]] = {}
        for run in self.runs:
            classes, macro_f1 = class_count(run.record), MEASURES["macro_f1"].of(run.record)
            if classes and is_guess(macro_f1, classes):
                told.setdefault(f"macro-F1 {macro_f1:.3f}, a guess gives {1 / classes:.3f}", []).append(run.record.seed)
        parts = [f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, sorted(seeds)))}: {text}" for text, seeds in told.items()]
        return f"{self.label} learned nothing ({'; '.join(sorted(parts))})" if parts else ""

    @property
    def shared(self) -> bool:
        """Whether another job ran on the device of any of its runs."""
        return any(bool(run.record.device.get("shared")) for run in self.runs)

    @property
    def broken(self) -> list[Run]:
        """Its runs that failed by NaN or by lack of memory."""
        return [
            run for run in self.others if run.record.status == "failed" and BROKE_DOWN.search(run.record.cause or "")
        ]

    @cached_property
    def _stats(self) -> dict[str, Stat]:
        return {name: self._stat(name) for name in MEASURES}

    def stat(self, name: str) -> Stat:
        """The measure `name` over the completed runs.

        The best of a test score is that of the run with the best validation macro-F1: test selects nothing.
        """
        return self._stats[name]

    def _stat(self, name: str) -> Stat:
        measure = MEASURES[name]
        values = [value for value in (measure.of(run.record) for run in self.runs) if value is not None]
        if not values:
            return Stat()
        best = min(values) if measure.low_is_better else max(values)
        if measure.place == "metrics.test":
            best = self._chosen(name)
        sd = statistics.stdev(values) if len(values) > 1 else None
        mean = statistics.fmean(values)
        middle = statistics.median(values) if is_cost(name) else mean
        return Stat(len(values), best, mean, sd, min(values), max(values), middle)

    def _chosen(self, name: str) -> float | None:
        """The value of the run with the best validation macro-F1; the smallest seed of equals."""
        chosen = MEASURES["macro_f1"]
        ranked = [(chosen.of(run.record), -run.record.seed, run.record) for run in self.runs]
        ranked = [item for item in ranked if item[0] is not None]
        return MEASURES[name].of(max(ranked, key=lambda item: item[:2])[2]) if ranked else None


def class_count(record: Record) -> int:
    """How many classes the data has; 0 where the record does not say."""
    counts = record.data.get("classes")
    named = counts.get("validation") if isinstance(counts, dict) else None
    return len(named) if isinstance(named, dict) else 0


def survived(record: Record) -> list[str]:
    """What went wrong in a run that completed all the same: bad steps that were left out, restarts, smaller batches."""
    faults = record.faults if record.status == "completed" and isinstance(record.faults, list) else []
    told = [fault for fault in faults if isinstance(fault, dict)]
    return [f"{fault.get('kind')} at step {fault.get('step')}: {fault.get('cause')}" for fault in told]


@dataclass
class Board:
    """The groups that saw the same rows of the same data, and the baselines trained on these rows."""

    name: str
    groups: list[Group]
    baselines: list[Group]
    references: dict[tuple[str, str], tuple[Group | None, str]] = field(default_factory=dict)  # verdict.find_reference

    @cached_property
    def of_mechanism(self) -> dict[str, list[Group]]:
        """The groups with a completed run, by the name of their mechanism."""
        found: dict[str, list[Group]] = {}
        for group in self.groups:
            if group.runs:
                found.setdefault(group.attention, []).append(group)
        return found

    @property
    def slug(self) -> str:
        """The name as part of a file's name."""
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", self.name).strip("-") or "data"


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def group_runs(found: Found) -> list[Group]:
    """The groups of pretraining, fine-tuning and baseline runs, each named, in a fixed order."""
    groups: dict[str, Group] = {}
    unfinished: list[Run] = []
    for run in found.runs:
        record = run.record
        if record.mode not in ("pretrain", "finetune", "baseline"):
            continue
        if record.status != "completed":
            unfinished.append(run)
            continue
        key, device = settings(record, found.parents), device_of(record)
        group = groups.setdefault(_text([key, device]), Group(key, device))
        if all(record.hash != other.record.hash for other in group.runs):
            group.runs.append(run)
    ordered = list(groups.values())
    for run in unfinished:
        _attach(run, found, ordered)
    ordered.sort(key=lambda group: (group.record.mode, str(group.key.get("choice.dataset")), group.id))
    name_groups(ordered)
    return ordered


def _attach(run: Run, found: Found, groups: list[Group]) -> None:
    """Puts a run that did not complete into the groups it would have been in.

    It may have ended before its rows or its device were known: what is unknown is taken to agree.
    """
    key, device = settings(run.record, found.parents), device_of(run.record)
    unknown = {name for name in ("data", "rows") if key[name] is None}
    wanted = {name: value for name, value in key.items() if name not in unknown}

    def could_be(group: Group) -> bool:
        known = {name: value for name, value in group.key.items() if name not in unknown}
        return known == wanted and all(
            value is None or group.device.get(name) in (None, value) for name, value in device.items()
        )

    fitting = [group for group in groups if could_be(group)]
    if not fitting:
        fitting = [Group(key, device)]
        groups += fitting
    for group in fitting:
        if all(run.record.hash != other.record.hash for other in group.others):
            group.others.append(run)


def make_boards(groups: list[Group], rank_by: str) -> list[Board]:
    """One board for each set of training rows that was fine-tuned on or has a baseline, its groups ranked."""
    rows: dict[tuple[str, str, str], Board] = {}
    for group in groups:
        if group.record.mode == "pretrain" or (not group.runs and group.key["rows"] is None):
            continue
        dataset = str(group.record.choices.get("dataset") or group.record.data.get("name") or "data")
        board = rows.setdefault((dataset, str(group.key["data"]), str(group.key["rows"])), Board(dataset, [], []))
        (board.baselines if group.record.mode == "baseline" else board.groups).append(group)
    _tell_apart(rows)
    boards = [rows[place] for place in sorted(rows)]
    for board in boards:
        _rank(board, rank_by)
    return boards


def _tell_apart(rows: dict[tuple[str, str, str], Board]) -> None:
    """Adds to the names of boards of one data set how many rows were trained on; where that is equal too, a hash."""
    for named in (_rows_of, lambda place, board: hashlib.sha256(_text(place).encode()).hexdigest()[:6]):
        names = Counter(board.name for board in rows.values())
        for place, board in rows.items():
            if names[board.name] > 1:
                board.name += f" ({named(place, board)})"


def _rows_of(place: tuple[str, str, str], board: Board) -> str:
    counts = [*board.groups, *board.baselines][0].record.data.get("rows")
    return f"{counts.get('train')} training rows" if isinstance(counts, dict) else "rows not counted"


def _rank(board: Board, rank_by: str) -> None:
    """Ranks the groups of a board by what stands for each, costs within one device; what has no value comes last, unranked."""
    sign = 1 if MEASURES[rank_by].low_is_better else -1
    ladders: dict[str, list[tuple[float, Group]]] = {}
    middles = {group.id: group.stat(rank_by).middle for group in board.groups}
    for group in board.groups:
        middle = middles[group.id]
        if middle is not None:
            ladders.setdefault(_text(group.device) if is_cost(rank_by) else "", []).append((sign * middle, group))
    for ladder in ladders.values():
        for value, group in ladder:
            group.rank = 1 + sum(other < value for other, _ in ladder)
    board.groups.sort(key=lambda g: (middles[g.id] is None, sign * (middles[g.id] or 0.0), g.label, g.id))

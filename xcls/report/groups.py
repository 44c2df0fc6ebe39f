"""Groups of runs that differ only in the seed, by the data set that they were trained on, and their ranks."""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Sequence

import pandas as pd

from xcls.report.labels import name_groups
from xcls.report.load import Found, Run
from xcls.report.measures import CONDITIONS, MEASURES, Measure, class_count, is_cost, memory_measure, slug
from xcls.report.table import NONE
from xcls.runs.identity import NOT_SHAPING
from xcls.runs.record import Record, is_guess

NAN_OR_OOM = re.compile(r"\b(nan|inf|oom)\b|not finite|non-?finite|out[ -]of[ -]memory|OutOfMemory", re.IGNORECASE)
MACRO_F1 = MEASURES["macro_f1"]
CHOICES = ("dataset", "attention", "position", "size", "tokenizer")  # the choices that name a run
DEVICE = ("kind", "name", "dtype", "compile", "micro_batch", "micro_tokens", "gradient_checkpointing", "threads")
# Names, paths and switches that change no result, the seeds, and the mode (the record has it).
NOT_COMPARED = """
    mode seed pretrain_seed exp study sweep pretrain resume retry_failed template split input output text
    checkpoint dataset.path dataset.extra tokenizer.path
""".split()
NOT_COMPARED_NODES = ("reading.", "wandb.", "claims.", "hardware.", "dataset.source.", "hydra.", "bench.")
# Config sections that only one mode reads.
MODE_OF_SECTION = {
    "pretraining": "pretrain",
    "masking": "pretrain",
    "finetuning": "finetune",
    "head": "finetune",
    "baseline": "baseline",
}
ENCODER = ("attention.", "position.", "size.", "tokenizer.", "seq_len")


@dataclass(frozen=True)
class Stat:
    """A measure over the seeds of a group. `sd` is the sample standard deviation (n - 1), None at n = 1."""

    n: int = 0
    best: float | None = None
    mean: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    median: float | None = None
    middle: float | None = None  # the value of the group: the median of a cost, the mean of any other measure

    @property
    def text(self) -> str:
        """`0.912 ± 0.003`: mean and sample standard deviation."""
        return NONE if self.mean is None else f"{self.mean:.3f}" + ("" if self.sd is None else f" ± {self.sd:.3f}")


@dataclass(eq=False)
class Group:
    """All runs that differ only in the seed, on one kind of device. `runs` completed (each hash once), `others` not.

    `results`: the results of its data set; empty for pretraining runs.
    """

    key: dict[str, Any]
    device: dict[str, Any]
    runs: list[Run] = field(default_factory=list)
    others: list[Run] = field(default_factory=list)
    label: str = ""
    rank: int | None = None
    stats: dict[str, Stat] = field(default_factory=dict)
    results: DatasetResults = field(default_factory=lambda: DatasetResults(""), repr=False)

    @property
    def record(self) -> Record:
        """The first record of the group, for the values that all share."""
        return (self.runs or self.others)[0].record

    @cached_property
    def id(self) -> str:
        """Eight hex digits that identify the group, whatever folder its runs are in."""
        return hashlib.sha256(_text([self.key, self.device]).encode()).hexdigest()[:8]

    @cached_property
    def twin(self) -> str:
        """Equal for groups that differ only in `attention.*` and the device."""
        return _text(without_attention(self.key))

    @cached_property
    def conditions(self) -> dict[str, set[str]]:
        """The conditions under which its costs were measured: device, device settings, versions."""
        found: dict[str, set[str]] = {name: set() for name in CONDITIONS}
        for record in (run.record for run in self.runs):
            versions = {name: record.versions.get(name) for name in ("torch", "cuda")}
            own = {**record.device, **versions, "name": record.device.get("name") or record.device.get("kind")}
            for name, values in found.items():
                values.add("unknown" if own.get(name) is None else str(own[name]))
        return found

    @property
    def attention(self) -> str:
        """`attention.name` of the configuration, else the chosen file; '' for a baseline."""
        record = self.record
        name = record.config.get("attention.name") or record.choices.get("attention") or ""
        return "" if record.mode == "baseline" else str(name)

    @property
    def seeds(self) -> list[int]:
        """The seeds of the completed runs."""
        return sorted({run.record.seed for run in self.runs})

    @cached_property
    def learned_nothing(self) -> str:
        """Which completed runs learned nothing: `… (seeds 0, 1: macro-F1 0.077, a guess gives 0.125)`, or ''."""
        seeds: dict[str, list[int]] = {}
        for run in self.runs:
            classes, macro_f1 = class_count(run.record), MEASURES["macro_f1"].of(run.record)
            if classes and is_guess(macro_f1, classes):
                seeds.setdefault(f"macro-F1 {macro_f1:.3f}, a guess gives {1 / classes:.3f}", []).append(
                    run.record.seed
                )
        parts = [f"seed{'s'[: len(n) - 1]} {', '.join(map(str, sorted(n)))}: {text}" for text, n in seeds.items()]
        return f"{self.label} learned nothing ({'; '.join(sorted(parts))})" if parts else ""

    @property
    def costs(self) -> dict[str, str]:
        """The measures of the cost claims."""
        return {"time": "time_per_epoch", "memory": memory_measure(self.device.get("kind"))}

    @property
    def shared(self) -> bool:
        """Whether another job ran on the device of any of its runs."""
        return any(bool(run.record.device.get("shared")) for run in self.runs)

    @property
    def broken(self) -> list[Run]:
        """Its runs that failed with NaN or out of memory."""
        failed = [run for run in self.others if run.record.status == "failed"]
        return [run for run in failed if NAN_OR_OOM.search(run.record.cause or "")]

    def values(self, name: str) -> list[float]:
        """The measure `name` of the completed runs that have it."""
        return [value for run in self.runs if (value := MEASURES[name].of(run.record)) is not None]

    def stat(self, name: str) -> Stat:
        """The measure `name` over the completed runs.

        The best test score is that of the run with the best validation macro-F1: nothing is selected on test.
        """
        if name not in self.stats:
            self.stats[name] = self._stat(MEASURES[name], self.values(name))
        return self.stats[name]

    def _stat(self, measure: Measure, values: list[float]) -> Stat:
        if not values:
            return Stat()
        best: float | None = min(values) if measure.low_is_better else max(values)
        if measure.place == "metrics.test":
            scored = [(f1, -run.record.seed, run) for run in self.runs if (f1 := MACRO_F1.of(run.record)) is not None]
            best = measure.of(max(scored, key=lambda item: item[:2])[2].record) if scored else None
        # Sums exactly: the order of the runs does not matter
        sd = statistics.stdev(values) if len(values) > 1 else None
        mean, median = statistics.fmean(values), statistics.median(values)
        middle = median if is_cost(measure.name) else mean
        return Stat(len(values), best, mean, sd, min(values), max(values), median, middle)


@dataclass
class DatasetResults:
    """The groups trained on the same rows of the same data, and the baselines trained on these rows."""

    name: str
    groups: list[Group] = field(default_factory=list)
    baselines: list[Group] = field(default_factory=list)

    @property
    def every(self) -> list[Group]:
        """Its groups in the order of their rank, then its baselines."""
        return [*self.groups, *self.baselines]

    @cached_property
    def baseline(self) -> Group | None:
        """The baseline that the claims use: of several, the one with the highest score."""
        scored = [group for group in self.baselines if group.stat("macro_f1").mean is not None]
        return max(scored, key=lambda group: (group.stat("macro_f1").mean, group.id), default=None)

    @property
    def slug(self) -> str:
        """The name as part of a file's name."""
        return slug(self.name)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def settings_of(record: Record, parents: dict[str, Record], depth: int = 0) -> dict[str, Any]:
    """What all runs of a group share, flat: choices, configuration, code, data, and those of their pretraining run."""
    key: dict[str, Any] = {
        "mode": record.mode,
        "data": record.data.get("fingerprint"),
        "rows": record.data.get("train_rows_hash"),
    }
    encoder = record.mode != "baseline"
    key.update({f"choice.{choice}": record.choices.get(choice) for choice in (CHOICES if encoder else CHOICES[:1])})
    for name, value in record.config.items():
        node, _, leaf = name.partition(".")
        if name in NOT_COMPARED or name.startswith(NOT_COMPARED_NODES) or (not encoder and name.startswith(ENCODER)):
            continue
        if node not in MODE_OF_SECTION or (record.mode == MODE_OF_SECTION[node] and leaf not in NOT_SHAPING):
            key[name] = value
    if encoder:
        key["seq_len"] = record.seq_len
        key.update({f"{part}.code": str(digest)[:12] for part, digest in record.code.items()})
        key["hardware.gradient_checkpointing"] = record.config.get("hardware.gradient_checkpointing")
    if record.pretrain is not None:
        key["checkpoint"] = record.config.get("checkpoint")
        key.update({f"pretrained.{name}": value for name, value in _origin(record, parents, depth).items()})
    return key


def _origin(record: Record, parents: dict[str, Record], depth: int) -> dict[str, Any]:
    """The settings of the run that `record` started from; if that was not found, its own `pretraining.*`."""
    parent = parents.get(str((record.pretrain or {}).get("hash")))
    if parent is not None and depth < 8:  # a chain is short; a forged record could make a cycle
        return {**settings_of(parent, parents, depth + 1), "dtype": parent.device.get("dtype")}
    own = {name: value for name, value in record.config.items() if name.startswith(("pretraining.", "masking."))}
    return {name: value for name, value in own.items() if name.partition(".")[2] not in NOT_SHAPING}


def device_of(record: Record) -> dict[str, Any]:
    """What must be equal so that two costs can be compared; empty for a baseline: no claim uses its costs."""
    return {} if record.mode == "baseline" else {name: record.device.get(name) for name in DEVICE}


def without_attention(key: dict[str, Any]) -> dict[str, Any]:
    """`settings_of` without the mechanism (of the run and its pretraining): what a reference must share."""
    return {name: value for name, value in key.items() if "attention" not in name.split(".")}


def group_runs(found: Found) -> list[Group]:
    """The groups of pretraining, fine-tuning and baseline runs, with labels, in a fixed order."""
    groups: dict[str, Group] = {}
    runs = [run for run in found.runs if run.record.mode in ("pretrain", "finetune", "baseline")]
    for run in runs:
        if run.record.status == "completed":
            key, device = settings_of(run.record, found.parents), device_of(run.record)
            group = groups.setdefault(_text([key, device]), Group(key, device))
            if all(run.record.hash != other.record.hash for other in group.runs):
                group.runs.append(run)
    ordered = list(groups.values())
    for run in runs:
        if run.record.status != "completed":
            _attach(run, found, ordered)
    ordered.sort(key=lambda group: (group.record.mode, str(group.key.get("choice.dataset")), group.id))
    for mode in ("baseline", "finetune", "pretrain"):
        name_groups([group for group in ordered if group.record.mode == mode])
    return ordered


def _attach(run: Run, found: Found, groups: list[Group]) -> None:
    """Adds a run that did not complete to the groups that it fits.

    It may have ended before its rows or its device were known: unknown values fit any group.
    """
    key, device = settings_of(run.record, found.parents), device_of(run.record)
    unknown = {name for name in ("data", "rows") if key[name] is None}

    def fits(group: Group) -> bool:
        alike = all(group.key.get(name) == value for name, value in key.items() if name not in unknown)
        on_device = all(value is None or group.device.get(name) in (None, value) for name, value in device.items())
        return alike and on_device and len(group.key) == len(key)

    fitting = [group for group in groups if fits(group)]
    if not fitting:
        fitting = [Group(key, device)]
        groups += fitting
    for group in fitting:
        if all(run.record.hash != other.record.hash for other in group.others):
            group.others.append(run)


def results_by_dataset(groups: list[Group], rank_by: str) -> list[DatasetResults]:
    """The results for each set of training rows with a fine-tuning or a baseline; groups are ranked."""
    found: dict[tuple[str, str, str], DatasetResults] = {}
    for group in groups:
        if group.record.mode != "pretrain" and (group.runs or group.key["rows"] is not None):
            dataset = str(group.record.choices.get("dataset") or group.record.data.get("name") or "data")
            place = (dataset, str(group.key["data"]), str(group.key["rows"]))
            group.results = found.setdefault(place, DatasetResults(dataset))
            (group.results.baselines if group.record.mode == "baseline" else group.results.groups).append(group)
    # If a name occurs twice, the number of training rows is added; if that is equal too, a hash.
    for by_hash in (False, True):
        names = Counter(results.name for results in found.values())
        for place, results in found.items():
            if names[results.name] > 1:
                suffix = hashlib.sha256(_text(place).encode()).hexdigest()[:6] if by_hash else _rows_of(results)
                results.name += f" ({suffix})"
    datasets = [found[place] for place in sorted(found)]
    for results in datasets:
        _rank(results, rank_by)
    return datasets


def _rows_of(results: DatasetResults) -> str:
    counts = results.every[0].record.data.get("rows")
    return f"{counts.get('train')} training rows" if isinstance(counts, dict) else "rows not counted"


def ranks(groups: Sequence[Group], name: str) -> list[int | None]:
    """The rank of each group in the measure `name`, 1 is best; costs within one device; None without a value."""
    values = pd.Series([group.stat(name).middle for group in groups], dtype=float)
    within = [repr(group.device) if is_cost(name) else "" for group in groups]
    places = values.groupby(within).rank("min", ascending=MEASURES[name].low_is_better)
    return [None if pd.isna(place) else int(place) for place in places]


def _rank(results: DatasetResults, rank_by: str) -> None:
    """Ranks and sorts the groups of a data set; groups without a value come last, unranked."""
    sign, order = 1 if MEASURES[rank_by].low_is_better else -1, {}
    for group, rank in zip(results.groups, ranks(results.groups, rank_by)):
        group.rank, value = rank, group.stat(rank_by).middle
        order[group.id] = math.inf if value is None else sign * value
    results.groups.sort(key=lambda group: (order[group.id], group.label, group.id))

"""What mode=bench has measured, mechanisms in turns: its ratios beside those of the runs, and where efficient attention pays."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import comb
from pathlib import Path
from statistics import median
from typing import Any, Sequence

from xcls.report.conditions import WORDS, conditions
from xcls.report.groups import DatasetResults, Group
from xcls.report.load import Bench, collect
from xcls.report.measures import NONE, TextTable, amount, number
from xcls.runs.record import Record

USUAL = "multirun/bench"
OF_RUNS = ("micro_batch", "micro_tokens", "gradient_checkpointing", "cores")  # conditions that a bench does not have
KINDS = ("finetune", "step", "module", "core")  # the likest to a run's own steps first
SAME = ("stage", "part", "position", "seq_len", "dtype", "batch")  # of two rows that were measured in turns
Row = dict[str, Any]
TITLE = "Where efficient attention pays on this machine"
CHANCE = 20  # two mechanisms differ where chance alone would give such repeats at most once in so many times
UNITS = {"training_ms": "ms", "training_MiB": "MiB"}
QUICKER, SLOWER, OPEN, UNKNOWN = "quicker", "slower", "cannot tell", "not measured"


@dataclass(frozen=True)
class Measurement:
    """What a bench says of a mechanism against another. `what` was measured; `unlike`: how it differs from the runs."""

    time: float | None
    memory: float | None
    what: str
    place: str
    unlike: tuple[str, ...]


def benches_beside(found: Sequence[Bench], root: Path) -> list[Bench]:
    """The measurements among the inputs, else those under multirun/bench."""
    if found or not os.path.isdir(root / USUAL):
        return list(found)
    return collect([USUAL], root).benches


def measured(group: Group, other: Group, benches: Sequence[Bench]) -> tuple[Measurement | None, str]:
    """The measurement likest to the runs of both groups, or None and why there is none.

    It has both mechanisms with the settings of the runs, at their seq_len and dtype, on a device of the same name.
    """
    wanted, theirs = _attention(group.record), _attention(other.record)
    found, elsewhere = [], set()
    for bench in benches:
        names = _names(bench, wanted), _names(bench, theirs)
        for mine in bench.rows:
            if not _fits(mine, names[0], group, bench):
                continue
            for against in bench.rows:
                if _label(against) in names[1] and _done(against) and _place(mine) == _place(against):
                    if _device(bench) == _device_of(group.record):
                        found.append((bench, mine, against))
                    else:
                        elsewhere.add(" ".join(filter(None, map(str, _device(bench)))))
    if not found:
        where = f"; only on {', '.join(sorted(elsewhere))}" if elsewhere else ""
        return None, f"not measured at {group.record.seq_len} tokens in {group.device.get('dtype')}{where}"
    bench, mine, against = min(found, key=lambda item: _distance(item, group))
    return _measurement(bench, mine, against, group), ""


def beside(group: Group, other: Group, name: str, value: float, benches: Sequence[Bench]) -> tuple[float | None, str]:
    """The ratio of the cost `name` as mode=bench has it, whether it agrees with `value`, and where it was measured."""
    found, _ = measured(group, other, benches)
    bench = None if found is None else found.time if name == "time_per_epoch" else found.memory
    if found is None or bench is None:
        return None, ""
    return bench, f"{agree(value, bench)} ({found.place}: {found.what})"


def agree(runs: float | None, bench: float | None) -> str:
    """Whether both ratios are on the same side of 1, in words; '' where one is missing."""
    if runs is None or bench is None:
        return ""
    if (runs - 1) * (bench - 1) >= 0:
        return "yes"
    return f"no: the runs say {'cheaper' if runs < 1 else 'dearer'}, the bench {'cheaper' if bench < 1 else 'dearer'}"


def _attention(record: Record) -> dict[str, Any]:
    return {name.partition(".")[2]: value for name, value in record.config.items() if name.startswith("attention.")}


def _names(bench: Bench, node: dict[str, Any]) -> set[str]:
    """The names under which a bench has the mechanism with exactly these settings."""
    return {name for name, value in _node(bench, "attentions").items() if value == node}


def _label(row: dict[str, Any]) -> Any:
    return row.get("mechanism", row.get("contender")) if row.get("origin") == "xcls" else None


def _done(row: dict[str, Any]) -> bool:
    return row.get("status") == "completed" and row.get("stage", "finetune") == "finetune"


def _fits(row: dict[str, Any], names: set[str], group: Group, bench: Bench) -> bool:
    at = row.get("seq_len"), row.get("dtype")
    return _label(row) in names and _done(row) and at == (group.record.seq_len, group.device.get("dtype"))


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in SAME)


def _kind(row: dict[str, Any]) -> str:
    return str(row.get("stage") or row.get("part"))


def _node(bench: Bench, name: str) -> dict[str, Any]:
    """An entry of the file that should be a dictionary: files come from anywhere."""
    node = bench.data.get(name)
    return node if isinstance(node, dict) else {}


def _device(bench: Bench) -> tuple[Any, Any]:
    device = _node(bench, "device")
    return device.get("kind"), device.get("name")


def _device_of(record: Record) -> tuple[Any, Any]:
    return record.device.get("kind"), record.device.get("name")


def _distance(item: tuple[Bench, dict[str, Any], dict[str, Any]], group: Group) -> tuple[Any, ...]:
    """How far a measurement is from the runs: the kind first, then position and size, then what else differs."""
    bench, mine, _ = item
    kind = _kind(mine)
    place = KINDS.index(kind) if kind in KINDS else len(KINDS)
    elsewhere = mine.get("position") != group.record.choices.get("position")
    return place, elsewhere, _size(bench, mine) != _size_of(group), bench.place


def _size(bench: Bench, row: dict[str, Any]) -> tuple[Any, ...]:
    """(width, heads, layers) of what was measured."""
    size = _node(bench, "size" if "stage" in row else "settings")
    layers = size.get("num_layers") if _kind(row) in ("finetune", "step") else 1
    return size.get("width"), size.get("num_heads"), layers


def _size_of(group: Group) -> tuple[Any, ...]:
    return tuple(group.record.config.get(f"size.{name}") for name in ("width", "num_heads", "num_layers"))


def _measurement(bench: Bench, mine: dict[str, Any], against: dict[str, Any], group: Group) -> Measurement:
    memory = "memory_MiB" if "stage" in mine else "training_MiB"
    width, heads, layers = _size(bench, mine)
    size = f"{layers} × {width}, {heads} heads" if layers != 1 else f"{width} wide, {heads} heads"
    what = f"{_kind(mine)}, {size}, position {mine.get('position')}, {mine.get('rounds')} rounds"
    theirs = {**_node(bench, "device"), "dtype": mine.get("dtype"), "compile": mine.get("compile")}
    theirs |= {name: _node(bench, "versions").get(name) for name in ("torch", "cuda")}
    ours = conditions(group.record)
    names = [name for name in WORDS if name not in OF_RUNS and ours[name] != theirs.get(name)]
    unlike = [f"{WORDS[name]} {ours[name]} in the runs, {theirs.get(name)} in the bench" for name in names]
    if mine.get("position") != group.record.choices.get("position"):
        unlike.append(f"position {group.record.choices.get('position')} in the runs")
    if _size(bench, mine) != _size_of(group):
        unlike.append("another size")
    used = _over(mine.get(memory), against.get(memory))
    return Measurement(_time(mine, against), used, what, bench.place, tuple(unlike))


def _time(mine: dict[str, Any], against: dict[str, Any]) -> float | None:
    """The ratio of times: of whole trainings the median over the rounds, for both had the same machine in a round."""
    ours, theirs = mine.get("speeds"), against.get("speeds")
    if isinstance(ours, list) and isinstance(theirs, list):
        ratios = [_over(other, own) for own, other in zip(ours, theirs)]
        known = [ratio for ratio in ratios if ratio is not None]
        return median(known) if known else None
    return _over(mine.get("training_ms"), against.get("training_ms"))


def _over(above: Any, below: Any) -> float | None:
    top, bottom = number(above), number(below)
    return None if top is None or not bottom else top / bottom


@dataclass(frozen=True)
class Crossover:
    """The steps of one bench at one position and dtype. `rows`: mechanism and length to what was measured."""

    bench: Bench
    position: str
    dtype: str
    references: list[str]
    mechanisms: list[str]
    lengths: list[int]
    rows: dict[tuple[str, int], Row]

    @property
    def what(self) -> str:
        """What was timed, in words."""
        size, (kind, name) = _node(self.bench, "settings"), _device(self.bench)
        shape = f"{size.get('num_layers', '?')} layers, width {size.get('width', '?')}"
        tokens = sorted({row["seq_len"] * row["batch"] for row in self.rows.values()})
        most = f"{tokens[0]:,}" if len(tokens) == 1 else f"{tokens[0]:,} to {tokens[-1]:,}"
        where = f"({shape}, position {self.position}, {self.dtype}) on {name or kind or 'the device'}"
        return f"A training step of {most} tokens {where}"

    def cost(self, mechanism: str, length: int, measure: str) -> float | None:
        """A cost of one step, None where it was not measured."""
        return number(self.rows.get((mechanism, length), {}).get(measure))

    def ratio(self, mechanism: str, reference: str, length: int, measure: str) -> float | None:
        """A cost over that of a reference."""
        own, other = self.cost(mechanism, length, measure), self.cost(reference, length, measure)
        return None if own is None or not other else own / other

    def told(self, mechanism: str, reference: str, length: int) -> str:
        """Whether a step of `mechanism` is quicker: every repeat of one before every repeat of the other, and so many
        repeats that chance puts them so at most once in CHANCE times."""
        pair = [self.rows.get((name, length), {}) for name in (mechanism, reference)]
        values: list[list[Any]] = [[number(row.get(f"training_{end}_ms")) for end in ("min", "max")] for row in pair]
        repeats: list[Any] = [row.get("rounds") for row in pair]
        if None in (*values[0], *values[1]) or not all(isinstance(n, int) and n > 0 for n in repeats):
            return UNKNOWN
        (low, high), (other_low, other_high) = values
        if comb(sum(repeats), repeats[0]) < CHANCE:
            return OPEN
        return QUICKER if high < other_low else SLOWER if low > other_high else OPEN

    def quicker_from(self, mechanism: str, reference: str) -> str:
        """From which of the lengths on a step is quicker than the reference's, in words."""
        states = [self.told(mechanism, reference, length) for length in self.lengths]
        first = len(states)
        while first and states[first - 1] == QUICKER:
            first -= 1
        if first == len(states):
            told = "not up to" if states[-1] == SLOWER else f"{states[-1]} at"
            return f"{told} {self.lengths[-1]:,} tokens"
        below = f" ({OPEN} at {self.lengths[first - 1]:,})" if first and states[first - 1] == OPEN else ""
        return f"from {self.lengths[first]:,} tokens on{below}"


def crossovers(benches: Sequence[Bench], groups: Sequence[Group]) -> list[Crossover]:
    """What there is of steps at two lengths or more, on the device of the runs where there are runs."""
    devices = {_device_of(group.record) for group in groups if group.runs}
    found = []
    for bench in benches:
        if devices and _device(bench) not in devices:
            continue
        parts: dict[tuple[str, str], list[Row]] = {}
        for row in bench.rows:
            whole = all(isinstance(row.get(name), int) and row[name] > 0 for name in ("seq_len", "batch"))
            if row.get("origin") == "xcls" and row.get("part") == "step" and whole:
                parts.setdefault((str(row.get("position")), str(row.get("dtype"))), []).append(row)
        for (position, dtype), rows in parts.items():
            timed = sorted({row["seq_len"] for row in rows if number(row.get("training_ms"))})
            own = {(str(row.get("mechanism")), row["seq_len"]): row for row in rows if row["seq_len"] in timed}
            if len(timed) > 1:
                mechanisms = list(dict.fromkeys(name for name, _ in own))
                names = _node(bench, "settings").get("references")
                references = [name for name in names if name in mechanisms] if isinstance(names, list) else []
                found.append(Crossover(bench, position, dtype, references, mechanisms, timed, own))
    return found


def table(one: Crossover, boards: Sequence[DatasetResults]) -> TextTable:
    """Time and memory of a step by mechanism and length, with the ratios to each reference; beside it the runs' quality."""
    quality, header, rows = _quality(one, boards), ["mechanism"], []
    for unit in UNITS.values():
        header += [f"{length:,} tokens, {unit}" for length in one.lengths]
    for name in one.mechanisms:
        cells = [_cell(one, name, length, measure) for measure in UNITS for length in one.lengths]
        repeats = ", ".join(str(one.rows.get((name, length), {}).get("rounds") or 0) for length in one.lengths)
        rows.append([name, *cells, repeats, *([quality.get(name, NONE)] if quality else [])])
    return [*header, "repeats", *(["macro-F1 of the runs"] if quality else [])], rows


def caption(one: Crossover) -> str:
    """What the table shows."""
    ratios = f" In brackets: the ratio to {', then to '.join(one.references)}." if one.references else ""
    return f"{one.what}: time (median of the repeats) and peak memory.{ratios}"


def _cell(one: Crossover, mechanism: str, length: int, measure: str) -> str:
    value = one.cost(mechanism, length, measure)
    if value is None:
        return "failed" if one.rows.get((mechanism, length), {}).get("status") == "failed" else NONE
    shares = [None if name == mechanism else one.ratio(mechanism, name, length, measure) for name in one.references]
    told = ", ".join(NONE if share is None else f"{share:.2f}×" for share in shares)
    return amount(value) + (f" ({told})" if told else "")


def _quality(one: Crossover, boards: Sequence[DatasetResults]) -> dict[str, str]:
    """Mechanism to macro-F1 on validation, where the runs are of one data set and each mechanism is one group of them."""
    named: dict[str, list[Group]] = {}
    for group in boards[0].groups if len(boards) == 1 else ():
        named.setdefault(str(group.record.choices.get("attention")), []).append(group)
    single = {name: groups[0] for name, groups in named.items() if len(groups) == 1 and name in one.mechanisms}
    return {name: group.stat("macro_f1").text for name, group in single.items()}


def sentence(one: Crossover) -> str:
    """From which length on which mechanism is quicker than each reference."""
    told = []
    for reference in reversed(one.references):  # the fused kernel first: what a practitioner would use
        others = [name for name in one.mechanisms if name not in one.references]
        items = ", ".join(f"{name} {one.quicker_from(name, reference)}" for name in others)
        told.append(f"than with {reference}: {items}")
    return f"{one.what} is quicker {'; '.join(told)}." if told and others else ""


def remarks(one: Crossover) -> list[str]:
    """The footnotes of the table: the sentence, how it is told, and what failed."""
    rule = (
        "The mechanisms took turns. One is quicker where its slowest repeat is before the other's fastest, with so many repeats "
        f"that chance does that at most once in {CHANCE} times; else: {OPEN}."
    )
    failed = [
        f"{name} at {length:,} tokens failed: {row.get('cause')}"
        for (name, length), row in one.rows.items()
        if row.get("status") == "failed"
    ]
    blocks = "sdpa computes a large attention matrix in blocks, and again in the backward pass: less memory, more time."
    return [text for text in (sentence(one), rule, blocks if "sdpa" in one.mechanisms else "", *failed) if text]

"""Measurements of mode=bench (interleaved): cost ratios to set beside those of the runs, and the sequence length from
which a mechanism is faster than a reference."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import comb
from pathlib import Path
from statistics import median
from typing import Any, Sequence

from xcls.report.groups import Group
from xcls.report.load import Bench, collect
from xcls.report.measures import number
from xcls.report.table import NONE, Row, Table, amount

DEFAULT_FOLDER = "multirun/bench"
SAME = ("stage", "part", "position", "seq_len", "dtype", "batch")  # equal in two rows that are compared
CHANCE = 20  # two mechanisms differ if chance alone gives such repeats at most once in CHANCE experiments
UNITS = {"training_ms": "ms", "training_MiB": "MiB"}  # of a step
QUICKER, SLOWER, OPEN, UNKNOWN = "quicker", "slower", "cannot tell", "not measured"


def benches_beside(found: Sequence[Bench], root: Path) -> list[Bench]:
    """The measurements found among the inputs; if there are none, those under multirun/bench."""
    if found or not os.path.isdir(root / DEFAULT_FOLDER):
        return list(found)
    return collect([DEFAULT_FOLDER], root).benches


def bench_ratio(
    group: Group, other: Group, name: str, value: float, benches: Sequence[Bench]
) -> tuple[float | None, str]:
    """The ratio of the cost `name` in mode=bench, and a text: does it agree with `value`, and where was it measured.

    The measurement has the mechanisms' settings, seq_len and dtype of both groups and a device of the same name. Of
    several, the one closest to the runs counts (`_distance`). (None, '') if there is none.
    """
    found = [
        (bench, mine, row)
        for bench in benches
        if _device(bench.device) == _device(group.record.device)
        for mine in _rows_of(bench, group)
        for row in _rows_of(bench, other)
        if all(mine.get(key) == row.get(key) for key in SAME)
    ]
    if not found:
        return None, ""
    bench, mine, against = min(found, key=lambda item: _distance(item[0], item[1], group))
    ratio = _cost_ratio(mine, against, name)
    if ratio is None:
        return None, ""
    width, heads, layers = _size(bench, mine)
    what = f"{mine.get('stage') or 'step'}, {layers} × {width}, {heads} heads, position {mine.get('position')}"
    return ratio, f"{agree(value, ratio)} ({bench.place}: {what}, {mine.get('rounds')} rounds)"


def agree(runs: float, bench: float) -> str:
    """Are both ratios on the same side of 1? As text."""
    if (runs - 1) * (bench - 1) >= 0:
        return "yes"
    return f"no: the runs say {'cheaper' if runs < 1 else 'dearer'}, the bench {'cheaper' if bench < 1 else 'dearer'}"


def _rows_of(bench: Bench, group: Group) -> list[Row]:
    """The completed measurements with the mechanism settings, sequence length and dtype of a group."""
    flat = group.record.config.items()
    own = {name.partition(".")[2]: value for name, value in flat if name.startswith("attention.")}
    names = {name for name, value in bench.attentions.items() if value == own}
    wanted = {"origin": "xcls", "status": "completed", "seq_len": group.record.seq_len}
    wanted["dtype"] = group.device.get("dtype")
    return [
        row
        for row in bench.rows
        if row.get("mechanism", row.get("contender")) in names
        and (row.get("stage") == "finetune" or row.get("part") == "step")
        and all(row.get(name) == value for name, value in wanted.items())
    ]


def _device(about: Row) -> tuple[Any, Any]:
    return about.get("kind"), about.get("name")


def _distance(bench: Bench, mine: Row, group: Group) -> tuple[Any, ...]:
    """Sort key, closest to the runs first: whole trainings, then the same position encoding, then the same size."""
    elsewhere = mine.get("position") != group.record.choices.get("position")
    size = tuple(group.record.config.get(f"size.{name}") for name in ("width", "num_heads", "num_layers"))
    return "stage" not in mine, elsewhere, _size(bench, mine) != size, bench.place


def _size(bench: Bench, row: Row) -> tuple[Any, ...]:
    """(width, heads, layers) of what was measured."""
    size = bench.size if "stage" in row else bench.settings
    return size.get("width"), size.get("num_heads"), size.get("num_layers")


def _cost_ratio(mine: Row, against: Row, name: str) -> float | None:
    """The ratio of a cost. For the times of whole trainings: the median of the ratios within a round, because a slow
    moment of the machine slows both trainings of a round."""
    if name != "time_per_epoch":
        memory = "memory_MiB" if "stage" in mine else "training_MiB"
        return _quotient(mine.get(memory), against.get(memory))
    ours, theirs = mine.get("speeds"), against.get("speeds")
    if isinstance(ours, list) and isinstance(theirs, list):
        ratios = [ratio for own, other in zip(ours, theirs) if (ratio := _quotient(other, own)) is not None]
        return median(ratios) if ratios else None
    return _quotient(mine.get("training_ms"), against.get("training_ms"))


def _quotient(above: Any, below: Any) -> float | None:
    top, bottom = number(above), number(below)
    return None if top is None or not bottom else top / bottom


@dataclass(frozen=True)
class Crossover:
    """The training steps of one bench with one position encoding and dtype. `rows`: (mechanism, length) -> its row."""

    bench: Bench
    position: str
    dtype: str
    references: list[str]
    mechanisms: list[str]
    lengths: list[int]
    rows: dict[tuple[str, int], Row]

    @property
    def what(self) -> str:
        """What was timed, as text."""
        size, (kind, name) = self.bench.settings, _device(self.bench.device)
        shape = f"{size.get('num_layers', '?')} layers, width {size.get('width', '?')}"
        tokens = sorted({row["seq_len"] * row["batch"] for row in self.rows.values()})
        most = f"{tokens[0]:,}" if len(tokens) == 1 else f"{tokens[0]:,} to {tokens[-1]:,}"
        where = f"({shape}, position {self.position}, {self.dtype}) on {name or kind or 'the device'}"
        return f"A training step of {most} tokens {where}"

    def compare(self, mechanism: str, reference: str, length: int) -> str:
        """Is a step of `mechanism` quicker? QUICKER, SLOWER, OPEN or UNKNOWN.

        Quicker: its slowest repeat is faster than the other's fastest, and chance orders that many repeats so at most
        once in CHANCE experiments.
        """
        pair = [self.rows.get((name, length), {}) for name in (mechanism, reference)]
        values: list[Any] = [number(row.get(f"training_{end}_ms")) for row in pair for end in ("min", "max")]
        repeats: list[Any] = [row.get("rounds") for row in pair]
        if None in values or not all(isinstance(n, int) and n > 0 for n in repeats):
            return UNKNOWN
        low, high, other_low, other_high = values
        if comb(sum(repeats), repeats[0]) < CHANCE:
            return OPEN
        return QUICKER if high < other_low else SLOWER if low > other_high else OPEN

    def quicker_from(self, mechanism: str, reference: str) -> str:
        """The shortest length from which on a step is quicker than that of the reference, as text."""
        states = [self.compare(mechanism, reference, length) for length in self.lengths]
        first = len(states)
        while first and states[first - 1] == QUICKER:
            first -= 1
        if first == len(states):
            start = "not up to" if states[-1] == SLOWER else f"{states[-1]} at"
            return f"{start} {self.lengths[-1]:,} tokens"
        below = f" ({OPEN} at {self.lengths[first - 1]:,})" if first and states[first - 1] == OPEN else ""
        return f"from {self.lengths[first]:,} tokens on{below}"


def crossovers(benches: Sequence[Bench], groups: Sequence[Group]) -> list[Crossover]:
    """The steps measured at two lengths or more; if there are runs, only those on the device of a run."""
    devices = {_device(group.record.device) for group in groups if group.runs}
    found = []
    for bench in (bench for bench in benches if not devices or _device(bench.device) in devices):
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
                names = bench.settings.get("references")
                references = [name for name in names if name in mechanisms] if isinstance(names, list) else []
                found.append(Crossover(bench, position, dtype, references, mechanisms, timed, own))
    return found


def table(one: Crossover) -> Table:
    """Time and memory of a step by mechanism and length, with the ratios to each reference."""
    rows = []
    for name in one.mechanisms:
        row = {"mechanism": name}
        for measure, unit in UNITS.items():
            row |= {f"{length:,} tokens, {unit}": _cell(one, name, length, measure) for length in one.lengths}
        repeats = [one.rows.get((name, length), {}).get("rounds") or 0 for length in one.lengths]
        rows.append({**row, "repeats": ", ".join(map(str, repeats))})
    return Table("results", one.what, rows)


def _cell(one: Crossover, mechanism: str, length: int, measure: str) -> str:
    row = one.rows.get((mechanism, length), {})
    value, others = number(row.get(measure)), [name for name in one.references if name != mechanism]
    if value is None:
        return "failed" if row.get("status") == "failed" else NONE
    shares = [_quotient(value, one.rows.get((name, length), {}).get(measure)) for name in others]
    ratios = ", ".join(NONE if share is None else f"{share:.2f}×" for share in shares)
    return amount(value) + (f" ({ratios})" if ratios else "")


def sentence(one: Crossover) -> str:
    """One sentence: from which length on each mechanism is quicker than each reference."""
    others, parts = [name for name in one.mechanisms if name not in one.references], []
    for reference in reversed(one.references):  # the fused kernel first: a practitioner would use it
        items = ", ".join(f"{name} {one.quicker_from(name, reference)}" for name in others)
        parts.append(f"than with {reference}: {items}")
    return f"{one.what} is quicker {'; '.join(parts)}." if parts and others else ""


def remarks(one: Crossover) -> list[str]:
    """The footnotes of the table: the sentence, the rule behind it, and what failed."""
    rule = (
        "The mechanisms took turns. One is quicker if its slowest repeat is faster than the other's fastest, with so "
        f"many repeats that chance does this at most once in {CHANCE} experiments; else: {OPEN}."
    )
    failed = [
        f"{name} at {length:,} tokens failed: {row.get('cause')}"
        for (name, length), row in one.rows.items()
        if row.get("status") == "failed"
    ]
    return [text for text in (sentence(one), rule, *failed) if text]

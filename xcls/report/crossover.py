"""Where efficient attention pays: whole training steps that mode=bench timed in turns at several lengths."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Any, Sequence

from xcls.report.aggregate import Board, Group
from xcls.report.collect import Bench
from xcls.report.compare import NONE, Table, amount, score
from xcls.report.measures import number

Row = dict[str, Any]
TITLE = "Where efficient attention pays on this machine"
CHANCE = 20  # two mechanisms differ where chance alone would give such repeats at most once in so many times
QUICKER, SLOWER, OPEN, UNKNOWN = "quicker", "slower", "cannot tell", "not measured"


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
    def machine(self) -> str:
        """The device's name."""
        device = self.bench.data.get("device")
        return str((isinstance(device, dict) and (device.get("name") or device.get("kind"))) or "the device")

    @property
    def what(self) -> str:
        """What was timed, in words."""
        settings = self.bench.data.get("settings")
        size = settings if isinstance(settings, dict) else {}
        shape = f"{size.get('num_layers', '?')} layers, width {size.get('width', '?')}, position {self.position}, {self.dtype}"
        tokens = sorted({row["seq_len"] * row["batch"] for row in self.rows.values()})
        most = f"{tokens[0]:,}" if len(tokens) == 1 else f"{tokens[0]:,} to {tokens[-1]:,}"
        return f"A training step of {most} tokens ({shape}) on {self.machine}"

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
        values = [[number(row.get(f"training_{end}_ms")) for end in ("min", "max")] for row in pair]
        repeats = [row.get("rounds") for row in pair]
        if any(value is None for two in values for value in two) or not all(isinstance(n, int) and n > 0 for n in repeats):
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
            return f"not up to {self.lengths[-1]:,} tokens" if states[-1] == SLOWER else f"{states[-1]} at {self.lengths[-1]:,} tokens"
        below = f" ({OPEN} at {self.lengths[first - 1]:,})" if first and states[first - 1] == OPEN else ""
        return f"from {self.lengths[first]:,} tokens on{below}"


def crossovers(benches: Sequence[Bench], groups: Sequence[Group]) -> list[Crossover]:
    """What there is of steps at two lengths or more, on the device of the runs where there are runs."""
    devices = {(group.record.device.get("kind"), group.record.device.get("name")) for group in groups if group.runs}
    found = []
    for bench in benches:
        device = bench.data.get("device")
        where = (device.get("kind"), device.get("name")) if isinstance(device, dict) else (None, None)
        if devices and where not in devices:
            continue
        parts: dict[tuple[str, str], list[Row]] = {}
        for row in bench.rows:
            if row.get("origin") == "xcls" and row.get("part") == "step" and _whole(row):
                parts.setdefault((str(row.get("position")), str(row.get("dtype"))), []).append(row)
        for (position, dtype), rows in parts.items():
            timed = sorted({row["seq_len"] for row in rows if number(row.get("training_ms"))})
            if len(timed) > 1:
                found.append(_crossover(bench, position, dtype, [row for row in rows if row["seq_len"] in timed]))
    return found


def _whole(row: Row) -> bool:
    """Whether a row says of what it is: files come from anywhere."""
    return all(isinstance(row.get(name), int) and row[name] > 0 for name in ("seq_len", "batch"))


def _crossover(bench: Bench, position: str, dtype: str, rows: Sequence[Row]) -> Crossover:
    mechanisms = list(dict.fromkeys(str(row.get("mechanism")) for row in rows))
    settings = bench.data.get("settings")
    names = settings.get("references") if isinstance(settings, dict) else None
    references = [name for name in names if name in mechanisms] if isinstance(names, list) else []
    by_place = {(str(row.get("mechanism")), row["seq_len"]): row for row in rows}
    return Crossover(bench, position, dtype, references, mechanisms, sorted({row["seq_len"] for row in rows}), by_place)


def table(one: Crossover, boards: Sequence[Board]) -> Table:
    """Time and memory of a step by mechanism and length, with the ratios to each reference; beside it the runs' quality."""
    quality = _quality(one, boards)
    header = ["mechanism", *(f"{length:,} tokens, ms" for length in one.lengths), *(f"{length:,} tokens, MiB" for length in one.lengths)]
    rows = []
    for mechanism in one.mechanisms:
        cells = [_cell(one, mechanism, length, measure) for measure in ("training_ms", "training_MiB") for length in one.lengths]
        repeats = ", ".join(str(one.rows.get((mechanism, length), {}).get("rounds") or 0) for length in one.lengths)
        rows.append([mechanism, *cells, repeats, *([quality.get(mechanism, NONE)] if quality else [])])
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


def _quality(one: Crossover, boards: Sequence[Board]) -> dict[str, str]:
    """Mechanism to macro-F1 on validation, where the runs are of one data set and each mechanism is one group of them."""
    named: dict[str, list[Group]] = {}
    for group in boards[0].groups if len(boards) == 1 else ():
        named.setdefault(str(group.record.choices.get("attention")), []).append(group)
    return {name: score(groups[0].stat("macro_f1")) for name, groups in named.items() if len(groups) == 1 and name in one.mechanisms}


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
    failed = [f"{name} at {length:,} tokens failed: {row.get('cause')}" for (name, length), row in one.rows.items() if row.get("status") == "failed"]
    blocks = "sdpa computes a large attention matrix in blocks, and again in the backward pass: less memory, more time."
    return [text for text in (sentence(one), rule, blocks if "sdpa" in one.mechanisms else "", *failed) if text]

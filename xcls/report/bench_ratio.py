"""The ratios that mode=bench has measured, mechanisms in turns, beside the ratios of the runs themselves."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Sequence

from xcls.record import Record
from xcls.report.aggregate import Group
from xcls.report.circumstances import WORDS, circumstances
from xcls.report.collect import Bench, collect
from xcls.report.measures import number

USUAL = "multirun/bench"
OF_RUNS = ("micro_batch", "micro_tokens", "gradient_checkpointing", "cores")  # circumstances that a bench does not have
KINDS = ("finetune", "step", "module", "core")  # the likest to a run's own steps first
SAME = ("stage", "part", "position", "seq_len", "dtype", "batch")  # of two rows that were measured in turns


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
    wanted, theirs = _node(group.record), _node(other.record)
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


def _node(record: Record) -> dict[str, Any]:
    return {name.partition(".")[2]: value for name, value in record.config.items() if name.startswith("attention.")}


def _names(bench: Bench, node: dict[str, Any]) -> set[str]:
    """The names under which a bench has the mechanism with exactly these settings."""
    nodes = bench.data.get("attentions")
    return {name for name, value in nodes.items() if value == node} if isinstance(nodes, dict) else set()


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


def _device(bench: Bench) -> tuple[Any, Any]:
    device = bench.data.get("device")
    return (device.get("kind"), device.get("name")) if isinstance(device, dict) else (None, None)


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
    size = bench.data.get("size") if "stage" in row else bench.data.get("settings")
    size = size if isinstance(size, dict) else {}
    layers = size.get("num_layers") if _kind(row) in ("finetune", "step") else 1
    return size.get("width"), size.get("num_heads"), layers


def _size_of(group: Group) -> tuple[Any, ...]:
    return tuple(group.record.config.get(f"size.{name}") for name in ("width", "num_heads", "num_layers"))


def _measurement(bench: Bench, mine: dict[str, Any], against: dict[str, Any], group: Group) -> Measurement:
    memory = "memory_MiB" if "stage" in mine else "training_MiB"
    width, heads, layers = _size(bench, mine)
    size = f"{layers} × {width}, {heads} heads" if layers != 1 else f"{width} wide, {heads} heads"
    what = f"{_kind(mine)}, {size}, position {mine.get('position')}, {mine.get('rounds')} rounds"
    device = {**bench.data.get("device", {}), "dtype": mine.get("dtype"), "compile": mine.get("compile")}
    versions = bench.data.get("versions")
    theirs = {**device, **{name: (versions or {}).get(name) for name in ("torch", "cuda")}}
    ours = circumstances(group.record)
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

"""Under which conditions costs were measured: those that differ between two groups are said beside every ratio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterable

from xcls.runs.record import Record

if TYPE_CHECKING:
    from xcls.report.groups import Group

WORDS = {
    "name": "device",
    "dtype": "dtype",
    "compile": "compile",
    "micro_batch": "micro-batch",
    "micro_tokens": "tokens at once",
    "gradient_checkpointing": "gradient checkpointing",
    "threads": "threads",
    "cores": "cores",
    "torch": "torch",
    "cuda": "CUDA",
}
OF_BASELINE = ("name", "threads", "cores")
# The ways of explicit softmax: all weights at once, or a block of them and again for gradients.
WHOLE, BLOCKS = "whole", "blocks"


def conditions(record: Record) -> dict[str, Any]:
    """What a cost depends on beside the configuration: device, its settings, versions."""
    device = {**record.device, "name": record.device.get("name") or record.device.get("kind")}
    versions = {name: record.versions.get(name) for name in ("torch", "cuda")}
    return {name: {**device, **versions}.get(name) for name in WORDS}


def gathered(records: Iterable[Record]) -> dict[str, set[str]]:
    """Every condition with all values that these runs have of it, as text."""
    told = [conditions(record) for record in records]
    return {name: {_text(one[name]) for one in told} for name in WORDS}


def unlike_groups(group: Group, other: Group) -> list[str]:
    """Every condition in which the completed runs of two groups differ, in words: `torch 2.12.0 against 2.13.0`.

    A baseline has no encoder, whose dtype would matter.
    """
    baseline = "baseline" in (group.record.mode, other.record.mode)
    told = []
    for name in OF_BASELINE if baseline else WORDS:
        mine, theirs = group.conditions[name], other.conditions[name]
        if mine != theirs and mine and theirs:
            told.append(f"{WORDS[name]} {' and '.join(sorted(mine))} against {' and '.join(sorted(theirs))}")
    for one, two in ((group, other), (other, group)):
        if BLOCKS in softmax_ways(one) and not softmax_ways(two):
            why = "its weights do not fit: a smaller hardware.micro_tokens may change that"
            told.append(f"softmax of {one.label} in blocks, {why}")
    path = unlike_paths(group, other)
    return [*told, path] if path else told


def paths(group: Group) -> set[str]:
    """The ways in which the completed runs of a group computed attention, as their records tell; older ones do not."""
    return {str(path) for run in group.runs if (path := run.record.device.get("attention_path"))}


def softmax_ways(group: Group) -> set[str]:
    """Those of them that are of explicit softmax: WHOLE, BLOCKS, or both, in batches of different lengths."""
    return {way for path in paths(group) for way in path.split(",")} & {WHOLE, BLOCKS}


def unlike_paths(group: Group, other: Group) -> str:
    """Why two groups have costs of different algorithms, or ''.

    The same mechanism took different ways in two runs of a group, or explicit softmax did so in the two groups. Different mechanisms
    may have different ways: these are what is compared.
    """
    for one in (group, other):
        if len(paths(one)) > 1:
            return f"the runs of {one.label} computed attention in different ways: {' and '.join(sorted(paths(one)))}"
    mine, theirs = softmax_ways(group), softmax_ways(other)
    if mine and theirs and mine != theirs:
        told = [f"{' and '.join(sorted(ways))} in {one.label}" for one, ways in ((group, mine), (other, theirs))]
        return f"softmax was computed in different ways: {', '.join(told)}"
    return ""


def _text(value: Any) -> str:
    return "unknown" if value is None else str(value)

"""Under which circumstances costs were measured: those that differ between two groups are said beside every ratio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterable

from xcls.record import Record

if TYPE_CHECKING:
    from xcls.report.aggregate import Group

WORDS = {
    "name": "device", "dtype": "dtype", "compile": "compile", "micro_batch": "micro-batch",
    "micro_tokens": "tokens at once", "gradient_checkpointing": "gradient checkpointing", "threads": "threads",
    "cores": "cores", "torch": "torch", "cuda": "CUDA",
}  # fmt: skip
OF_BASELINE = ("name", "threads", "cores")


def circumstances(record: Record) -> dict[str, Any]:
    """What a cost depends on beside the configuration: device, its settings, versions."""
    device = {**record.device, "name": record.device.get("name") or record.device.get("kind")}
    versions = {name: record.versions.get(name) for name in ("torch", "cuda")}
    return {name: {**device, **versions}.get(name) for name in WORDS}


def gathered(records: Iterable[Record]) -> dict[str, set[str]]:
    """Every circumstance with all values that these runs have of it, as text."""
    told = [circumstances(record) for record in records]
    return {name: {_text(one[name]) for one in told} for name in WORDS}


def unlike_groups(group: Group, other: Group) -> list[str]:
    """Every circumstance in which the completed runs of two groups differ, in words: `torch 2.12.0 against 2.13.0`.

    A baseline has no encoder, whose dtype would matter.
    """
    baseline = "baseline" in (group.record.mode, other.record.mode)
    told = []
    for name in OF_BASELINE if baseline else WORDS:
        mine, theirs = group.circumstances[name], other.circumstances[name]
        if mine != theirs and mine and theirs:
            told.append(f"{WORDS[name]} {' and '.join(sorted(mine))} against {' and '.join(sorted(theirs))}")
    return told


def _text(value: Any) -> str:
    return "unknown" if value is None else str(value)

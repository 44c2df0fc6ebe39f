"""Short names for groups: the mechanism, and whatever else tells one group from another."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from xcls.report.aggregate import Group

BASELINE = "TF-IDF + LogReg"
HEADLINE = ("dataset", "position", "size", "tokenizer")
MOST = 5  # parts of a label beyond the headline; more are replaced by the group's id


def name_groups(groups: list[Group]) -> None:
    """Sets the label of every group, unique within its mode."""
    for mode in sorted({group.record.mode for group in groups}):
        _name([group for group in groups if group.record.mode == mode])


def _name(groups: list[Group]) -> None:
    parts = _headlines(groups)
    buckets: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        buckets.setdefault(tuple(parts[group.id]), []).append(group)
    for headline, alike in buckets.items():
        flats = {group.id: {**group.key, **{f"device.{k}": v for k, v in group.device.items()}} for group in alike}
        names = sorted({name for flat in flats.values() for name in flat})
        varying = [name for name in names if len({repr(flat.get(name)) for flat in flats.values()}) > 1]
        short = Counter(name.rpartition(".")[2] for name in varying)
        for group in alike:
            tail = []
            for name in varying if len(varying) <= MOST else []:
                leaf = name.rpartition(".")[2]
                tail.append(f"{leaf if short[leaf] == 1 else name}={_value(flats[group.id].get(name))}")
            group.label = " ".join([*headline, *(tail if len(varying) <= MOST else [group.id])])


def _headlines(groups: list[Group]) -> dict[str, list[str]]:
    """The first words of each label: mechanism, then data, position, size … where these differ between the groups."""
    traits: list[Callable[[Group], str]] = [_choice(name) for name in HEADLINE]
    traits.append(lambda group: f"n{group.record.seq_len}")
    traits.append(lambda group: "scratch" if group.record.pretrain is None else "pretrained")
    traits.append(lambda group: str(group.device.get("dtype") or ""))
    traits.append(lambda group: str(group.device.get("name") or group.device.get("kind") or ""))
    baseline = groups[0].record.mode == "baseline"
    telling = [trait for trait in (traits[:1] if baseline else traits) if len({trait(group) for group in groups}) > 1]
    return {group.id: [_mechanism(group), *(trait(group) for trait in telling)] for group in groups}


def _mechanism(group: Group) -> str:
    if group.record.mode == "baseline":
        return BASELINE
    return str(group.record.choices.get("attention") or group.attention)


def _choice(name: str) -> Callable[[Group], str]:
    return lambda group: str(group.record.choices.get(name))


def _value(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:21] + "…"

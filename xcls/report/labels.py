"""The short names of groups: the mechanism, then the settings in which they differ."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xcls.report.groups import Group

BASELINE = "TF-IDF + LogReg"
MOST_PARTS = 5  # settings in a label; if more differ, the id of the group replaces them


def name_groups(groups: list[Group]) -> None:
    """Sets the labels of the groups of one mode: mechanism, then data, position, size … if they differ."""
    traits = [_traits(group) for group in groups]
    kept = [place for place, column in enumerate(zip(*traits)) if place == 0 or len(set(column)) > 1]
    alike: dict[str, list[Group]] = {}
    for group, words in zip(groups, traits):
        alike.setdefault(" ".join(words[place] for place in kept), []).append(group)
    for first, same in alike.items():
        flats = [{**group.key, **{f"device.{name}": value for name, value in group.device.items()}} for group in same]
        names = sorted({name for flat in flats for name in flat})
        varying = [name for name in names if len({repr(flat.get(name)) for flat in flats}) > 1]
        leaves = Counter(name.rpartition(".")[2] for name in varying)
        for group, flat in zip(same, flats):
            tail = []
            for name in varying:
                leaf = name.rpartition(".")[2]
                tail.append(f"{leaf if leaves[leaf] == 1 else name}={str(flat.get(name))[:24]}")
            group.label = " ".join([first, *(tail if len(tail) <= MOST_PARTS else [group.id])])


def _traits(group: Group) -> list[str]:
    """The mechanism, and the values that may follow it in a label."""
    record, device = group.record, group.device
    choices = [str(record.choices.get(name)) for name in ("dataset", "position", "size", "tokenizer")]
    if record.mode == "baseline":
        return [BASELINE, choices[0]]
    mechanism = str(record.choices.get("attention") or group.attention)
    origin = "scratch" if record.pretrain is None else "pretrained"
    place = [str(device.get("dtype") or ""), str(device.get("name") or device.get("kind") or "")]
    return [mechanism, *choices, f"n{record.seq_len}", origin, *place]

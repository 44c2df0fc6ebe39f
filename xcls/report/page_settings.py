"""Configurations on the page, what differs first; and the environments that the runs were made in."""

from __future__ import annotations

import json
from typing import Any, Sequence

from xcls.report.aggregate import Group
from xcls.report.collect import Run
from xcls.report.page_parts import escape, folded, note, table
from xcls.schema import flatten

MODES = ("finetune", "pretrain", "baseline")
PER_RUN = (
    "seed",
    "exp",
    "sweep",
    "pretrain",
)  # differ between the runs of a group, and shape nothing or are told elsewhere
MOST_COLUMNS = 6
MOST_GROUPS = 200
Flat = dict[str, Any]


def settings_parts(groups: Sequence[Group]) -> list[str]:
    """The section's HTML: per mode what differs between the groups, what all share, each group's own folded away."""
    parts = []
    for mode in MODES:
        alike = [group for group in groups if group.record.mode == mode]
        if alike:
            parts += [f"<h3>{escape(mode)}</h3>", *_of_mode(alike)]
    return parts


def _of_mode(groups: Sequence[Group]) -> list[str]:
    flats = {group.id: flat_of(group) for group in groups}
    differ = differing(list(flats.values()))
    shared = {name: value for name, value in flats[groups[0].id].items() if name not in set(differ)}
    parts = []
    if len(groups) > 1:
        parts.append(
            _differences(
                groups, flats, [name for name in differ if not name.startswith(("data.", "params.", "versions."))]
            )
        )
        parts.append(folded(f"What all {len(groups)} groups share ({len(shared)} values)", _lines(shared)))
    else:
        parts.append(note("One group: nothing to differ from."))
    if len(groups) > MOST_GROUPS:
        parts.append(
            note(f"The first {MOST_GROUPS} of {len(groups)} groups; results.csv has the settings of every run.")
        )
    for group in groups[:MOST_GROUPS]:
        own = {name: flats[group.id].get(name) for name in differ} if len(groups) > 1 else shared
        seeds = " ".join(map(str, group.seeds)) or "none completed"
        runs = {"runs": [run.place for run in [*group.runs, *group.others]], "commands": _commands(group)}
        parts.append(folded(f"{group.label} · seeds {seeds} · group {group.id}", _lines({**own, **flatten(runs)})))
    return parts


def _differences(groups: Sequence[Group], flats: dict[str, Flat], names: Sequence[str]) -> str:
    """The settings that are not the same in all groups: a row per setting, or per group where there are many."""
    caption = "What differs between the groups: every setting that is not the same in all of them."
    cells = [[_text(flats[group.id][name]) if name in flats[group.id] else None for group in groups] for name in names]
    if len(groups) <= MOST_COLUMNS:
        return table(
            ["setting", *(group.label for group in groups)], [[name, *row] for name, row in zip(names, cells)], caption
        )
    return table(["group", *names], [[group.label, *row] for group, row in zip(groups, zip(*cells))], caption)


def flat_of(group: Group) -> Flat:
    """Everything that is known of a group's configuration, flat: choices, config, data, device, params, versions."""
    record = group.record
    nodes = {
        "choices": record.choices,
        "code": record.code,
        "data": record.data,
        "device": record.device,
        "params": record.params,
        "versions": record.versions,
    }
    config = {name: value for name, value in record.config.items() if name not in PER_RUN}
    pretrain = {} if record.pretrain is None else {"pretrained": record.pretrain}
    flat = {**config, **flatten({**nodes, **pretrain})}
    return {name: flat[name] for name in sorted(flat, key=lambda name: (not name.startswith("choices."), name))}


def differing(flats: Sequence[Flat]) -> list[str]:
    """The names whose values are not the same in all of `flats`, the choices first."""
    names = sorted({name for flat in flats for name in flat}, key=lambda name: (not name.startswith("choices."), name))
    return [name for name in names if len({_text(flat.get(name)) for flat in flats}) > 1]


def _commands(group: Group) -> list[str]:
    return [" ".join(["run.py", *run.record.command]) for run in group.runs]


def _lines(values: Flat) -> str:
    return f"<pre>{escape(chr(10).join(f'{name}: {_text(value)}' for name, value in values.items()))}</pre>"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def environment(runs: Sequence[Run]) -> str:
    """Each environment that runs were made in, once, with the number of its runs."""
    counts: dict[tuple[str, ...], int] = {}
    for run in runs:
        record = run.record
        device = " ".join(str(record.device[name]) for name in ("name", "dtype") if record.device.get(name))
        threads = str(record.device.get("threads") or "")
        versions = ", ".join(f"{name} {value}" for name, value in sorted(record.versions.items()) if value)
        place = (device or "unknown", threads, versions or "unknown", record.commit or "unknown")
        counts[place] = counts.get(place, 0) + 1
    rows = [
        [device, counts[place], threads, versions, commit]
        for place in sorted(counts)
        for device, threads, versions, commit in [place]
    ]
    return table(
        ["device", "runs", "threads", "versions", "commit"],
        rows,
        "Where the runs were made. Costs compare within one device only.",
    )

"""The reference of a group, the differences between the two, and whether both were measured under equal conditions."""

from __future__ import annotations

from xcls.report.groups import DatasetResults, Group, without_attention
from xcls.report.intervals import DIGITS
from xcls.report.measures import CONDITIONS

SPLITS = {"validation": "macro_f1", "test": "test_macro_f1"}
LONG_NAMES = {"kind": "kind of device", "threads": "thread count", "compile": "compile setting"}  # for sentences
BASELINE_CONDITIONS = ("name", "threads", "cores")
# Code paths of explicit softmax: all weights at once, or in blocks that are recomputed for gradients.
SOFTMAX_PATHS = {"whole", "blocks"}


def ratio(group: Group, other: Group, name: str) -> float | None:
    """Median cost of `group` / median cost of `other`; None if one is missing or the divisor is not positive."""
    above, below = group.stat(name).middle, other.stat(name).middle
    return None if above is None or below is None or below <= 0 else above / below


def difference_pp(group: Group, other: Group, split: str) -> float | None:
    """Mean macro-F1 of `group` minus that of `other`, in percentage points; None if one of them learned nothing."""
    if group.learned_nothing or other.learned_nothing:
        return None
    mine, theirs = group.stat(SPLITS[split]).mean, other.stat(SPLITS[split]).mean
    return None if mine is None or theirs is None else round((mine - theirs) * 100, DIGITS)


def no_baseline(results: DatasetResults) -> str:
    """Why a data set has no baseline, or ''."""
    if results.baseline is not None:
        return ""
    if any(group.key["rows"] is None for group in results.groups):
        return "the record does not say on which rows it was trained"
    causes = [run.record.cause or run.record.status for group in results.baselines for run in group.others]
    return f"the baseline did not complete: {causes[0]}" if causes else "no baseline was trained on these rows"


def find_reference(group: Group, name: str) -> tuple[Group | None, str]:
    """The group of mechanism `name` that equals `group` in everything but `attention.*`, or None and the reason."""
    if group.attention == name and group.runs:
        return group, ""
    return twin_among([other for other in group.results.groups if other.runs and other.attention == name], group, name)


def twin_among(named: list[Group], group: Group, name: str) -> tuple[Group | None, str]:
    """The group in `named` (all of mechanism `name`) that differs from `group` only in `attention.*`, or None and why.

    Of several (SDPA with different settings) it is the one that shares most attention settings with `group`.
    """
    twins = [other for other in named if other.twin == group.twin]
    same = [other for other in twins if other.device == group.device]
    if len(same) == 1:
        return same[0], ""
    if same:
        own = {key: value for key, value in group.key.items() if key.startswith("attention.")}
        shared = [sum(other.key.get(key) == value for key, value in own.items()) for other in same]
        if shared.count(max(shared)) == 1:
            return same[shared.index(max(shared))], ""
        return None, f"{len(same)} {name} groups are alike in everything but attention"
    if twins:
        differ = sorted({k for other in twins for k in group.device if other.device.get(k) != group.device.get(k)})
        words = {key: LONG_NAMES.get(key, CONDITIONS.get(key, key)) for key in differ}
        others = [f"another {word}" + ("" if key in word else f" ({key})") for key, word in words.items()]
        return None, f"the {name} runs alike have {' and '.join(others)}"
    if not named:
        return None, f"no completed {name} run on these rows"
    mine, differences = without_attention(group.key), []
    for theirs in (without_attention(other.key) for other in named):
        differences.append(sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k)))
    closest = min(differences, key=lambda keys: (len(keys), keys))
    more = f" and {len(closest) - 3} more" if len(closest) > 3 else ""
    nearest = f"the closest differs in {', '.join(closest[:3])}{more}"
    return None, f"no {name} run alike in everything but attention; {nearest}"


def unlike_groups(group: Group, other: Group) -> list[str]:
    """The measurement conditions in which two groups differ, as text: `torch 2.12.0 against 2.13.0`.

    With a baseline fewer conditions count: it has no encoder, so no dtype.
    """
    baseline = "baseline" in (group.record.mode, other.record.mode)
    found = []
    for name in BASELINE_CONDITIONS if baseline else CONDITIONS:
        mine, theirs = group.conditions[name], other.conditions[name]
        if mine != theirs and mine and theirs:
            found.append(f"{CONDITIONS[name]} {' and '.join(sorted(mine))} against {' and '.join(sorted(theirs))}")
    for one, two in ((group, other), (other, group)):
        if "blocks" in softmax_paths(one) and not softmax_paths(two):
            why = "its weights do not fit: a smaller hardware.micro_tokens may change that"
            found.append(f"softmax of {one.label} in blocks, {why}")
    path = unlike_paths(group, other)
    return [*found, path] if path else found


def attention_paths(group: Group) -> set[str]:
    """The code paths that computed attention in the completed runs of a group; older records do not have them."""
    return {str(path) for run in group.runs if (path := run.record.device.get("attention_path"))}


def softmax_paths(group: Group) -> set[str]:
    """The code paths of explicit softmax in a group: whole, in blocks, or both (for batches of other lengths)."""
    return {way for path in attention_paths(group) for way in path.split(",")} & SOFTMAX_PATHS


def unlike_paths(group: Group, other: Group) -> str:
    """Why the costs of two groups come from different algorithms, or ''.

    Either the runs of one group took different code paths, or explicit softmax took different ones in the two groups.
    Code paths of different mechanisms may differ: they are what is compared.
    """
    for one in (group, other):
        found = sorted(attention_paths(one))
        if len(found) > 1:
            return f"the runs of {one.label} computed attention in different ways: {' and '.join(found)}"
    mine, theirs = softmax_paths(group), softmax_paths(other)
    if mine and theirs and mine != theirs:
        both = [f"{' and '.join(sorted(ways))} in {one.label}" for one, ways in ((group, mine), (other, theirs))]
        return f"softmax was computed in different ways: {', '.join(both)}"
    return ""

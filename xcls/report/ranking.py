"""Who is first in what: the rank of every group in quality and in cost, and modifications beside their originals."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Any, Callable, Sequence

from xcls.report.aggregate import Board, Group
from xcls.report.circumstances import unlike_groups
from xcls.report.measures import MEASURES, is_cost, memory_measure
from xcls.report.money import Bill
from xcls.report.tables import Row, interval_cells
from xcls.report.verdict import Judge, difference_pp, ratio, twin_among

QUALITY = ("macro_f1", "accuracy", "auroc", "test_macro_f1", "test_accuracy", "test_auroc")
COSTS = (
    "time_per_epoch", "tokens_per_s", "max_gpu_mem_MiB", "rss_growth_MiB", "max_rss_MiB", "params", "latency_ms",
    "inference_examples_per_s",
)  # fmt: skip
BILLED: dict[str, Callable[[Bill], float | None]] = {
    "train_hours": lambda bill: bill.train_s, "train_money": lambda bill: bill.train_money,
    "document_hours": lambda bill: bill.document_s, "document_money": lambda bill: bill.document_money,
}  # fmt: skip


def ranks(board: Board, bills: dict[str, Bill]) -> list[Row]:
    """A row per group and baseline with completed runs: its rank in every measure, 1 is best.

    Costs are ranked among the groups of one device and setting of it; money among all.
    """
    groups = [group for group in [*board.groups, *board.baselines] if group.runs]
    rows = [{"mechanism": group.label, "dataset": board.name, "n": len(group.runs)} for group in groups]
    for name in (*QUALITY, *COSTS):
        sign = 1 if MEASURES[name].low_is_better else -1
        middles = [group.stat(name).middle for group in groups]
        apart = [repr(group.device) if is_cost(name) else "" for group in groups]
        _fill(rows, name, [None if middle is None else sign * middle for middle in middles], apart)
    for name, of in BILLED.items():
        apart = ["" if name.endswith("money") else repr(group.device.get("name")) for group in groups]
        _fill(rows, name, [of(bills[group.id]) for group in groups], apart)
    return rows


def _fill(rows: list[Row], name: str, values: Sequence[float | None], apart: Sequence[str]) -> None:
    """Writes ranks, small values first, among the rows with the same word in `apart`; no value, no rank."""
    ladders: dict[str, list[float]] = {}
    for value, word in zip(values, apart):
        if value is not None:
            insort(ladders.setdefault(word, []), value)
    for row, value, word in zip(rows, values, apart):
        row[name] = None if value is None else 1 + bisect_left(ladders[word], value)


def modifications(
    board: Board, judge: Judge, originals: dict[str, str], references: Sequence[str] = ()
) -> list[Row]:
    """A row for every modification and each of its originals that was run alike but for the mechanism.

    A mechanism modifies those whose file's name its own begins with (`performer_band`, `performer`), and the one that
    `originals` names. The references modify nothing: `sdpa_fused` is another implementation, compared as a reference.
    """
    by_name: dict[str, list[Group]] = {}
    for group in board.groups:
        if group.runs:
            by_name.setdefault(_file(group), []).append(group)
    rows = []
    for name, groups in sorted(item for item in by_name.items() if item[0] not in references):
        parents = [other for other in sorted(by_name) if name.startswith(f"{other}_") or originals.get(name) == other]
        for group in groups:
            for parent in parents:
                twins = [other for other in by_name[parent] if other.twin == group.twin]
                other, _ = twin_among(twins, group, parent) if twins else (None, "")
                if other is not None:
                    rows.append(_beside(group, other, board, judge))
    return rows


def _file(group: Group) -> str:
    return str(group.record.choices.get("attention") or group.attention)


def _beside(group: Group, other: Group, board: Board, judge: Judge) -> Row:
    memory = memory_measure(group.device.get("kind"))
    row: Row = {
        "mechanism": group.label, "dataset": board.name, "n": len(group.runs), "original": other.label,
        "n_original": len(other.runs), "macro_f1_pp": difference_pp(group, other, "validation"),
        **against_zero(judge, group, other, board, "validation"),
        "test_macro_f1_pp": difference_pp(group, other, "test"),
        "time_ratio": ratio(group, other, "time_per_epoch"), "memory_ratio": ratio(group, other, memory),
        "latency_ratio": ratio(group, other, "latency_ms"), "params_ratio": ratio(group, other, "params"),
        "measured_differently": "; ".join(unlike_groups(group, other)) or None,
    }  # fmt: skip
    return row


def against_zero(judge: Judge, group: Group, other: Group, board: Board, split: str) -> dict[str, Any]:
    """The columns of the interval of a difference, and what it says: better, worse, cannot tell."""
    if judge.differences is None:
        return {}
    interval = judge.differences.between(group, other, board, split)
    if interval.low is None or interval.high is None:
        return {"says": None, **interval_cells(interval)}
    says = "better" if interval.low > 0 else "worse" if interval.high < 0 else "cannot tell"
    return {"says": says, **interval_cells(interval)}

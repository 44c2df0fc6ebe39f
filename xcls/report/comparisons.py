"""The further tables, each one CSV file: differences, costs, modifications beside their originals, ranks."""

from __future__ import annotations

from typing import Any, Iterator

from xcls.report.claims import Study
from xcls.report.costs import HOUR, MILLION, bill, count_children, pays, price_of
from xcls.report.groups import DatasetResults, Group, devices, ranks
from xcls.report.measures import MEASURES
from xcls.report.references import SPLITS, difference_pp, ratio, twin_among, unlike_groups
from xcls.report.table import Row, Table
from xcls.report.tables import interval_cells

TITLES = {
    "differences": "Differences of macro-F1",
    "costs": "What it costs",
    "modifications": "Modifications beside their originals",
    "ranking": "Ranks",
}
RANKED = """
    macro_f1 accuracy auroc test_macro_f1 test_accuracy test_auroc time_per_epoch tokens_per_s max_gpu_mem_MiB
    rss_growth_MiB max_rss_MiB params latency_ms inference_examples_per_s
""".split()
BILLED = {
    "train_hours": "train_s",
    "train_money": "train_money",
    "document_hours": "document_s",
    "document_money": "document_money",
}


def further_tables(study: Study) -> list[Table]:
    """Every further table, also one without a row."""
    bills = bills_of(study)
    rows: dict[str, list[Row]] = {name: [] for name in TITLES}
    for board in study.boards:
        rows["differences"] += difference_rows(study, board)
        rows["costs"] += cost_rows(study, board, bills)
        rows["modifications"] += modifications(study, board)
        rows["ranking"] += rank_rows(board, bills)
    return [Table(name, title, rows[name]) for name, title in TITLES.items()]


def opponents(study: Study, group: Group, board: DatasetResults) -> list[Group]:
    """The groups that a group is compared with: its references, each once."""
    found = [study.reference(group, board, name)[0] for name in study.references]
    return list({other.id: other for other in found if other is not None and other is not group}.values())


def _about(group: Group, board: DatasetResults, other: Group | None = None) -> Row:
    """The first columns of a row."""
    row = {"mechanism": group.label, "dataset": board.name, "n": len(group.runs)}
    return row if other is None else {**row, "against": other.label, "n_against": len(other.runs)}


def difference_rows(study: Study, board: DatasetResults) -> Iterator[Row]:
    """A row for each group, opponent and split."""
    baseline = [board.baseline] if board.baseline else []
    for group in (group for group in board.groups if group.runs):
        for other in [*opponents(study, group, board), *baseline]:
            for split in SPLITS:
                gap = {"split": split, "difference_pp": difference_pp(group, other, split)}
                yield {**_about(group, board, other), **gap, **_interval(study, group, other, board, split)}


def _interval(study: Study, group: Group, other: Group, board: DatasetResults, split: str) -> dict[str, Any]:
    """The columns of the interval of a difference, and what it says: better, worse, cannot tell."""
    interval = study.differences.between(group, other, board, split)
    says = None
    if interval.low is not None and interval.high is not None:
        says = "better" if interval.low > 0 else "worse" if interval.high < 0 else "cannot tell"
    return {"says": says, **interval_cells(interval)}


def bills_of(study: Study) -> dict[str, dict[str, float]]:
    """Group id to bill, of the groups with completed runs."""
    children = count_children([run.record for run in study.found.runs])
    groups = [group for board in study.boards for group in board.every if group.runs]
    how: Any = {"parents": study.found.parents, "children": children, "cost": study.settings.cost}
    return {group.id: bill(group, **how) for group in groups}


def cost_rows(study: Study, board: DatasetResults, bills: dict[str, dict[str, float]]) -> Iterator[Row]:
    """A row for each group and baseline, and for what the search of the tuned baseline has cost."""
    cost, baseline = study.settings.cost, board.baseline
    for group in (group for group in board.every if group.id in bills):
        own = bills[group.id]
        where = {"device": group.record.device.get("name"), "shared_device": group.shared or None}
        row: Row = {
            **_about(group, board),
            "macro_f1": group.stat("macro_f1").mean,
            **{f"{name}_hours": own[f"{name}_s"] * (1 / HOUR) for name in ("train", "finetune", "pretrain")},
            "pretrain_share_hours": own["shared_s"] * (1 / HOUR),
            f"train_{cost.currency}": own["train_money"],
            "train_kWh": own["train_wh"] * 1e-3,
            **{name: group.stat(name).median for name in ("latency_ms", "latency_p95_ms")},
            "documents_per_s": 1 / own["document_s"],
            "million_documents_hours": own["document_s"] * (MILLION / HOUR),
            f"million_documents_{cost.currency}": own["document_money"] * MILLION,
            "million_documents_kWh": own["document_wh"] * (MILLION * 1e-3),
            **where,
        }
        beside = [(other, "reference") for other in opponents(study, group, board)[:1]]
        for other, name in [*beside, *([(baseline, "baseline")] if baseline and baseline is not group else [])]:
            documents, words = pays(group, other, own, bills[other.id])
            row |= {f"pays_against_{name}": words, f"documents_to_pay_against_{name}": documents}
            row[f"unlike_{name}"] = "; ".join(unlike_groups(group, other)) or None
        yield row
        seconds = group.stat("tuned_train_seconds").median
        if group.record.mode == "baseline" and seconds is not None:
            price, hours = price_of(group.record, cost), seconds / HOUR
            yield {
                **_about(group, board),
                "mechanism": f"{group.label}, tuned",
                "macro_f1": group.stat("tuned_macro_f1").mean,
                "train_hours": hours,
                "finetune_hours": hours,
                f"train_{cost.currency}": None if price.price_per_hour is None else price.price_per_hour * hours,
                "train_kWh": None if price.watts is None else price.watts * (hours * 1e-3),
                **where,
            }


def modifications(study: Study, board: DatasetResults) -> Iterator[Row]:
    """A row for every modification and each of its originals that was run alike but for the mechanism.

    A mechanism modifies those whose file's name its own begins with (`performer_band`, `performer`), and the one that
    `originals` names. The references modify nothing: `sdpa_fused` is another implementation, compared as a reference.
    """
    by_name: dict[str, list[Group]] = {}
    for group in (group for group in board.groups if group.runs):
        by_name.setdefault(str(group.record.choices.get("attention") or group.attention), []).append(group)
    originals = study.settings.originals
    for name in sorted(set(by_name) - set(study.references)):
        parents = [other for other in sorted(by_name) if name.startswith(f"{other}_") or originals.get(name) == other]
        for group, parent in ((group, parent) for group in by_name[name] for parent in parents):
            twins = [other for other in by_name[parent] if other.twin == group.twin]
            original = twin_among(twins, group, parent)[0] if twins else None
            if original is not None:
                yield _modification(study, group, original, board)


def _modification(study: Study, group: Group, other: Group, board: DatasetResults) -> Row:
    row = {**_about(group, board), "original": other.label, "n_original": len(other.runs)}
    row |= {"macro_f1_pp": difference_pp(group, other, "validation")}
    row |= _interval(study, group, other, board, "validation")
    row["test_macro_f1_pp"] = difference_pp(group, other, "test")
    costs = {**group.costs, "latency": "latency_ms", "params": "params"}
    row |= {f"{word}_ratio": ratio(group, other, name) for word, name in costs.items()}
    return {**row, "measured_differently": "; ".join(unlike_groups(group, other)) or None}


def rank_rows(board: DatasetResults, bills: dict[str, dict[str, float]]) -> list[Row]:
    """A row per group and baseline with completed runs: its rank in every measure, 1 is best.

    Costs are ranked among the groups of one device and setting of it, hours among those of one device, money among all.
    """
    groups = [group for group in board.every if group.runs]
    rows = [_about(group, board) for group in groups]
    placed = {}
    for name in RANKED:
        values = [group.stat(name).middle for group in groups]
        placed[name] = ranks(values, devices(groups, name), low=MEASURES[name].low_is_better)
    for name, billed in BILLED.items():
        within = [repr(group.device.get("name")) if name.endswith("hours") else "" for group in groups]
        placed[name] = ranks([bills[group.id][billed] for group in groups], within, low=True)
    return [{**row, **{name: places[i] for name, places in placed.items()}} for i, row in enumerate(rows)]

"""The further tables, one CSV file each: differences, costs, modifications beside their originals, ranks."""

from __future__ import annotations

from typing import Any, Iterator

from xcls.report.claims import Study
from xcls.report.costs import bill, pays
from xcls.report.groups import DatasetResults, Group, ranks
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


def further_tables(study: Study) -> list[Table]:
    """All further tables, empty ones included."""
    rows: dict[str, list[Row]] = {name: [] for name in TITLES}
    for results in study.datasets:
        rows["differences"] += difference_rows(study, results)
        rows["costs"] += cost_rows(study, results)
        rows["modifications"] += modifications(study, results)
        rows["ranking"] += rank_rows(results)
    return [Table(name, title, rows[name]) for name, title in TITLES.items()]


def opponents(study: Study, group: Group) -> list[Group]:
    """The groups that a group is compared with: its references, each once."""
    found = [study.reference(group, name)[0] for name in study.references]
    return list({other.id: other for other in found if other is not None and other is not group}.values())


def _about(group: Group, other: Group | None = None) -> Row:
    """The first columns of a row."""
    row = {"mechanism": group.label, "dataset": group.results.name, "n": len(group.runs)}
    return row if other is None else {**row, "against": other.label, "n_against": len(other.runs)}


def difference_rows(study: Study, results: DatasetResults) -> Iterator[Row]:
    """A row for each group, opponent and split."""
    baseline = [results.baseline] if results.baseline else []
    for group in (group for group in results.groups if group.runs):
        for other in [*opponents(study, group), *baseline]:
            for split in SPLITS:
                gap = {"split": split, "difference_pp": difference_pp(group, other, split)}
                yield {**_about(group, other), **gap, **_interval(study, group, other, split)}


def _interval(study: Study, group: Group, other: Group, split: str) -> dict[str, Any]:
    """The columns of the interval of a difference; `says`: better, worse or cannot tell."""
    interval = study.differences.between(group, other, split)
    says = None
    if interval.low is not None and interval.high is not None:
        says = "better" if interval.low > 0 else "worse" if interval.high < 0 else "cannot tell"
    return {"says": says, **interval_cells(interval)}


def cost_rows(study: Study, results: DatasetResults) -> Iterator[Row]:
    """A row for each group and baseline with completed runs."""
    cost, baseline, parents = study.settings.cost, results.baseline, study.found.parents
    bills = {group.id: bill(group, parents=parents, cost=cost) for group in results.every if group.runs}
    for group in (group for group in results.every if group.runs):
        own = bills[group.id]
        row: Row = {
            **_about(group),
            "macro_f1": group.stat("macro_f1").mean,
            **{name: own[name] for name in ("train_hours", "finetune_hours", "pretrain_hours")},
            f"train_{cost.currency}": own["train_money"],
            "train_kWh": own["train_kWh"],
            **{name: group.stat(name).median for name in ("latency_ms", "latency_p95_ms")},
            "documents_per_s": 1 / own["document_s"],
            "million_documents_hours": own["documents_hours"],
            f"million_documents_{cost.currency}": own["documents_money"],
            "million_documents_kWh": own["documents_kWh"],
            "device": group.record.device.get("name"),
            "shared_device": group.shared or None,
        }
        beside = [(other, "reference") for other in opponents(study, group)[:1]]
        for other, name in [*beside, *([(baseline, "baseline")] if baseline and baseline is not group else [])]:
            documents, words = pays(group, other, own, bills[other.id])
            row |= {f"pays_against_{name}": words, f"documents_to_pay_against_{name}": documents}
            row[f"unlike_{name}"] = "; ".join(unlike_groups(group, other)) or None
        yield row


def modifications(study: Study, results: DatasetResults) -> Iterator[Row]:
    """A row for each modification and each of its originals that was run with the same other settings.

    `performer_band` modifies `performer`: its file name begins with that of its original. `originals` names further
    pairs. References are no modifications: `sdpa_fused` is another implementation, compared as a reference.
    """
    by_name: dict[str, list[Group]] = {}
    for group in (group for group in results.groups if group.runs):
        by_name.setdefault(str(group.record.choices.get("attention") or group.attention), []).append(group)
    originals = study.settings.originals
    for name in sorted(set(by_name) - set(study.references)):
        parents = [other for other in sorted(by_name) if name.startswith(f"{other}_") or originals.get(name) == other]
        for group, parent in ((group, parent) for group in by_name[name] for parent in parents):
            twins = [other for other in by_name[parent] if other.twin == group.twin]
            original = twin_among(twins, group, parent)[0] if twins else None
            if original is not None:
                yield _modification(study, group, original)


def _modification(study: Study, group: Group, other: Group) -> Row:
    row = {**_about(group), "original": other.label, "n_original": len(other.runs)}
    row |= {"macro_f1_pp": difference_pp(group, other, "validation")}
    row |= _interval(study, group, other, "validation")
    row["test_macro_f1_pp"] = difference_pp(group, other, "test")
    costs = {**group.costs, "latency": "latency_ms", "params": "params"}
    row |= {f"{word}_ratio": ratio(group, other, name) for word, name in costs.items()}
    return {**row, "measured_differently": "; ".join(unlike_groups(group, other)) or None}


def rank_rows(results: DatasetResults) -> list[Row]:
    """A row per group and baseline with completed runs: its rank in each measure, 1 is best.

    Costs are ranked among groups with the same device and device settings.
    """
    groups = [group for group in results.every if group.runs]
    placed = {name: ranks(groups, name) for name in RANKED}
    return [
        {**_about(group), **{name: places[number] for name, places in placed.items()}}
        for number, group in enumerate(groups)
    ]

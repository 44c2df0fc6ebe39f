"""The further tables, each one CSV file: differences, costs, bench, modifications beside their originals, ranks."""

from __future__ import annotations

from typing import Any, Iterator, Sequence

import pandas as pd

from xcls.report.bench import agree, measured
from xcls.report.claims import SPLITS, difference_pp, find_reference, ratio, strictest, twin_among
from xcls.report.conditions import unlike_groups
from xcls.report.costs import HOUR, MILLION, Bill, bill, count_children, device_name, pays, times, tuned_seconds
from xcls.report.groups import DatasetResults, Group
from xcls.report.measures import MEASURES, is_cost, memory_measure
from xcls.report.tables import Row, Study, Table, interval_cells

WORDS = {
    "differences": (
        "Differences of macro-F1",
        "Each mechanism against the references and the baseline, in percentage points, with the interval over "
        "other examples and other seeds; 'cannot tell' where it spans zero. n: completed seeds.",
    ),
    "costs": (
        "What it costs",
        "The median over the seeds: hours, money and energy to train one model (its whole pretraining and one "
        "fine-tuning; pretrain_share_hours: divided among the runs here that share it) and to classify documents from "
        "their text, and when it pays. An encoder pays its whole time, with evaluations and checkpoints; a baseline pays "
        "its fit alone, the tuned one every fit that was tried.",
    ),
    "bench_ratios": (
        "Cost ratios beside mode=bench",
        "Time and memory of the runs over those of the reference, beside the same measured in turns by mode=bench; "
        "where one says cheaper and the other dearer, they disagree.",
    ),
    "modifications": (
        "Modifications beside their originals",
        "Each modification against the mechanism it changes, everything else alike; ratios below 1 are savings.",
    ),
    "ranking": (
        "Ranks",
        "1 is best, by the mean over completed seeds, of costs by the median; costs rank within one device. "
        "What failed has no rank.",
    ),
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
    """Every further table; those without a row are left out."""
    bills = bills_of(study)
    rows: dict[str, list[Row]] = {name: [] for name in WORDS}
    for board in study.boards:
        rows["differences"] += difference_rows(study, board)
        rows["costs"] += cost_rows(study, board, bills)
        rows["bench_ratios"] += bench_rows(study, board)
        rows["modifications"] += modifications(study, board)
        rows["ranking"] += ranks(board, bills)
    return [Table(name, *words, rows[name]) for name, words in WORDS.items() if rows[name]]


def disagreements(tables: Sequence[Table]) -> list[str]:
    """A sentence for every mechanism whose cost the runs and mode=bench see on different sides of its reference."""
    return [
        f"{row['mechanism']} against {row['against']}: the time ratio of the runs is {row['time_ratio']:.2f}, that of "
        f"mode=bench {row['bench_time_ratio']:.2f} ({row['bench']}): they disagree."
        for table in tables
        for row in table.rows
        if table.name == "bench_ratios" and str(row.get("agree") or "").startswith("no")
    ]


def opponents(study: Study, group: Group, board: DatasetResults) -> list[Group]:
    """The groups that a group is compared with: its references, each once."""
    found = [find_reference(group, board, name)[0] for name in study.references]
    return list({other.id: other for other in found if other is not None and other is not group}.values())


def _about(group: Group, board: DatasetResults, other: Group | None = None) -> Row:
    """The first columns of a row."""
    row = {"mechanism": group.label, "dataset": board.name, "n": len(group.runs)}
    return row if other is None else {**row, "against": other.label, "n_against": len(other.runs)}


def difference_rows(study: Study, board: DatasetResults) -> Iterator[Row]:
    """A row for each group, opponent and split."""
    baseline = strictest(board.baselines)
    for group in board.groups:
        for other in [*opponents(study, group, board), *([baseline] if baseline else [])] if group.runs else ():
            for split in SPLITS:
                gap = {"split": split, "difference_pp": difference_pp(group, other, split)}
                yield {**_about(group, board, other), **gap, **_interval(study, group, other, board, split)}


def _interval(study: Study, group: Group, other: Group, board: DatasetResults, split: str) -> dict[str, Any]:
    """The columns of the interval of a difference, and what it says: better, worse, cannot tell."""
    if study.judge.differences is None:
        return {}
    interval = study.judge.differences.between(group, other, board, split)
    says = None
    if interval.low is not None and interval.high is not None:
        says = "better" if interval.low > 0 else "worse" if interval.high < 0 else "cannot tell"
    return {"says": says, **interval_cells(interval)}


def bills_of(study: Study) -> dict[str, Bill]:
    """Group id to bill, of the groups with completed runs."""
    children = count_children([run.record for run in study.found.runs])
    groups = [group for board in study.boards for group in [*board.groups, *board.baselines] if group.runs]
    how: Any = {"parents": study.found.parents, "children": children, "cost": study.settings.cost}
    return {group.id: bill(group, **how) for group in groups}


def cost_rows(study: Study, board: DatasetResults, bills: dict[str, Bill]) -> Iterator[Row]:
    """A row for each group and baseline, and for what the search of the tuned baseline has cost."""
    cost, baseline = study.settings.cost, strictest(board.baselines)
    for group in [group for group in [*board.groups, *board.baselines] if group.id in bills]:
        own = bills[group.id]
        where = {"device": group.record.device.get("name"), "shared_device": group.shared or None}
        row: Row = {
            **_about(group, board),
            "macro_f1": group.stat("macro_f1").mean,
            "train_hours": times(own.train_s, 1 / HOUR),
            "finetune_hours": times(own.finetune_s, 1 / HOUR),
            "pretrain_hours": times(own.pretrain_s, 1 / HOUR),
            "pretrain_share_hours": times(own.shared_s, 1 / HOUR),
            f"train_{cost.currency}": own.train_money,
            "train_kWh": times(own.train_wh, 1e-3),
            "latency_ms": group.stat("latency_ms").median,
            "latency_p95_ms": group.stat("latency_p95_ms").median,
            "documents_per_s": None if not own.document_s else 1 / own.document_s,
            "million_documents_hours": times(own.document_s, MILLION / HOUR),
            f"million_documents_{cost.currency}": times(own.document_money, MILLION),
            "million_documents_kWh": times(own.document_wh, MILLION * 1e-3),
            **where,
        }
        beside = [(other, "reference") for other in opponents(study, group, board)[:1]]
        for other, name in [*beside, *([(baseline, "baseline")] if baseline and baseline is not group else [])]:
            documents, words = pays(group, other, own, bills[other.id])
            row |= {f"pays_against_{name}": words, f"documents_to_pay_against_{name}": documents}
            row[f"unlike_{name}"] = "; ".join(unlike_groups(group, other)) or None
        yield row
        seconds = tuned_seconds([run.record for run in group.runs])
        if group.record.mode == "baseline" and seconds is not None:
            price, hours = cost.of(device_name(group.record)), seconds / HOUR
            yield {
                **_about(group, board),
                "mechanism": f"{group.label}, tuned",
                "macro_f1": group.stat("tuned_macro_f1").mean,
                "train_hours": hours,
                "finetune_hours": hours,
                f"train_{cost.currency}": times(price.price_per_hour, hours),
                "train_kWh": times(price.watts, hours * 1e-3),
                **where,
            }


def bench_rows(study: Study, board: DatasetResults) -> Iterator[Row]:
    """A row for each group and reference, where mode=bench has measured anything at all."""
    for group in board.groups if study.benches else ():
        for other in opponents(study, group, board) if group.runs else ():
            found, reason = measured(group, other, study.benches)
            own = ratio(group, other, "time_per_epoch")
            row = {**_about(group, board, other), "time_ratio": own, "bench_time_ratio": None, "agree": None}
            row["memory_ratio"] = ratio(group, other, memory_measure(group.device.get("kind")))
            row |= dict.fromkeys(("bench_memory_ratio", "measured", "bench", "differs"))
            if found is not None:
                row |= {"bench_time_ratio": found.time, "agree": agree(own, found.time) or None}
                row |= {"bench_memory_ratio": found.memory, "measured": found.what, "bench": found.place}
                row["differs"] = "; ".join(found.unlike) or None
            yield {**row, "no_bench": reason or None}


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
    memory = memory_measure(group.device.get("kind"))
    costs = {"time": "time_per_epoch", "memory": memory, "latency": "latency_ms", "params": "params"}
    row |= {f"{word}_ratio": ratio(group, other, name) for word, name in costs.items()}
    return {**row, "measured_differently": "; ".join(unlike_groups(group, other)) or None}


def ranks(board: DatasetResults, bills: dict[str, Bill]) -> list[Row]:
    """A row per group and baseline with completed runs: its rank in every measure, 1 is best.

    Costs are ranked among the groups of one device and setting of it, hours among those of one device, money among all.
    """
    groups = [group for group in [*board.groups, *board.baselines] if group.runs]
    frame = pd.DataFrame(index=range(len(groups)))
    for name in [*RANKED, *BILLED]:
        values = [getattr(bills[g.id], BILLED[name]) if name in BILLED else g.stat(name).middle for g in groups]
        within = [""] * len(groups)
        if name.endswith("hours"):
            within = [repr(group.device.get("name")) for group in groups]
        elif name not in BILLED and is_cost(name):
            within = [repr(group.device) for group in groups]
        low = name in BILLED or MEASURES[name].low_is_better
        frame[name] = pd.Series(values, dtype=float).groupby(within).rank("min", ascending=low)
    places = frame.astype("Int64").astype(object).where(frame.notna(), None).to_dict("records")
    return [{**_about(group, board), **ranked} for group, ranked in zip(groups, places)]

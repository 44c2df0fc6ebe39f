"""The further tables, each one CSV file and of every data set a part on the page and in report.md: differences, costs, bench,
modifications beside their originals, ranks.
"""

from __future__ import annotations

from typing import Any, Iterator, Sequence

import pandas as pd

from xcls.report.bench import agree, measured
from xcls.report.claims import SPLITS, ClaimEvaluator, difference_pp, find_reference, ratio, strictest, twin_among
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
        "Of the seeds the median. Hours, money and energy to train one model (its whole pretraining and one fine-tuning; "
        "pretrain_share_hours: divided among the runs here that share it), and to classify documents from their text; and when it "
        "pays. An encoder pays the whole time of its processes, evaluations and checkpoints included; a baseline pays its fit alone, "
        "the tuned one every fit that was tried.",
    ),
    "bench_ratios": (
        "Cost ratios beside mode=bench",
        "time and memory of the runs over those of the reference, beside the same measured in turns by mode=bench; "
        "where one says cheaper and the other dearer, they disagree.",
    ),
    "modifications": (
        "Modifications beside their originals",
        "Each modification against the mechanism it changes, everything else alike; ratios below 1 are savings.",
    ),
    "ranking": (
        "Ranks",
        "1 is best, by the mean over completed seeds, of costs by the median; costs rank within one device. What failed has no rank.",
    ),
}
MOST = 100  # rows of a part
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
    """Every further table, whole as a file, and in parts for the page; tables without a row are left out."""
    bills = {id_: bill for board in study.boards for id_, bill in bills_of(study, board).items()}
    made_by = {
        "differences": lambda board: difference_rows(study, board),
        "costs": lambda board: cost_rows(study, board, bills),
        "bench_ratios": lambda board: bench_rows(study, board),
        "modifications": lambda board: modifications(board, study.judge, study.settings.originals, study.references),
        "ranking": lambda board: ranks(board, bills),
    }
    made = []
    for name, (title, words) in WORDS.items():
        parts = [(board, list(made_by[name](board))) for board in study.boards]
        whole = [row for _, rows in parts for row in rows]
        made += [Table(name, title, words, whole)] if whole else []
        for board, rows in parts:
            columns = dict.fromkeys(key for row in rows for key in row if key != "dataset")
            told = [key for key in columns if any(row.get(key) is not None for row in rows)]
            cut = f" The first {MOST} of {len(rows)} rows; all are in {name}.csv." if len(rows) > MOST else ""
            made += [Table(name, title, words + cut, rows[:MOST], told, board=board.slug)] if rows else []
    return made


def disagreements(tables: Sequence[Table]) -> list[str]:
    """A sentence for every mechanism whose cost the runs and mode=bench see on different sides of its reference."""
    return [
        f"{row['mechanism']} against {row['against']}: the time ratio of the runs is {row['time_ratio']:.2f}, that of "
        f"mode=bench {row['bench_time_ratio']:.2f} ({row['bench']}: {row['measured']}"
        f"{'; ' + str(row['differs']) if row['differs'] else ''}): they disagree."
        for table in tables
        if table.name == "bench_ratios" and table.board is None
        for row in table.rows
        if str(row.get("agree") or "").startswith("no")
    ]


def opponents(study: Study, group: Group, board: DatasetResults) -> list[Group]:
    """The groups that a group is set beside: its references, each once."""
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
                yield {**_about(group, board, other), **gap, **against_zero(study.judge, group, other, board, split)}


def against_zero(
    judge: ClaimEvaluator, group: Group, other: Group, board: DatasetResults, split: str
) -> dict[str, Any]:
    """The columns of the interval of a difference, and what it says: better, worse, cannot tell."""
    if judge.differences is None:
        return {}
    interval = judge.differences.between(group, other, board, split)
    says = None
    if interval.low is not None and interval.high is not None:
        says = "better" if interval.low > 0 else "worse" if interval.high < 0 else "cannot tell"
    return {"says": says, **interval_cells(interval)}


def bills_of(study: Study, board: DatasetResults) -> dict[str, Bill]:
    """Group id to bill, of the groups with completed runs."""
    children = count_children([run.record for run in study.found.runs])
    parents, cost = study.found.parents, study.settings.cost
    groups = [group for group in [*board.groups, *board.baselines] if group.runs]
    return {group.id: bill(group, parents=parents, children=children, cost=cost) for group in groups}


def cost_rows(study: Study, board: DatasetResults, bills: dict[str, Bill]) -> Iterator[Row]:
    """A row for each group and baseline, and for what the search of the tuned baseline has cost."""
    cost, baseline = study.settings.cost, strictest(board.baselines)
    for group in [*board.groups, *board.baselines]:
        if group.id not in bills:
            continue
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
            "latency_ms": group.stat("latency_ms").middle,
            "latency_p95_ms": group.stat("latency_p95_ms").middle,
            "documents_per_s": None if not own.document_s else 1 / own.document_s,
            "million_documents_hours": times(own.document_s, MILLION / HOUR),
            f"million_documents_{cost.currency}": times(own.document_money, MILLION),
            "million_documents_kWh": times(own.document_wh, MILLION * 1e-3),
            **where,
        }
        beside = [*opponents(study, group, board)[:1], *([baseline] if baseline else [])]
        for other in (one for one in beside if one is not group):
            name = "baseline" if other is baseline else "reference"
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


def modifications(
    board: DatasetResults, judge: ClaimEvaluator, originals: dict[str, str], references: Sequence[str] = ()
) -> list[Row]:
    """A row for every modification and each of its originals that was run alike but for the mechanism.

    A mechanism modifies those whose file's name its own begins with (`performer_band`, `performer`), and the one that
    `originals` names. The references modify nothing: `sdpa_fused` is another implementation, compared as a reference.
    """
    by_name: dict[str, list[Group]] = {}
    for group in board.groups:
        if group.runs:
            by_name.setdefault(str(group.record.choices.get("attention") or group.attention), []).append(group)
    rows = []
    for name in sorted(set(by_name) - set(references)):
        parents = [other for other in sorted(by_name) if name.startswith(f"{other}_") or originals.get(name) == other]
        for group in by_name[name]:
            for parent in parents:
                twins = [other for other in by_name[parent] if other.twin == group.twin]
                other, _ = twin_among(twins, group, parent) if twins else (None, "")
                if other is not None:
                    rows.append(_modification(group, other, board, judge))
    return rows


def _modification(group: Group, other: Group, board: DatasetResults, judge: ClaimEvaluator) -> Row:
    row = {**_about(group, board), "original": other.label, "n_original": len(other.runs)}
    row |= {"macro_f1_pp": difference_pp(group, other, "validation")}
    row |= against_zero(judge, group, other, board, "validation")
    row["test_macro_f1_pp"] = difference_pp(group, other, "test")
    for word, name in (("time", "time_per_epoch"), ("memory", memory_measure(group.device.get("kind")))):
        row[f"{word}_ratio"] = ratio(group, other, name)
    row |= {"latency_ratio": ratio(group, other, "latency_ms"), "params_ratio": ratio(group, other, "params")}
    return {**row, "measured_differently": "; ".join(unlike_groups(group, other)) or None}


def ranks(board: DatasetResults, bills: dict[str, Bill]) -> list[Row]:
    """A row per group and baseline with completed runs: its rank in every measure, 1 is best.

    Costs are ranked among the groups of one device and setting of it, hours among those of one device, money among all.
    """
    groups = [group for group in [*board.groups, *board.baselines] if group.runs]
    devices, names = [repr(group.device) for group in groups], [repr(group.device.get("name")) for group in groups]
    nowhere, frame = [""] * len(groups), pd.DataFrame(index=range(len(groups)))
    for name in RANKED:
        values = pd.Series([group.stat(name).middle for group in groups], dtype=float)
        within = values.groupby(devices if is_cost(name) else nowhere)
        frame[name] = within.rank("min", ascending=MEASURES[name].low_is_better)
    for name, attribute in BILLED.items():
        values = pd.Series([getattr(bills[group.id], attribute) for group in groups], dtype=float)
        frame[name] = values.groupby(nowhere if name.endswith("money") else names).rank("min")
    rows = []
    for group, ranked in zip(groups, frame.to_dict("records")):
        places = {name: None if pd.isna(rank) else int(rank) for name, rank in ranked.items()}
        rows.append({**_about(group, board), **places})
    return rows

"""The further tables of the report, as rows: differences, costs, bench, modifications, ranks. Each is one CSV file, and
of every data set a part on the page and in report.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from xcls.report.aggregate import Board, Group
from xcls.report.bench_ratio import agree, measured
from xcls.report.circumstances import unlike_groups
from xcls.report.collect import Bench, Found
from xcls.report.measures import memory_measure
from xcls.report.money import HOUR, MILLION, Bill, bill, count_children, device_name, pays, tuned_seconds
from xcls.report.ranking import against_zero, modifications, ranks
from xcls.report.settings import Settings
from xcls.report.sheet import Sheet
from xcls.report.tables import Row
from xcls.report.verdict import SPLITS, Judge, difference_pp, find_reference, ratio, strictest

WORDS = {
    "differences": (
        "Differences of macro-F1",
        "Each mechanism against the references and the baseline, in percentage points, with the interval over "
        "other examples and other seeds; 'cannot tell' where it spans zero. n: completed seeds.",
    ),
    "costs": (
        "What it costs",
        "Of the seeds the median. Hours, money and energy to train one model (its whole pretraining and one fine-tuning; pretrain_share_hours: "
        "divided among the runs here that share it), and to classify documents from their text; and when it pays. An encoder "
        "pays the whole time of its processes, evaluations and checkpoints included; a baseline pays its fit alone, the "
        "tuned one every fit that was tried.",
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
FOLDED = {"ranking"}
MOST = 100  # rows of a part


@dataclass(frozen=True)
class Context:
    """What the tables are made from."""

    boards: Sequence[Board]
    judge: Judge
    references: Sequence[str]
    found: Found
    benches: Sequence[Bench]
    settings: Settings


def further_sheets(context: Context) -> list[Sheet]:
    """Every further table, whole as a file, and in parts for the page; tables without a row are left out."""
    parts: dict[str, list[tuple[Board, list[Row]]]] = {name: [] for name in WORDS}
    for board in context.boards:
        bills = bills_of(context, board)
        for name, rows in (
            ("differences", difference_rows(context, board)),
            ("costs", cost_rows(context, board, bills)),
            ("bench_ratios", bench_rows(context, board)),
            ("modifications", modifications(board, context.judge, context.settings.originals, context.references)),
            ("ranking", ranks(board, bills)),
        ):
            parts[name].append((board, rows))
    made = []
    for name, (title, words) in WORDS.items():
        whole = [row for _, rows in parts[name] for row in rows]
        if whole:
            made.append(Sheet(name, title, words, whole, on_page=False))
        for board, rows in parts[name]:
            columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "dataset"]
            told = [key for key in columns if any(row.get(key) is not None for row in rows)]
            if rows:
                cut = f" The first {MOST} of {len(rows)} rows; all are in {name}.csv." if len(rows) > MOST else ""
                made.append(Sheet(name, title, words + cut, rows[:MOST], told, board=board.slug, folded=name in FOLDED))
    return made


def disagreements(sheets: Sequence[Sheet]) -> list[str]:
    """A sentence for every mechanism whose cost the runs and mode=bench see on different sides of its reference."""
    return [
        f"{row['mechanism']} against {row['against']}: the time ratio of the runs is {row['time_ratio']:.2f}, that of "
        f"mode=bench {row['bench_time_ratio']:.2f} ({row['bench']}: {row['measured']}"
        f"{'; ' + str(row['differs']) if row['differs'] else ''}): they disagree."
        for sheet in sheets
        if sheet.name == "bench_ratios" and sheet.board is None
        for row in sheet.rows
        if str(row.get("agree") or "").startswith("no")
    ]


def opponents(context: Context, group: Group, board: Board) -> list[Group]:
    """The groups that a group is set beside: its references, each once."""
    found = [find_reference(group, board, name)[0] for name in context.references]
    return list({other.id: other for other in found if other is not None and other is not group}.values())


def difference_rows(context: Context, board: Board) -> list[Row]:
    """A row for each group, opponent and split."""
    rows = []
    baseline = strictest(board.baselines)
    for group in board.groups:
        if not group.runs:
            continue
        for other in [*opponents(context, group, board), *([baseline] if baseline else [])]:
            for split in SPLITS:
                rows.append({
                    "mechanism": group.label, "dataset": board.name, "n": len(group.runs), "against": other.label,
                    "n_against": len(other.runs), "split": split, "difference_pp": difference_pp(group, other, split),
                    **against_zero(context.judge, group, other, board, split),
                })  # fmt: skip
    return rows


def bills_of(context: Context, board: Board) -> dict[str, Bill]:
    """Group id to bill, of the groups with completed runs."""
    children = count_children([run.record for run in context.found.runs])
    given = {"parents": context.found.parents, "children": children, "cost": context.settings.cost}
    return {group.id: bill(group, **given) for group in [*board.groups, *board.baselines] if group.runs}


def cost_rows(context: Context, board: Board, bills: dict[str, Bill]) -> list[Row]:
    """A row for each group and baseline."""
    rows, currency = [], context.settings.cost.currency
    baseline = strictest(board.baselines)
    for group in [*board.groups, *board.baselines]:
        if group.id not in bills:
            continue
        own = bills[group.id]
        row: Row = {
            "mechanism": group.label, "dataset": board.name, "n": len(group.runs),
            "macro_f1": group.stat("macro_f1").mean,
            "train_hours": _times(own.train_s, 1 / HOUR), "finetune_hours": _times(own.finetune_s, 1 / HOUR),
            "pretrain_hours": _times(own.pretrain_s, 1 / HOUR), "pretrain_share_hours": _times(own.shared_s, 1 / HOUR),
            f"train_{currency}": own.train_money, "train_kWh": _times(own.train_wh, 1e-3),
            "latency_ms": group.stat("latency_ms").middle, "latency_p95_ms": group.stat("latency_p95_ms").middle,
            "documents_per_s": None if not own.document_s else 1 / own.document_s,
            "million_documents_hours": _times(own.document_s, MILLION / HOUR),
            f"million_documents_{currency}": _times(own.document_money, MILLION),
            "million_documents_kWh": _times(own.document_wh, MILLION * 1e-3),
            "device": group.record.device.get("name"), "shared_device": group.shared or None,
        }  # fmt: skip
        beside = [*opponents(context, group, board)[:1], *([baseline] if baseline else [])]
        for other in (one for one in beside if one is not group):
            name = "baseline" if other is baseline else "reference"
            row[f"pays_against_{name}"] = pays(group, other, own, bills[other.id])[1]
            row[f"documents_to_pay_against_{name}"] = pays(group, other, own, bills[other.id])[0]
            row[f"unlike_{name}"] = "; ".join(unlike_groups(group, other)) or None
        rows.append(row)
        tuned = tuned_seconds([run.record for run in group.runs])
        if group.record.mode == "baseline" and tuned is not None:
            rows.append(_tuned(group, tuned, board.name, context))
    return rows


def _tuned(group: Group, seconds: float, dataset: str, context: Context) -> Row:
    """The row of the tuned baseline: what its search has cost. How fast it classifies was not measured."""
    price, currency = context.settings.cost.of(device_name(group.record)), context.settings.cost.currency
    hours = seconds / HOUR
    return {
        "mechanism": f"{group.label}, tuned", "dataset": dataset, "n": len(group.runs),
        "macro_f1": group.stat("tuned_macro_f1").mean, "train_hours": hours, "finetune_hours": hours,
        f"train_{currency}": _times(price.price_per_hour, hours), "train_kWh": _times(price.watts, hours * 1e-3),
        "device": group.record.device.get("name"), "shared_device": group.shared or None,
    }  # fmt: skip


def bench_rows(context: Context, board: Board) -> list[Row]:
    """A row for each group and reference, where mode=bench has measured anything at all."""
    rows = []
    for group in board.groups if context.benches else ():
        for other in opponents(context, group, board) if group.runs else ():
            found, reason = measured(group, other, context.benches)
            own = ratio(group, other, "time_per_epoch")
            rows.append({
                "mechanism": group.label, "dataset": board.name, "n": len(group.runs), "against": other.label,
                "n_against": len(other.runs), "time_ratio": own, "bench_time_ratio": found.time if found else None,
                "agree": agree(own, found.time) or None if found else None,
                "memory_ratio": ratio(group, other, memory_measure(group.device.get("kind"))),
                "bench_memory_ratio": found.memory if found else None, "measured": found.what if found else None,
                "bench": found.place if found else None, "differs": "; ".join(found.unlike) or None if found else None,
                "no_bench": reason or None,
            })  # fmt: skip
    return rows


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor

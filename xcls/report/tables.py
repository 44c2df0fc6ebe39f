"""The CSV files: results.csv a row per run, groups.csv a row per group, wnf.csv a row per number of a claim."""

from __future__ import annotations

import csv
import io
import json
from typing import Any, Sequence

from xcls.record import Record, is_guess, no_formula
from xcls.report.aggregate import Board, Group, class_count, survived
from xcls.report.collect import Run
from xcls.report.cut import cut_shares
from xcls.report.differences import Interval
from xcls.report.endings import ending
from xcls.report.identify import ENCODER, GROUPS
from xcls.report.measures import MEASURES, is_cost
from xcls.report.verdict import SPLITS, Judge, difference_pp, strictest

FIRST = (
    "run", "mode", "status", "cause", "dataset", "attention", "position", "size", "seq_len", "seed", "batch_size",
    "dtype", "device", "params", "macro_f1", "accuracy", "weighted_f1", "auroc", "test_macro_f1", "time_per_epoch",
    "time_per_step", "tokens_per_s", "max_gpu_mem_MiB", "max_rss_MiB", "PASS_WNF", "PASS_WNF_TEST",
)  # fmt: skip
ALSO = (
    "group", "hash", "folder", "exp", "study", "commit", "step", "shared_device", "faults", "tokens_cut_share",
    "documents_cut_share", "predicted_classes", "learned_nothing",
    *(name for name in MEASURES if name not in FIRST),
)  # fmt: skip
SETTINGS = ("compile", "micro_batch", "micro_tokens", "gradient_checkpointing", "threads")  # of a group's device
OF_GROUP = (
    "group", "label", "mode", "dataset", "data", "attention", "position", "size", "tokenizer", "seq_len", "batch_size",
    "dtype", "device", *SETTINGS, "n", "seeds", "not_completed", "rank", "PASS_WNF",
    "PASS_WNF_TEST",
    "vs_baseline_pp", "vs_baseline_test_pp",
)  # fmt: skip
OF_CLAIM = (
    "group", "label", "dataset", "attention", "seq_len", "n", "reference", "reference_group", "n_reference",
    "baseline_group", "n_baseline", "split", "PASS_WNF", "claim", "claim_state", "measured", "value", "relation",
    "threshold", "margin", "state", "reason", "interval_low", "interval_high", "interval_says", "bench", "bench_agrees", "examples", "drawn",
    "no_interval", "measured_differently",
)  # fmt: skip
OF_STAT = {"median": "middle"}
Row = dict[str, Any]


def to_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """CSV text with these columns, missing values empty; the same rows give the same bytes."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_cell(column) for column in columns])
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return no_formula(value)
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)  # true, [0, 1], 12


def batch_size(record: Record) -> Any:
    """The effective batch size of the stage that the run trained."""
    return record.config.get({"pretrain": "pretraining", "finetune": "finetuning"}.get(record.mode, "") + ".batch_size")


def _traits(record: Record) -> Row:
    """The columns that say what ran. A baseline has no encoder, whatever the configuration around it says."""
    encoder = record.mode != "baseline"
    named = {group: record.choices.get(group) for group in (GROUPS if encoder else GROUPS[:1])}
    device = record.device.get("name") or record.device.get("kind")
    traits = {"mode": record.mode, **named, "batch_size": batch_size(record), "device": device}
    return {**traits, "dtype": record.device.get("dtype"), "seq_len": record.seq_len} if encoder else traits


def results(
    runs: Sequence[Run], groups: Sequence[Group], states: dict[str, tuple[str, str]]
) -> tuple[list[Row], list[str]]:
    """A row per run and the columns: the fixed ones, then every hyperparameter, sorted.

    `states` maps a group's id to its PASS_WNF on validation and test; a run that did not complete has neither.
    """
    group_of = {run.place: group.id for group in groups for run in [*group.others, *group.runs]}
    by_key = {(run.record.hash, str(run.record.device)): group.id for group in groups for run in group.runs}
    rows = []
    for run in runs:
        record = run.record
        group = group_of.get(run.place) or by_key.get((record.hash, str(record.device)))
        verdict = states.get(group or "", (None, None)) if record.status == "completed" else (None, None)
        status, cause = ending(run)
        skipped = ("claims", *ENCODER) if record.mode == "baseline" else ("claims",)
        rows.append({
            **{name: value for name, value in record.config.items() if not name.startswith(skipped)},
            **_traits(record),
            **{name: measure.of(record) for name, measure in MEASURES.items()},
            "run": record.run, "status": status, "cause": cause or None, "seed": record.seed,
            "PASS_WNF": verdict[0], "PASS_WNF_TEST": verdict[1],
            "group": group, "hash": record.hash, "folder": run.place, "exp": record.exp, "study": record.study,
            "commit": record.commit, "step": record.step, "shared_device": record.device.get("shared"),
            "faults": "; ".join(survived(record)) or None, **cut_shares(record),
            "predicted_classes": (record.metrics.get("validation") or {}).get("predicted_classes"),
            "learned_nothing": is_guess(MEASURES["macro_f1"].of(record), class_count(record)) if class_count(record) else None,
            **{f"{part}.code": digest[:12] for part, digest in record.code.items()},
        })  # fmt: skip
        for whole in ("params", "params_trainable"):
            rows[-1][whole] = None if rows[-1][whole] is None else int(rows[-1][whole])
    fixed = [*FIRST, *ALSO]
    return rows, fixed + sorted({name for row in rows for name in row} - set(fixed))


def parts_of(name: str) -> tuple[str, ...]:
    """What groups.csv says of a measure."""
    return ("best", "median", "mean", "sd", "n") if is_cost(name) else ("best", "mean", "sd", "n")


def group_rows(
    groups: Sequence[Group], boards: Sequence[Board], states: dict[str, tuple[str, str]]
) -> tuple[list[Row], list[str]]:
    """A row per group with best, mean, standard deviation and n of every measure, of costs the median too; the columns."""
    baseline_of = {group.id: strictest(board.baselines) for board in boards for group in board.groups}
    place = {group.id: i for i, group in enumerate(g for b in boards for g in [*b.groups, *b.baselines])}
    columns = [*OF_GROUP, *(f"{name}_{part}" for name in MEASURES for part in parts_of(name))]
    rows = []
    for group in sorted(groups, key=lambda group: (place.get(group.id, len(place)), group.label, group.id)):
        baseline = baseline_of.get(group.id)
        state = states.get(group.id, (None, None))
        row = {
            **_traits(group.record), **{name: group.device.get(name) for name in SETTINGS},
            "group": group.id, "label": group.label, "data": group.key["data"], "n": len(group.runs),
            "seeds": " ".join(map(str, group.seeds)), "not_completed": len(group.others), "rank": group.rank,
            "PASS_WNF": state[0], "PASS_WNF_TEST": state[1],
            "vs_baseline_pp": difference_pp(group, baseline, "validation") if baseline else None,
            "vs_baseline_test_pp": difference_pp(group, baseline, "test") if baseline else None,
        }  # fmt: skip
        for name in MEASURES:
            stat = group.stat(name)
            row.update({f"{name}_{part}": getattr(stat, OF_STAT.get(part, part)) for part in parts_of(name)})
        rows.append(row)
    return rows, columns


def claim_rows(boards: Sequence[Board], judge: Judge, references: Sequence[str]) -> tuple[list[Row], list[str]]:
    """A row per measured number of every claim, against every reference and on every split, and the columns."""
    rows: list[Row] = []
    for board in boards:
        for reference in references:
            for group in board.groups:
                for split in SPLITS:
                    rows += _claims_of(judge.verdict(group, board, reference, split), board)
    return rows, list(OF_CLAIM)


def interval_cells(interval: Interval | None) -> Row:
    """The columns of an interval: its ends in percentage points (of a cost ratio as ratios), over what it was drawn, or why there is none."""
    if interval is None:
        return {}
    return {
        "interval_low": interval.low, "interval_high": interval.high, "examples": interval.examples or None,
        "drawn": interval.over or None, "no_interval": interval.reason or None,
    }  # fmt: skip


def _claims_of(verdict: Any, board: Board) -> list[Row]:
    group = verdict.group
    common = {
        "group": group.id, "label": group.label, "dataset": board.name, "attention": group.attention,
        "seq_len": group.record.seq_len, "n": len(group.runs), "reference": verdict.reference, "split": verdict.split,
        "reference_group": verdict.reference_group.id if verdict.reference_group else None,
        "n_reference": len(verdict.reference_group.runs) if verdict.reference_group else None,
        "baseline_group": verdict.baseline.id if verdict.baseline else None, "PASS_WNF": verdict.state,
        "n_baseline": len(verdict.baseline.runs) if verdict.baseline else None,
    }  # fmt: skip
    if not verdict.claims:
        return [{**common, "reason": verdict.reason}]
    return [
        {
            **common, "claim": claim.code, "claim_state": claim.state, "measured": number.name, "value": number.value,
            "relation": number.relation, "threshold": number.threshold, "margin": number.margin, "state": number.state,
            "reason": number.reason or claim.reason, **interval_cells(number.interval),
            "interval_says": number.told or None, "bench": number.bench, "bench_agrees": number.bench_says or None,
            "measured_differently": (claim.remark or None) if "ratio" in number.name else None,
        }
        for claim in verdict.claims
        for number in claim.measured
    ]  # fmt: skip

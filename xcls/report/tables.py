"""The main tables: results.csv (a row per run), groups.csv (a row per group), wnf.csv (a row per number of a claim).

For the page and the screen also: the groups of a data set in short, and the runs that did not complete."""

from __future__ import annotations

from xcls.report.claims import Study, Verdict
from xcls.report.groups import CHOICES, ENCODER, DatasetResults, Group
from xcls.report.intervals import Interval
from xcls.report.load import Found, final_status
from xcls.report.measures import MEASURES, class_count, cut_shares, is_cost, recovered_faults
from xcls.report.references import SPLITS, difference_pp, ratio
from xcls.report.table import NONE, Row, Table, amount, signed
from xcls.runs.record import Record, is_guess

RUN_COLUMNS = """
    run mode status cause dataset attention position size seq_len seed batch_size dtype device params macro_f1
    accuracy weighted_f1 auroc test_macro_f1 time_per_epoch time_per_step tokens_per_s max_gpu_mem_MiB
    max_rss_MiB PASS_WNF PASS_WNF_TEST
""".split()
MORE_RUN_COLUMNS = """
    group hash folder exp study commit step shared_device faults tokens_cut_share documents_cut_share predicted_classes
    learned_nothing
""".split()
DEVICE_SETTINGS = ("compile", "micro_batch", "micro_tokens", "gradient_checkpointing", "threads")  # of a group's device
GROUP_COLUMNS = """
    group label mode dataset data attention position size tokenizer seq_len batch_size dtype device compile micro_batch
    micro_tokens gradient_checkpointing threads n seeds not_completed rank PASS_WNF PASS_WNF_TEST vs_baseline_pp
    vs_baseline_test_pp
""".split()
CLAIM_COLUMNS = """
    group label dataset attention seq_len n reference reference_group n_reference baseline_group n_baseline
    split PASS_WNF claim claim_state measured value relation threshold margin state reason interval_low
    interval_high interval_says bench bench_agrees examples drawn no_interval measured_differently
""".split()


def main_tables(study: Study) -> list[Table]:
    """Runs, groups and claims."""
    first = study.references[0]
    states = {
        group.id: {split: study.verdict(group, first, split).state for split in SPLITS}
        for results in study.datasets
        for group in results.groups
    }
    runs = result_rows(study, states)
    fixed = [*RUN_COLUMNS, *MORE_RUN_COLUMNS, *(name for name in MEASURES if name not in RUN_COLUMNS)]
    columns = [*fixed, *sorted({name for row in runs for name in row} - set(fixed))]
    of_group = [*GROUP_COLUMNS, *(f"{name}_{part}" for name in MEASURES for part in parts_of(name))]
    return [
        Table("results", "Runs", runs, columns),
        Table("groups", "Groups", group_rows(study, states), of_group),
        Table("wnf", "Claims", claim_rows(study), CLAIM_COLUMNS),
    ]


def _traits(record: Record) -> Row:
    """The columns that say what ran. A baseline has no encoder, even if its configuration has these settings."""
    encoder = record.mode != "baseline"
    named = {choice: record.choices.get(choice) for choice in (CHOICES if encoder else CHOICES[:1])}
    stage = {"pretrain": "pretraining", "finetune": "finetuning"}.get(record.mode, "")
    device = record.device.get("name") or record.device.get("kind")
    traits = {"mode": record.mode, **named, "batch_size": record.config.get(f"{stage}.batch_size"), "device": device}
    return {**traits, "dtype": record.device.get("dtype"), "seq_len": record.seq_len} if encoder else traits


def result_rows(study: Study, states: dict[str, dict[str, str]]) -> list[Row]:
    """A row per run: what ran, how it ended, every measure and hyperparameter.

    `states`: group id -> split -> PASS_WNF; a run that did not complete has none.
    """
    group_of = {run.place: group.id for group in study.groups for run in [*group.others, *group.runs]}
    by_key = {(run.record.hash, str(run.record.device)): group.id for group in study.groups for run in group.runs}
    rows = []
    for run in study.found.runs:
        record, (status, cause) = run.record, final_status(run)
        group = group_of.get(run.place) or by_key.get((record.hash, str(record.device)))
        verdict = states.get(group or "", {}) if record.status == "completed" else {}
        skipped = ("claims", *ENCODER) if record.mode == "baseline" else ("claims",)
        classes, scores = class_count(record), record.metrics.get("validation") or {}
        row = {name: value for name, value in record.config.items() if not name.startswith(skipped)}
        row |= {**_traits(record), **{name: measure.of(record) for name, measure in MEASURES.items()}}
        row |= {name: getattr(record, name) for name in ("run", "seed", "hash", "exp", "study", "commit", "step")}
        row |= {"status": status, "cause": cause or None, "group": group, "folder": run.place, **cut_shares(record)}
        row |= {"PASS_WNF": verdict.get("validation"), "PASS_WNF_TEST": verdict.get("test")}
        row |= {"shared_device": record.device.get("shared"), "predicted_classes": scores.get("predicted_classes")}
        row |= {"faults": "; ".join(recovered_faults(record)) or None}
        row |= {"learned_nothing": is_guess(row["macro_f1"], classes) if classes else None}
        row |= {f"{part}.code": str(digest)[:12] for part, digest in record.code.items()}
        row |= {name: int(row[name]) for name in ("params", "params_trainable") if row[name] is not None}
        rows.append(row)
    return rows


def parts_of(name: str) -> tuple[str, ...]:
    """The statistics of a measure in groups.csv."""
    return ("best", "median", "mean", "sd", "n") if is_cost(name) else ("best", "mean", "sd", "n")


def group_rows(study: Study, states: dict[str, dict[str, str]]) -> list[Row]:
    """A row per group: best, mean, standard deviation and n of every measure, and the median of costs."""
    ranked = [group.id for results in study.datasets for group in results.every]
    place = {name: number for number, name in enumerate(ranked)}
    rows = []
    for group in sorted(study.groups, key=lambda group: (place.get(group.id, len(place)), group.label, group.id)):
        state, baseline = states.get(group.id, {}), None if group.record.mode == "baseline" else group.results.baseline
        row = {**_traits(group.record), **{name: group.device.get(name) for name in DEVICE_SETTINGS}}
        row |= {"group": group.id, "label": group.label, "data": group.key["data"], "rank": group.rank}
        row |= {"n": len(group.runs), "seeds": " ".join(map(str, group.seeds)), "not_completed": len(group.others)}
        row |= {"PASS_WNF": state.get("validation"), "PASS_WNF_TEST": state.get("test")}
        for name, split in (("vs_baseline_pp", "validation"), ("vs_baseline_test_pp", "test")):
            row[name] = difference_pp(group, baseline, split) if baseline else None
        row |= {f"{name}_{part}": getattr(group.stat(name), part) for name in MEASURES for part in parts_of(name)}
        rows.append(row)
    return rows


def claim_rows(study: Study) -> list[Row]:
    """A row per measured number of every claim, for each reference and split."""
    return [
        row
        for results in study.datasets
        for reference in study.references
        for group in results.groups
        for split in SPLITS
        for row in _claims_of(study.verdict(group, reference, split))
    ]


def interval_cells(interval: Interval | None) -> Row:
    """The columns of an interval: its ends (percentage points, or ratios of costs), what is random, or why none."""
    if interval is None:
        return {}
    ends = {"interval_low": interval.low, "interval_high": interval.high, "examples": interval.examples or None}
    return {**ends, "drawn": interval.over or None, "no_interval": interval.reason or None}


def _claims_of(verdict: Verdict) -> list[Row]:
    group, reference, baseline = verdict.group, verdict.reference_group, verdict.group.results.baseline
    row: Row = {"group": group.id, "label": group.label, "dataset": group.results.name, "attention": group.attention}
    row |= {"seq_len": group.record.seq_len, "n": len(group.runs), "PASS_WNF": verdict.state}
    row |= {"reference": verdict.reference, "split": verdict.split, "reason": verdict.no_claim}
    for name, other in (("reference", reference), ("baseline", baseline)):
        row |= {f"{name}_group": other.id, f"n_{name}": len(other.runs)} if other else {}
    rows = []
    for claim in verdict.claims:
        for number in claim.measured:
            own = {
                name: getattr(number, name) for name in ("value", "relation", "threshold", "margin", "state", "bench")
            }
            own |= {"claim": claim.code, "claim_state": claim.state, "measured": number.name}
            own |= {"reason": number.reason or claim.reason, **interval_cells(number.interval)}
            own |= {"interval_says": number.interval_says or None, "bench_agrees": number.bench_says or None}
            own["measured_differently"] = (claim.remark or None) if "ratio" in number.name else None
            rows.append({**row, **own})
    return rows or [row]


def comparison(results: DatasetResults, study: Study) -> Table:
    """The groups by rank, then the baselines; costs with their ratio to the reference."""
    first, rows = study.references[0], list[Row]()
    for group in results.groups:
        other, _ = study.reference(group, first)
        states = [study.verdict(group, first, split).state for split in SPLITS]
        rows.append(
            {
                "mechanism": group.label,
                "PASS_WNF": states[0],
                "PASS_WNF_TEST": states[1],
                "n": len(group.runs),
                "macro-F1 validation": group.stat("macro_f1").text,
                "macro-F1 test": group.stat("test_macro_f1").text,
                f"vs {first}, pp": _gap(group, other, study),
                "vs baseline, pp": _gap(group, results.baseline, study),
                "time/epoch, s": _with_ratio(group, other, group.costs["time"]),
                "tokens/s": amount(group.stat("tokens_per_s").middle),
                "memory, MiB": _with_ratio(group, other, group.costs["memory"]),
            }
        )
    for group in results.baselines:
        default, tuned = group.stat("macro_f1").mean, group.stat("tuned_macro_f1").mean
        rows.append(_baseline_row(group, ""))
        if tuned is not None and default is not None:
            rows.append(_baseline_row(group, "tuned_", signed((tuned - default) * 100)))
    return Table(
        "groups", f"The groups on {results.name}, ranked by {study.settings.rank_by}, then the baseline.", rows
    )


def _baseline_row(group: Group, kind: str, gap: str = NONE) -> Row:
    """A row for a baseline. kind: '' for the one that the claims use, `tuned_` for the one tuned on validation."""
    seconds = group.stat(f"{kind}train_seconds").middle
    return {
        "mechanism": group.label + (", tuned" if kind else ""),
        **dict.fromkeys(("PASS_WNF", "PASS_WNF_TEST"), ""),
        "n": len(group.runs),
        "macro-F1 validation": group.stat(f"{kind}macro_f1").text,
        "macro-F1 test": group.stat(f"{kind}test_macro_f1").text,
        "vs baseline, pp": gap,
        "time/epoch, s": NONE if seconds is None else f"{amount(seconds)} in all",
    }


def _gap(group: Group, other: Group | None, study: Study) -> str:
    """The difference of validation macro-F1 in percentage points, with its interval in brackets."""
    if other is None or other is group:
        return NONE
    around = study.differences.between(group, other, "validation").text
    return signed(difference_pp(group, other, "validation")) + (f" ({around})" if around else "")


def _with_ratio(group: Group, other: Group | None, name: str) -> str:
    """The median of a cost, with its ratio to the reference in brackets."""
    middle = group.stat(name).middle
    share = ratio(group, other, name) if other is not None and other is not group else None
    return amount(middle) + (f" ({share:.2f}×)" if share is not None else "")


def unfinished(found: Found) -> Table:
    """The runs that did not complete, with cause and folder; then the records that cannot be read."""
    lost = [(run.record.run, *final_status(run), run.place) for run in found.runs if run.record.status != "completed"]
    lost += [("", "unreadable", reason, place) for place, reason in found.unreadable]
    title = "Every run that did not complete, every record that cannot be used. They are in no mean and no ranking."
    return Table("results", title, [dict(zip(("run", "status", "cause", "folder"), cells)) for cells in lost])

"""One row per measured case or training, with its ratios; and the files results.csv and bench.json that hold them."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any, Sequence

import pandas

from xcls.attention.operations import Work
from xcls.bench.cases import MEASURES, OURS, Case
from xcls.bench.plan import TRANSFORMERS, Contender
from xcls.bench.rivals import rivals_of
from xcls.runs.record import plain, write_atomic

Row = dict[str, Any]
SAME = ("position", "part", "seq_len", "dtype")  # rows with equal values here are compared
COMPLETED, FAILED = "completed", "failed"
COMPARED = (*(f"{measure}_ms" for measure in MEASURES), "inference_MiB", "training_MiB")


def row_of(case: Case) -> Row:
    """The row of a case before measuring. In bench=growth it has `axis` instead of `origin` and `part`."""
    about = {"axis": case.axis} if case.axis else {"origin": case.origin, "part": case.part}
    left_out = ("axis", "origin", "part", "node", "position_node", "seed")
    values = {key: value for key, value in vars(case).items() if key not in left_out}
    return {**about, **values, "status": COMPLETED, "cause": None}


def row_of_contender(contender: Contender) -> Row:
    """The row of a training before measuring; `speeds` will hold the tokens/s of each round."""
    config = contender.config
    return {
        "stage": contender.stage,
        "contender": contender.name,
        "origin": contender.origin,
        "position": contender.position,
        "group_by_length": contender.training.group_by_length,
        "dtype": contender.dtype,
        "batch": contender.training.batch_size,
        "seq_len": config.seq_len,
        "device": contender.device,
        "compile": config.hardware.compile,
        "gradient_checkpointing": config.hardware.gradient_checkpointing,
        "status": COMPLETED,
        "cause": None,
        "speeds": [],
    }


def add(row: Row, measured: Row) -> None:
    """Adds measured values to a row. A `cause` among them marks it as failed; its other values stay."""
    row.update(measured)
    if measured.get("cause"):
        row["status"] = FAILED


def add_rates(rows: Sequence[Row], machine: dict[str, dict[str, float]]) -> None:
    """Fills in tokens/s of steps, and times against the peak rates (dtype -> `flops_per_s`, `bytes_per_s`)."""
    for row in rows:
        if row.get("training_ms") and row.get("part", "step") == "step":
            row["tokens_per_s"] = 1000.0 * row["batch"] * row["seq_len"] / row["training_ms"]
        rates = machine.get(row["dtype"])
        for measure in ("inference", "training") if rates else ():
            flops, moved, took = (row.get(f"{measure}_{what}") for what in ("flops", "bytes", "ms"))
            achieved = flops or row.get(f"{measure}_flops_counted")
            if rates and achieved and took:
                row[f"{measure}_tflops_per_s"] = achieved / took / 1e9
                row[f"{measure}_share_of_peak"] = achieved / took * 1000.0 / rates["flops_per_s"]
            if rates and flops and moved and took:
                bound = 1000.0 * Work(flops, moved).bound(rates["flops_per_s"], rates["bytes_per_s"])
                row[f"{measure}_bound_ms"], row[f"{measure}_times_bound"] = bound, took / bound


def compare(rows: Sequence[Row], references: Sequence[str], nodes: dict[str, dict[str, Any]]) -> None:
    """Fills in the ratios: to each reference, and of ours to the fastest other implementation of the same mechanism."""
    by_key = {(row["mechanism"], *(row[key] for key in SAME)): row for row in rows if "axis" not in row}
    for (mechanism, *where), row in by_key.items():
        opponents = {name: by_key.get((name, *where)) for name in references}
        if row["origin"] == OURS:
            others = [by_key.get((name, *where)) for name in rivals_of(nodes.get(mechanism, {}))]
            timed = [other for other in others if other is not None and other.get("training_ms")]
            if timed:
                opponents["rival"] = quickest = min(timed, key=lambda other: other["training_ms"])
                row["rival"] = quickest["mechanism"]
        for name, opponent in opponents.items():
            for measure in COMPARED:
                if opponent is not None and row.get(measure) is not None and opponent.get(measure):
                    row[f"{measure}_vs_{name}"] = row[measure] / opponent[measure]


def add_segments(row: Row, segments: Sequence[Row]) -> None:
    """Fills in speed, memory and the share of padding from the timed segments of a training."""
    row["speeds"] = speeds = [segment["tokens"] / segment["seconds"] for segment in segments]
    row["rounds"], row["tokens_per_s"] = len(segments), median(speeds)
    row["tokens_per_s_min"], row["tokens_per_s_max"] = min(speeds), max(speeds)
    row["step_ms"] = median(1000.0 * segment["seconds"] / segment["steps"] for segment in segments)
    row["padding_share"] = 1.0 - sum(s["tokens"] for s in segments) / sum(s["computed"] for s in segments)
    row["memory_MiB"], row["parameters"] = segments[-1]["memory_MiB"], segments[-1]["parameters"]


def add_work(row: Row, counted: Row, peak: float | None, card: float | None = None) -> None:
    """Fills in operations per real token (from the counted segment), their rate, and its share of `peak` (1/s).

    Also MFU: the rate of operations on real tokens, without padding, as a share of the data-sheet rate `card` (1/s); as
    in Chowdhery et al. 2022 (PaLM), appendix B, who use a formula. No MFU with gradient checkpointing.
    """
    if not counted.get("flops") or "tokens_per_s" not in row:
        return
    row["flops_per_token"] = counted["flops"] / counted["tokens"]
    rate = row["flops_per_token"] * row["tokens_per_s"]
    row["tflops_per_s"] = rate / 1e12
    if peak:
        row["share_of_peak"] = rate / peak
    if card and not row["gradient_checkpointing"]:
        row["mfu"] = rate * (1.0 - row["padding_share"]) / card


def compare_trainings(rows: Sequence[Row]) -> None:
    """Fills in the speed relative to the best training of transformers in the same stage and dtype.

    It is the median of the ratios within a round: a slow moment of the machine slows both.
    """
    for row in rows:
        same = [other for other in rows if (other["stage"], other["dtype"]) == (row["stage"], row["dtype"])]
        theirs = [other for other in same if other["origin"] == TRANSFORMERS and other.get("tokens_per_s")]
        if theirs and row.get("tokens_per_s"):
            best = max(theirs, key=lambda other: other["tokens_per_s"])
            ratios = [mine / its for mine, its in zip(row["speeds"], best["speeds"])]
            row["vs_transformers"] = median(ratios)
            row["vs_transformers_min"], row["vs_transformers_max"] = min(ratios), max(ratios)


def write(folder: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Writes results.csv (six significant digits; empty cells: not measured) and bench.json."""
    cells = [
        {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items() if key != "speeds"}
        for row in rows
    ]
    write_atomic(folder / "results.csv", pandas.DataFrame(cells, dtype=object).to_csv(index=False))
    whole = plain({**about, "rows": list(rows)})
    write_atomic(folder / "bench.json", json.dumps(whole, indent=1, ensure_ascii=False) + "\n")

"""From events to rows: one for each mechanism, position, part, length and dtype, with its ratios."""

from __future__ import annotations

import csv
import io
import math
from statistics import median
from typing import Any, Sequence

from xcls.attention.work import Work
from xcls.bench.cases import MEASURES, OURS, Case
from xcls.bench.others import rivals

Row = dict[str, Any]
SAME = ("position", "part", "seq_len", "dtype")  # rows that agree in these are compared
COMPLETED, FAILED = "completed", "failed"


def columns(references: Sequence[str]) -> list[str]:
    """The columns of results.csv, in order."""
    first = ["mechanism", "origin", "position", "part", "seq_len", "dtype", "batch", "device", "compile"]
    first += ["gradient_checkpointing", "status", "cause", "rounds"]
    times = [f"{measure}_{word}" for measure in MEASURES for word in ("ms", "min_ms", "max_ms")]
    measured = [*(f"{measure}_ms" for measure in MEASURES), "inference_MiB", "training_MiB"]
    ratios = [f"{name}_vs_{reference}" for reference in (*references, "rival") for name in measured]
    words = ["flops", "bytes", "flops_counted", "tflops_per_s", "share_of_peak", "bound_ms", "times_bound"]
    work = [f"{measure}_{word}" for measure in ("inference", "training") for word in words]
    error = [
        "error_mean",
        "error_std",
        "error_of_mean",
        "error_draws",
        "error_reference",
        "error_by_layer",
        "trained_attention",
    ]
    return [
        *first,
        *times,
        "host_ms",
        "device_ms",
        "inference_MiB",
        "training_MiB",
        "compile_s",
        "rival",
        *ratios,
        *work,
        *error,
    ]


def row_of(case: Case) -> Row:
    """The row of a case before anything is measured."""
    return {
        "mechanism": case.mechanism,
        "origin": case.origin,
        "position": case.position,
        "part": case.part,
        "seq_len": case.seq_len,
        "dtype": case.dtype,
        "batch": case.batch,
        "device": case.device,
        "compile": case.compile,
        "gradient_checkpointing": case.gradient_checkpointing,
        "status": COMPLETED,
        "cause": None,
    }


def fail(row: Row, cause: str) -> None:
    """Marks a row: what was measured of it before stays."""
    row["status"], row["cause"] = FAILED, cause


def add_memory(row: Row, event: dict[str, Any]) -> None:
    """Takes peak memory from a `memory` event; it ran out where one is missing."""
    row["inference_MiB"], row["training_MiB"] = event.get("inference_MiB"), event.get("training_MiB")


def add_times(row: Row, event: dict[str, Any]) -> None:
    """Takes medians, extremes and work from a `timed` event; of a training on a GPU, how long the host took to launch it
    (host_ms; about as long as the device: it waits for the host) and how long the device was at it (device_ms)."""
    for measure, seconds in event["times"].items():
        milliseconds = [1000.0 * value for value in seconds]
        row[f"{measure}_ms"] = median(milliseconds)
        row[f"{measure}_min_ms"], row[f"{measure}_max_ms"] = min(milliseconds), max(milliseconds)
    row["rounds"] = min(len(seconds) for seconds in event["times"].values())
    for side in ("host", "device"):
        row[f"{side}_ms"] = 1000.0 * median(event[side]) if event.get(side) else None
    row["compile_s"] = event["compile_s"]
    for measure in ("inference", "training"):
        flops, moved = event.get(f"{measure}_flops"), event.get(f"{measure}_bytes")
        counted = event.get(f"{measure}_flops_counted")
        row[f"{measure}_flops"], row[f"{measure}_bytes"], row[f"{measure}_flops_counted"] = flops, moved, counted


def hold_against(row: Row, machine: dict[str, float]) -> None:
    """Fills in how a row's times are to what the machine can do: `flops_per_s` and `bytes_per_s`, the best rates that
    were met, since what shares the machine lowers a rate now and then."""
    for measure in ("inference", "training"):
        flops, moved = row.get(f"{measure}_flops"), row.get(f"{measure}_bytes")
        achieved = flops or row.get(f"{measure}_flops_counted")
        if achieved:
            rate = achieved / (row[f"{measure}_ms"] / 1000.0)
            row[f"{measure}_tflops_per_s"] = rate / 1e12
            row[f"{measure}_share_of_peak"] = rate / machine["flops_per_s"]
        if flops and moved:
            bound = 1000.0 * Work(flops, moved).bound(machine["flops_per_s"], machine["bytes_per_s"])
            row[f"{measure}_bound_ms"], row[f"{measure}_times_bound"] = bound, row[f"{measure}_ms"] / bound


def add_error(row: Row, event: dict[str, Any]) -> None:
    """Takes the approximation error from an `error` event."""
    row.update({key: value for key, value in event.items() if key not in ("event", "case")})


def compare(rows: list[Row], references: Sequence[str], nodes: dict[str, dict[str, Any]]) -> None:
    """Fills in the ratios: to each reference, and of ours to the quickest implementation of the same elsewhere."""
    measured = [*(f"{measure}_ms" for measure in MEASURES), "inference_MiB", "training_MiB"]
    by_key = {(row["mechanism"], *(row[key] for key in SAME)): row for row in rows}
    for row in rows:
        where = tuple(row[key] for key in SAME)
        opponents = {name: by_key.get((name, *where)) for name in references}
        if row["origin"] == OURS:
            others = [by_key.get((name, *where)) for name in rivals(nodes.get(row["mechanism"], {}))]
            others = [other for other in others if other is not None and other.get("training_ms")]
            if others:
                opponents["rival"] = min(others, key=lambda other: other["training_ms"])
                row["rival"] = opponents["rival"]["mechanism"]
        for name, opponent in opponents.items():
            for measure in measured:
                if opponent is not None and row.get(measure) is not None and opponent.get(measure):
                    row[f"{measure}_vs_{name}"] = row[measure] / opponent[measure]


def crossovers(rows: list[Row], references: Sequence[str]) -> list[Row]:
    """From which length on a mechanism's training is quicker than a reference's, and stays so, up to the longest.

    `from` is interpolated between measured lengths on logarithmic scales; 0 where it is quicker everywhere, None
    where it is slower at the longest.
    """
    found = []
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["mechanism"], row["position"], row["part"], row["dtype"]), []).append(row)
    for (mechanism, position, part, dtype), group in groups.items():
        for reference in references:
            key = f"training_ms_vs_{reference}"
            points = sorted((row["seq_len"], row[key]) for row in group if row.get(key) is not None)
            if mechanism not in references and len(points) > 1:
                about = {"mechanism": mechanism, "position": position, "part": part, "dtype": dtype}
                found.append(
                    {**about, "reference": reference, "from": _falls_below_one(points), "longest": points[-1][0]}
                )
    return found


def _falls_below_one(points: list[tuple[int, float]]) -> float | None:
    """Where (length, ratio), ascending, falls below 1 for good; 0 if it is below everywhere, None if not at the end."""
    if points[-1][1] >= 1.0:
        return None
    for (left, high), (right, low) in zip(points[-2::-1], points[:0:-1]):
        if high >= 1.0:
            share = math.log(high) / (math.log(high) - math.log(low))
            return left * (right / left) ** share
    return 0.0


def to_csv(rows: Sequence[Row], references: Sequence[str]) -> str:
    """results.csv: empty where nothing was measured, six significant digits."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns(references), lineterminator="\n", extrasaction="raise")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
    return out.getvalue()

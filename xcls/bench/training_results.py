"""bench=training: from segments to rows, results.csv and the table."""

from __future__ import annotations

import csv
import io
from statistics import median
from typing import Any, Sequence

from xcls.bench.results import COMPLETED, FAILED, Row
from xcls.bench.table import Column, markdown, number
from xcls.bench.training_meter import BACKWARD, DATA, FORWARD, OPTIMIZER, REST
from xcls.bench.training_plan import TRANSFORMERS, Contender, Recipe

PARTS = (DATA, FORWARD, BACKWARD, OPTIMIZER, REST)
COLUMNS = (
    "stage",
    "contender",
    "origin",
    "position",
    "group_by_length",
    "dtype",
    "batch",
    "seq_len",
    "device",
    "compile",
    "status",
    "cause",
    "parameters",
    "rounds",
    "tokens_per_s",
    "tokens_per_s_min",
    "tokens_per_s_max",
    "vs_transformers",
    "vs_transformers_min",
    "vs_transformers_max",
    "padding_share",
    "step_ms",
    *(f"{part}_ms" for part in PARTS),
    "memory_MiB",
    "flops_per_token",
    "tflops_per_s",
    "share_of_peak",
    "mfu",
)
TITLES = {"finetune": "Fine-tuning", "pretrain": "Pretraining (MLM)"}


def row_of(recipe: Recipe, contender: Contender) -> Row:
    """The row of a contender before anything is measured; `speeds` are its tokens/s, round by round."""
    return {
        "stage": recipe.stage,
        "contender": contender.name,
        "origin": contender.origin,
        "position": contender.position or "learned",
        "group_by_length": contender.grouped,
        "dtype": recipe.dtype,
        "batch": recipe.training.batch_size,
        "seq_len": recipe.seq_len,
        "device": recipe.device,
        "compile": recipe.compile,
        "gradient_checkpointing": recipe.hardware.gradient_checkpointing,
        "status": COMPLETED,
        "cause": None,
        "speeds": [],
    }


def add_segments(row: Row, segments: Sequence[dict[str, Any]]) -> None:
    """Takes speed, memory and the share of padding from the timed segments."""
    row["speeds"] = [segment["tokens"] / segment["seconds"] for segment in segments]
    row["rounds"] = len(segments)
    row["tokens_per_s"] = median(row["speeds"])
    row["tokens_per_s_min"], row["tokens_per_s_max"] = min(row["speeds"]), max(row["speeds"])
    row["step_ms"] = median(1000.0 * segment["seconds"] / segment["steps"] for segment in segments)
    real, computed = (sum(segment[key] for segment in segments) for key in ("tokens", "computed"))
    row["padding_share"] = 1.0 - real / computed
    row["memory_MiB"] = segments[-1]["memory_MiB"]


def add_parts(row: Row, segment: dict[str, Any]) -> None:
    """Takes the parts of a step from the segment in which they were timed."""
    for part in PARTS:
        row[f"{part}_ms"] = 1000.0 * segment["parts"].get(part, 0.0) / segment["steps"]


def add_work(row: Row, counted: dict[str, Any] | None, peak: float | None, card: float | None = None) -> None:
    """Takes operations per real token from the counted segment, and their rate beside the machine's `peak` (1/s), measured.

    And MFU: the operations of the real tokens alone, padding left out, as a share of what the `card` can do by its data sheet
    (1/s). Chowdhery et al. 2022 (PaLM), appendix B, count alike, by formula. None where blocks are computed again for the gradients.
    """
    if counted is None or not counted["flops"] or "tokens_per_s" not in row:
        return
    row["flops_per_token"] = counted["flops"] / counted["tokens"]
    rate = row["flops_per_token"] * row["tokens_per_s"]
    row["tflops_per_s"] = rate / 1e12
    if peak:
        row["share_of_peak"] = rate / peak
    if card and not row["gradient_checkpointing"]:
        row["mfu"] = rate * (1.0 - row["padding_share"]) / card


def compare(rows: Sequence[Row]) -> None:
    """The speed of each beside the best of transformers in the same stage and dtype: the median over the rounds of the
    ratio within a round, so that a slow moment of the machine hits both."""
    for row in rows:
        same = [other for other in rows if (other["stage"], other["dtype"]) == (row["stage"], row["dtype"])]
        theirs = [other for other in same if other["origin"] == TRANSFORMERS and other.get("tokens_per_s")]
        if theirs and row.get("tokens_per_s"):
            best = max(theirs, key=lambda other: other["tokens_per_s"])
            ratios = [mine / its for mine, its in zip(row["speeds"], best["speeds"])]
            row["vs_transformers"] = median(ratios)
            row["vs_transformers_min"], row["vs_transformers_max"] = min(ratios), max(ratios)


def to_csv(rows: Sequence[Row]) -> str:
    """results.csv: empty where nothing was measured, six significant digits."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
    return out.getvalue()


def _spread(key: str) -> Any:
    def show(row: Row) -> str:
        if row.get(key) is None:
            return "–"
        return f"{number(row[key])} ({number(row[f'{key}_min'])}…{number(row[f'{key}_max'])})"

    return show


def _value(key: str, factor: float = 1.0) -> Any:
    return lambda row: number(None if row.get(key) is None else row[key] * factor)


def _percent(key: str) -> Any:
    return lambda row: "–" if row.get(key) is None else f"{row[key]:.1%}"


def _text(key: str) -> Any:
    return lambda row: str(row[key])


NAMES: list[Column] = [
    ("stage", _text("stage")),
    ("contender", _text("contender")),
    ("position", _text("position")),
    ("grouped", lambda row: "yes" if row["group_by_length"] else "no"),
    ("dtype", _text("dtype")),
]
SPEED: list[Column] = [
    *NAMES,
    ("real tokens/s (min…max)", _spread("tokens_per_s")),
    ("× best transformers (min…max)", _spread("vs_transformers")),
    ("padding", _percent("padding_share")),
    ("memory, MiB", _value("memory_MiB")),
    ("parameters, M", _value("parameters", 1e-6)),
    ("MFLOP a token", _value("flops_per_token", 1e-6)),
    ("share of peak", _percent("share_of_peak")),
    ("rounds", lambda row: str(row.get("rounds", "–"))),
]
TIMES: list[Column] = [
    *NAMES,
    ("step, ms", _value("step_ms")),
    *((f"{part}, ms", _value(f"{part}_ms")) for part in PARTS),
]


def report(rows: Sequence[Row], peaks: dict[str, float]) -> str:
    """All tables: speed, the parts of a step, failures."""
    blocks = []
    done = [row for row in rows if row.get("tokens_per_s")]
    if done:
        columns = [*SPEED, ("MFU", _percent("mfu"))] if any(row.get("mfu") for row in done) else SPEED
        blocks.append("## Training, data loading included\n\n" + markdown(columns, done))
        note = "backward includes clipping; rest is moving to the device, checks and logging."
        blocks.append(f"### Where a step's time goes (a segment of its own)\n\n{markdown(TIMES, done)}\n\n{note}")
    for dtype, peak in peaks.items():
        blocks.append(
            f"This machine, {dtype}: {number(peak / 1e12)} TFLOP/s in large matrix products. Operations are those of "
            "matrix products by PyTorch's counter, padding included, for each real token."
        )
    if any(row.get("mfu") for row in done):
        blocks.append(
            "MFU: operations of the real tokens, padding left out, of what the card can do at most by its data sheet. What a "
            "kernel of our own computes is not counted: the true share is higher there."
        )
    lost = [row for row in rows if row["status"] == FAILED]
    if lost:
        blocks.append("## Failed\n\n" + markdown([*NAMES, ("cause", _text("cause"))], lost))
    return "\n\n".join(blocks) + "\n"

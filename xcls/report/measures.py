"""What is measured of a run, under which name, in which unit, and which way is better."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Iterable

from xcls.runs.record import Record

NONE = "–"  # what is missing, in a table
TextTable = tuple[list[str], list[list[str]]]  # header, rows
CPU_MEMORY, GPU_MEMORY = "rss_growth_MiB", "max_gpu_mem_MiB"


@dataclass(frozen=True)
class Measure:
    """One number of a record: `place` is the field (`metrics.validation`, `costs`, `params`), `key` the entry in it."""

    name: str
    place: str
    key: str
    unit: str = ""
    low_is_better: bool = False

    def of(self, record: Record) -> float | None:
        """The value in `record`, or None where it is missing or not a finite number."""
        node: Any = record
        for part in self.place.split(".", 1):
            node = node.get(part) if isinstance(node, dict) else getattr(node, part)
            if node is None:
                return None
        return number(node.get(self.key))


def number(value: Any) -> float | None:
    """`value` as a finite float, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


SCORES = ("macro_f1", "accuracy", "weighted_f1", "auroc")
MEASURES = {
    measure.name: measure
    for measure in (
        *(Measure(score, "metrics.validation", score) for score in SCORES),
        Measure("val_loss", "metrics.validation", "val_loss", low_is_better=True),
        *(Measure(f"test_{score}", "metrics.test", score) for score in SCORES),
        Measure("tuned_macro_f1", "metrics.tuned.validation", "macro_f1"),  # of a baseline
        Measure("tuned_test_macro_f1", "metrics.tuned.test", "macro_f1"),
        Measure("time_per_epoch", "costs", "time_per_epoch", "s", True),
        Measure("time_per_step", "costs", "time_per_step", "s", True),
        Measure("tokens_per_s", "costs", "tokens_per_s", "1/s"),
        Measure("padded_tokens_per_s", "costs", "padded_tokens_per_s", "1/s"),
        Measure(GPU_MEMORY, "costs", GPU_MEMORY, "MiB", True),
        Measure("max_rss_MiB", "costs", "max_rss_MiB", "MiB", True),
        Measure(CPU_MEMORY, "costs", CPU_MEMORY, "MiB", True),
        Measure("set_aside_s", "costs", "set_aside_s", "s", True),  # compilation and first steps, in none of these
        Measure(
            "excluded_s", "costs", "excluded_s", "s", True
        ),  # of disturbed steps, beyond the usual time of their shape
        Measure("excluded_steps", "costs", "excluded_steps", "", True),
        Measure("train_seconds", "costs", "train_seconds", "s", True),
        Measure("tuned_train_seconds", "costs", "tuned.train_seconds", "s", True),  # of a baseline: every fit it tried
        Measure("wall_seconds", "costs", "wall_seconds", "s", True),  # of the processes, evaluations and all
        Measure("energy_wh", "costs", "energy_wh", "Wh", True),  # where the GPU counts it
        Measure("latency_ms", "costs", "latency_ms", "ms", True),  # one document at a time: the median
        Measure("latency_p95_ms", "costs", "latency_p95_ms", "ms", True),
        Measure("inference_ms_per_example", "costs", "inference_ms_per_example", "ms", True),  # in batches
        Measure("inference_examples_per_s", "costs", "inference_examples_per_s", "1/s"),
        Measure("tokenize_ms_per_example", "costs", "tokenize_ms_per_example", "ms", True),  # in neither of these
        Measure("params", "params", "total", low_is_better=True),
        Measure("params_trainable", "params", "trainable", low_is_better=True),
    )
}


def is_cost(name: str) -> bool:
    """Whether a measure depends on the device and so compares only within one."""
    return MEASURES[name].place == "costs"


def memory_measure(device_kind: Any) -> str:
    """The measure of the memory claim: on CUDA the peak allocated, on CPU the growth of peak RSS over training."""
    return GPU_MEMORY if device_kind == "cuda" else CPU_MEMORY


LEAST = 0.005  # a smaller share of the tokens is not worth a remark


def cut_shares(record: Record, split: str = "train") -> dict[str, float | None]:
    """`tokens_cut_share` and `documents_cut_share` of a split; None where the record has none (a baseline cuts nothing)."""
    node: Any = record.data
    for name in ("tokens", split):
        node = node.get(name) if isinstance(node, dict) else None
    return {
        name: number(node.get(name)) if isinstance(node, dict) else None
        for name in ("tokens_cut_share", "documents_cut_share")
    }


def cut_note(records: Iterable[Record]) -> str | None:
    """A sentence on the largest share of the training tokens that was left out at each length; None where it is little."""
    found: dict[tuple[int, str], float] = {}
    for record in records:
        share = cut_shares(record)["tokens_cut_share"]
        if record.mode == "finetune" and share is not None:
            key = (record.seq_len, str(record.config.get("dataset.truncate", "head")))
            found[key] = max(found.get(key, 0.0), share)
    told = [
        f"{share:.0%} at {length:,} ({way} kept)" for (length, way), share in sorted(found.items()) if share >= LEAST
    ]
    if not told:
        return None
    return f"Texts longer than seq_len are cut: of the training tokens {', '.join(told)} are left out. The baseline reads all of them."


def signed(value: float | None) -> str:
    """`+5.02` percentage points."""
    return NONE if value is None else f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")


def amount(value: float | None) -> str:
    """A number with three significant digits, or whole from 1,000 on."""
    return NONE if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def class_count(record: Record) -> int:
    """How many classes the data has; 0 where the record does not say."""
    counts = record.data.get("classes")
    named = counts.get("validation") if isinstance(counts, dict) else None
    return len(named) if isinstance(named, dict) else 0


def survived(record: Record) -> list[str]:
    """What went wrong in a run that completed all the same: bad steps that were left out, restarts, smaller batches."""
    faults = record.faults if record.status == "completed" and isinstance(record.faults, list) else []
    told = [fault for fault in faults if isinstance(fault, dict)]
    return [f"{fault.get('kind')} at step {fault.get('step')}: {fault.get('cause')}" for fault in told]

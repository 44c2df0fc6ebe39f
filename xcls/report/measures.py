"""What is measured of a run, under which name, in which unit, and which way is better."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Iterable

from xcls.runs.record import Record

CPU_MEMORY, GPU_MEMORY = "rss_growth_MiB", "max_gpu_mem_MiB"


@dataclass(frozen=True)
class Measure:
    """One number of a record: `place` is the field (`metrics.validation`, `costs`, `params`), `key` the entry in it."""

    name: str
    place: str
    key: str
    low_is_better: bool = False

    def of(self, record: Record) -> float | None:
        """The value in `record`, or None where it is missing or not a finite number."""
        field, _, entry = self.place.partition(".")
        node = getattr(record, field)
        node = node.get(entry) if entry else node
        return number((node or {}).get(self.key))


def number(value: Any) -> float | None:
    """`value` as a finite float, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
        return None
    return None if math.isnan(value) else float(value)


SCORES = ("macro_f1", "accuracy", "weighted_f1", "auroc")
# Seconds, MiB, watt-hours. set_aside_s: compilation and first steps, in no other cost; excluded_s: of disturbed steps,
# beyond the usual time of their shape; wall_seconds: of the processes, with evaluations; latency: of a document alone.
COSTS = f"""
    time_per_epoch time_per_step tokens_per_s padded_tokens_per_s {GPU_MEMORY} max_rss_MiB {CPU_MEMORY} set_aside_s
    excluded_s excluded_steps train_seconds tuned_train_seconds wall_seconds energy_wh latency_ms latency_p95_ms
    inference_ms_per_example inference_examples_per_s tokenize_ms_per_example
""".split()
KEYS = {"tuned_train_seconds": "tuned.train_seconds"}  # of a baseline: every fit that it tried
MEASURES = {
    measure.name: measure
    for measure in (
        *(Measure(score, "metrics.validation", score) for score in SCORES),
        Measure("val_loss", "metrics.validation", "val_loss", True),
        *(Measure(f"test_{score}", "metrics.test", score) for score in SCORES),
        Measure("tuned_macro_f1", "metrics.tuned.validation", "macro_f1"),  # of a baseline
        Measure("tuned_test_macro_f1", "metrics.tuned.test", "macro_f1"),
        *(Measure(cost, "costs", KEYS.get(cost, cost), not cost.endswith("s_per_s")) for cost in COSTS),
        Measure("params", "params", "total", True),
        Measure("params_trainable", "params", "trainable", True),
    )
}


def is_cost(name: str) -> bool:
    """Whether a measure depends on the device and so compares only within one."""
    return MEASURES[name].place == "costs"


def memory_measure(device_kind: Any) -> str:
    """The measure of the memory claim: on CUDA the peak allocated, on CPU the growth of peak RSS over training."""
    return GPU_MEMORY if device_kind == "cuda" else CPU_MEMORY


LEAST = 0.005  # a smaller share of the tokens is not worth a remark


def cut_shares(record: Record) -> dict[str, float | None]:
    """`tokens_cut_share` and `documents_cut_share` of training; None where the record has none (a baseline cuts
    nothing)."""
    node: Any = record.data
    for name in ("tokens", "train"):
        node = node.get(name) if isinstance(node, dict) else None
    node = node if isinstance(node, dict) else {}
    return {name: number(node.get(name)) for name in ("tokens_cut_share", "documents_cut_share")}


def cut_note(records: Iterable[Record]) -> str:
    """A sentence on the largest share of the training tokens that was left out at each length; '' where it is
    little."""
    found: dict[tuple[int, str], float] = {}
    for record in records:
        share = cut_shares(record)["tokens_cut_share"]
        if record.mode == "finetune" and share is not None and share >= LEAST:
            key = (record.seq_len, str(record.config.get("dataset.truncate", "head")))
            found[key] = max(found.get(key, 0.0), share)
    told = [f"{share:.0%} at {length:,} ({way} kept)" for (length, way), share in sorted(found.items())]
    words = "Texts longer than seq_len are cut: of the training tokens"
    return f"{words} {', '.join(told)} are left out. The baseline reads all of them." if told else ""


def slug(name: str) -> str:
    """The name as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-") or "data"


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


CONDITIONS = {  # that a cost depends on beside the configuration, and their words
    "name": "device",
    "dtype": "dtype",
    "compile": "compile",
    "micro_batch": "micro-batch",
    "micro_tokens": "tokens at once",
    "gradient_checkpointing": "gradient checkpointing",
    "threads": "threads",
    "cores": "cores",
    "torch": "torch",
    "cuda": "CUDA",
}

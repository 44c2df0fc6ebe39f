"""The measures of a run: name, unit, place in the record, and whether low or high is better."""

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
        """The value in `record`, or None if it is missing or not a finite number."""
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
# Units are in the names, else seconds. set_aside_s: compilation and first steps, not in any other cost. excluded_s:
# time of disturbed steps above the usual time of their shape. wall_seconds: the whole process, with evaluations.
# latency: one document by itself.
COSTS = f"""
    time_per_epoch time_per_step tokens_per_s padded_tokens_per_s {GPU_MEMORY} max_rss_MiB {CPU_MEMORY} set_aside_s
    excluded_s excluded_steps train_seconds tuned_train_seconds wall_seconds energy_wh latency_ms latency_p95_ms
    inference_ms_per_example inference_examples_per_s tokenize_ms_per_example
""".split()
KEYS = {"tuned_train_seconds": "tuned.train_seconds"}  # of a baseline: all fits of its tuning
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
    """Does the measure depend on the device? Then it can be compared on one device only."""
    return MEASURES[name].place == "costs"


def memory_measure(device_kind: Any) -> str:
    """The measure of the memory claim: on CUDA the peak allocated, on CPU the growth of peak RSS over training."""
    return GPU_MEMORY if device_kind == "cuda" else CPU_MEMORY


LEAST = 0.005  # a smaller share of the tokens is not mentioned


def cut_shares(record: Record) -> dict[str, float | None]:
    """`tokens_cut_share` and `documents_cut_share` of training; None if not recorded (a baseline cuts nothing)."""
    node: Any = record.data
    for name in ("tokens", "train"):
        node = node.get(name) if isinstance(node, dict) else None
    node = node if isinstance(node, dict) else {}
    return {name: number(node.get(name)) for name in ("tokens_cut_share", "documents_cut_share")}


def cut_note(records: Iterable[Record]) -> str:
    """A sentence with the largest share of training tokens cut at each length; '' if it is below LEAST."""
    found: dict[tuple[int, str], float] = {}
    for record in records:
        share = cut_shares(record)["tokens_cut_share"]
        if record.mode == "finetune" and share is not None and share >= LEAST:
            key = (record.seq_len, str(record.config.get("dataset.truncate", "head")))
            found[key] = max(found.get(key, 0.0), share)
    shares = [f"{share:.0%} at {length:,} ({way} kept)" for (length, way), share in sorted(found.items())]
    words = "Texts longer than seq_len are cut: of the training tokens"
    return f"{words} {', '.join(shares)} are left out. The baseline reads all of them." if shares else ""


def slug(name: str) -> str:
    """The name as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-") or "data"


def class_count(record: Record) -> int:
    """The number of classes; 0 if the record does not have it."""
    counts = record.data.get("classes")
    named = counts.get("validation") if isinstance(counts, dict) else None
    return len(named) if isinstance(named, dict) else 0


def recovered_faults(record: Record) -> list[str]:
    """The faults that a completed run recovered from: skipped non-finite steps, restarts, smaller batches."""
    faults = record.faults if record.status == "completed" and isinstance(record.faults, list) else []
    known = [fault for fault in faults if isinstance(fault, dict)]
    return [f"{fault.get('kind')} at step {fault.get('step')}: {fault.get('cause')}" for fault in known]


CONDITIONS = {  # conditions, beside the configuration, that a cost depends on, and their names in text
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

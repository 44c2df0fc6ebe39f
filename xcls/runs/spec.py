"""What a run is made from, and what a launcher knows of it before it begins.

Standard library only: who launches runs need not import what trains them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xcls.runs.folder import FRESH
from xcls.runs.record import Record

GROUPS = ("attention", "position", "size", "dataset", "tokenizer", "hardware", "wandb")
SHARED = ("seed", "dataset", "wandb")
ENCODER = (*SHARED, "seq_len", "attention", "position", "size", "tokenizer", "hardware")
NODES = {  # of the configuration: what a run of this mode is made from
    "baseline": (*SHARED, "study", "baseline"),
    "pretrain": (*ENCODER, "masking", "pretraining"),  # no study: the runs of another one may start from it
    "finetune": (*ENCODER, "study", "head", "finetuning", "pretraining", "masking", "pretrain_seed", "baseline"),
}

# In the environment of a job: the hash of the run that was planned. Whoever sets it has made what the run needs first.
PLANNED = "XCLS_HASH"


def file_values(mode: str, config: dict[str, Any], choices: dict[str, str]) -> dict[str, Any]:
    """What a file that makes a run of this mode holds: the choices of the groups, then the values of the flat `config`
    that such a run uses."""
    values: dict[str, Any] = {f"choices.{group}": choices[group] for group in GROUPS if choices.get(group) is not None}
    return values | {key: value for key, value in config.items() if key.partition(".")[0] in NODES[mode]}


@dataclass
class JobSpec:
    """One run before it begins (`xcls.build.job_specs` makes it)."""

    kind: str  # its mode
    folder: Path | None = None  # None: it makes no run folder
    hash: str | None = None
    overrides: list[str] | None = None  # what composes it; None: what the user typed for this job
    needs: list[str] = field(default_factory=list)  # hashes of the runs that come first
    action: str = FRESH  # what to do with the folder: 'done', 'resume', 'fresh' (runs/folder.py)
    found: Record | None = None  # the record that is there
    gpu: bool = False  # it computes on a GPU
    precision: Any = None  # device and dtype it was planned with (train/precision.py); None: it has no encoder
    file: str | None = None  # what `config.yaml` in its folder must hold before it begins
    record: Record | None = None  # what its record says if it dies before it writes one

    @property
    def completed(self) -> bool:
        """Whether the run is there already, whole."""
        return self.found is not None and self.found.status == "completed"

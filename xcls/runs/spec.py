"""The settings that define a run, and what a launcher knows of it before it begins.

Standard library only, so that a launcher need not import the training code.
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
NODES = {  # the nodes of the configuration that define a run of each mode
    "baseline": (*SHARED, "study", "baseline"),
    "pretrain": (*ENCODER, "masking", "pretraining"),  # no study: runs of another study may start from it
    "finetune": (*ENCODER, "study", "head", "finetuning", "pretraining", "masking", "pretrain_seed", "baseline"),
}

# Environment variable of a job: the hash of its planned run. The launcher has already run what it needs first.
PLANNED = "XCLS_HASH"


def file_values(mode: str, config: dict[str, Any], choices: dict[str, str]) -> dict[str, Any]:
    """The content of a file for a run of this mode: choices of the groups, then the values of the flat `config` that
    the mode uses."""
    values: dict[str, Any] = {f"choices.{group}": choices[group] for group in GROUPS if choices.get(group) is not None}
    return values | {key: value for key, value in config.items() if key.partition(".")[0] in NODES[mode]}


@dataclass
class JobSpec:
    """One run before it begins (`xcls.build.job_specs` makes it)."""

    kind: str  # its mode
    folder: Path | None = None  # None: the mode has no run folder
    hash: str | None = None
    overrides: list[str] | None = None  # its command line; None: the user's overrides for this job
    needs: list[str] = field(default_factory=list)  # hashes of the runs that must be done first
    action: str = FRESH  # what to do with the folder: 'done', 'resume', 'fresh' (runs/folder.py)
    found: Record | None = None  # the record in the folder, if any
    gpu: bool = False  # it computes on a GPU
    precision: Any = None  # planned device and dtype (train/precision.py); None: no encoder
    file: str | None = None  # content of `config.yaml`, written to its folder before it begins
    record: Record | None = None  # its record if it dies before it writes one

    @property
    def completed(self) -> bool:
        """Whether the run is already completed."""
        return self.found is not None and self.found.status == "completed"

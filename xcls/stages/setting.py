"""What training stages have in common before the loop starts: device, costs, the checkpoint to go on from."""

from __future__ import annotations

from typing import Any

from torch import nn

from xcls.schema import Hardware, UserError
from xcls.train.amp import Amp, compile_blocks
from xcls.train.checkpoint import Checkpoints
from xcls.train.cost import count_parameters
from xcls.train.journal import Journal
from xcls.train.precision import Precision
from xcls.train.versions import commit, describe_device, versions


def place(model: nn.Module, *, hardware: Hardware, precision: Precision, journal: Journal) -> Amp:
    """Puts the model on its device and writes into the record what runs where. Raises UserError without that device."""
    amp = Amp(precision=precision, hardware=hardware)
    model.to(amp.device)
    if hardware.compile:
        compile_blocks(model)
    record = journal.record
    shared = record.device.get("shared")
    record.device = {
        **describe_device(amp.device),
        "dtype": precision.dtype,
        "compile": hardware.compile,
        "micro_batch": hardware.micro_batch,
        "micro_tokens": hardware.micro_tokens,
        "gradient_checkpointing": hardware.gradient_checkpointing,
        "shared": shared,  # the launcher knows whether another job has the same device
    }
    journal.spent.watch(amp.device)
    record.versions, record.commit = versions(), commit()
    record.params = count_parameters(model)
    return amp


def interrupted_run(journal: Journal, *, resume: bool, keep: int) -> dict[str, Any] | None:
    """The checkpoint to go on from, and the journal begun: with its rows on resume, else empty.

    Raises UserError where the checkpoint is of another configuration.
    """
    payload = Checkpoints(folder=journal.folder, keep=keep).newest(journal.warn) if resume else None
    if payload is not None and payload["hash"] != journal.record.hash:
        raise UserError(
            f"{journal.folder}: the checkpoint is of another configuration (hash {payload['hash'][:6]}, this one "
            f"{journal.record.hash[:6]}). Choose another exp=…, or move the checkpoints away."
        )
    if resume and payload is None:
        journal.warn("There is no checkpoint to go on from: the run starts from the beginning.")
    journal.begin(
        rows=payload["rows"] if payload else [],
        wandb_id=payload["wandb_id"] if payload else None,
    )
    return payload


def carried(journal: Journal, *, stage: str, tokenizer: str, classes: list[str] | None) -> dict[str, Any]:
    """What every checkpoint carries beside the training state, so that it can be used without its folder."""
    record = journal.record
    return {
        "stage": stage,
        "run": record.run,
        "hash": record.hash,
        "config": dict(record.config),
        "choices": dict(record.choices),
        "versions": dict(record.versions),
        "tokenizer": tokenizer,
        "classes": classes,
    }

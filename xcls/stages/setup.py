"""What training stages have in common before the loop starts: device, costs, the checkpoint to go on from."""

from __future__ import annotations

from typing import Any

from torch import nn

from xcls.config.schema import Hardware, UserError
from xcls.train.amp import Amp, compile_blocks
from xcls.train.checkpoint import Checkpoints
from xcls.train.cost import count_parameters
from xcls.train.precision import Precision
from xcls.train.run_logger import RunLogger
from xcls.train.versions import describe_device, versions

SETTINGS = ("compile", "micro_batch", "micro_tokens", "gradient_checkpointing")  # of the hardware, for the record
RESULTS = ("predictions.parquet", "head.safetensors")  # of a training's end: made again, and not to be found before


def setup_device(model: nn.Module, *, hardware: Hardware, precision: Precision, logger: RunLogger) -> Amp:
    """Puts the model on its device and writes into the record what runs where. Raises UserError without that device."""
    amp = Amp(precision=precision, hardware=hardware)
    model.to(amp.device)
    if hardware.compile:
        compile_blocks(model)
    record = logger.record
    # `shared` is from the launcher, `attention_path` from the record of an interrupted run.
    known: dict[str, Any] = {
        name: record.device[name] for name in ("shared", "attention_path") if name in record.device
    }
    settings = {name: getattr(hardware, name) for name in SETTINGS}
    record.device = {**describe_device(amp.device), "dtype": precision.dtype, **settings, "shared": None, **known}
    logger.usage.watch(amp.device)
    record.versions = versions()
    record.params = count_parameters(model)
    return amp


def load_resume_checkpoint(logger: RunLogger, *, resume: bool, keep: int) -> dict[str, Any] | None:
    """The checkpoint to go on from, and the logger begun: with its rows on resume, else empty.

    Without a checkpoint a resumed run starts again at step 0. It keeps its W&B id and its history, where the earlier
    evaluations are marked as withdrawn; earlier results are removed. Raises UserError where the checkpoint is of
    another configuration.
    """
    payload = Checkpoints(folder=logger.folder, keep=keep).newest(logger.warn) if resume else None
    if payload is not None and payload["hash"] != logger.record.hash:
        raise UserError(
            f"{logger.folder}: the checkpoint is of another configuration (hash {payload['hash'][:6]}, this one "
            f"{logger.record.hash[:6]}). Choose another exp=…, or move the checkpoints away."
        )
    again = resume and payload is None
    if again:
        logger.warn("There is no checkpoint to go on from; it starts again at step 0.")
        for name in RESULTS:
            (logger.folder / name).unlink(missing_ok=True)
    logger.begin(rows=payload["rows"] if payload else [], wandb_id=payload["wandb_id"] if payload else None)
    if again:
        logger.rewind([], step=0)
    return payload


def checkpoint_metadata(logger: RunLogger, *, stage: str, tokenizer: str, classes: list[str] | None) -> dict[str, Any]:
    """What every checkpoint carries beside the training state, so that it can be used without its folder."""
    record = logger.record
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

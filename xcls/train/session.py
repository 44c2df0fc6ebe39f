"""What a training of either stage trains with, and what it does before its loop: device, record, resume."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from xcls.config.schema import Hardware, Training, UserError
from xcls.data.tokenizer import TextTokenizer
from xcls.train.amp import Amp, compile_blocks
from xcls.train.checkpoint import Checkpoints
from xcls.train.cost import count_parameters
from xcls.train.precision import Precision
from xcls.train.provenance import describe_device, versions
from xcls.train.randomness import seed_everything
from xcls.train.run_logger import RunLogger
from xcls.train.stream import width_multiple

SETTINGS = ("compile", "micro_batch", "micro_tokens", "gradient_checkpointing")  # of the hardware, for the record
RESULTS = ("predictions.parquet", "head.safetensors")  # of a training's end: made again, and not to be found before


@dataclass
class Session:
    """One training: what it trains with, and where it writes. `resume`: it goes on from its last checkpoint.

    Use it within `with logger:`.
    """

    tokenizer: TextTokenizer
    training: Training
    hardware: Hardware
    precision: Precision
    seed: int
    logger: RunLogger
    resume: bool = False
    amp: Amp = field(init=False)

    def __post_init__(self) -> None:
        self.amp = Amp(precision=self.precision, hardware=self.hardware)

    def width_multiple(self, seq_len: int) -> int:
        """What the widths of batches are rounded up to."""
        return width_multiple(seq_len, compiled=self.hardware.compile)

    def begin(self, model: nn.Module, *, tokens: dict[str, Any], warnings: list[str]) -> dict[str, Any] | None:
        """Puts the model on its device, and what is known before the first step into the record: of its `tokens` too.

        Gives the checkpoint to go on from, None at step 0. Raises UserError where that is of another configuration.
        """
        seed_everything(self.seed)
        model.to(self.amp.device)
        if self.hardware.compile:
            compile_blocks(model)
        record = self.logger.record
        # `shared` is from the launcher, `attention_path` from the record of an interrupted run.
        known: dict[str, Any] = {
            name: record.device[name] for name in ("shared", "attention_path") if name in record.device
        }
        settings: dict[str, Any] = {name: getattr(self.hardware, name) for name in SETTINGS}
        device = {**describe_device(self.amp.device), "dtype": self.precision.dtype}
        record.device = {**device, **settings, "shared": None, **known}
        self.logger.usage.watch(self.amp.device)
        record.versions = versions()
        record.params = count_parameters(model)
        record.data["tokens"] = tokens
        for message in warnings:
            self.logger.warn(message)
        return self._checkpoint()

    def _checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint to go on from, and the logger begun: with its rows on resume, else empty.

        Without a checkpoint a resumed run starts again at step 0. It keeps its W&B id and its history, where the
        earlier evaluations are marked as withdrawn; earlier results are removed.
        """
        logger = self.logger
        checkpoints = Checkpoints(folder=logger.folder, keep=self.training.keep)
        payload = checkpoints.newest(logger.warn) if self.resume else None
        if payload is not None and payload["hash"] != logger.record.hash:
            raise UserError(
                f"{logger.folder}: the checkpoint is of another configuration (hash {payload['hash'][:6]}, this one "
                f"{logger.record.hash[:6]}). Choose another exp=…, or move the checkpoints away."
            )
        if self.resume and payload is None:
            logger.warn("There is no checkpoint to go on from; it starts again at step 0.")
            for name in RESULTS:
                (logger.folder / name).unlink(missing_ok=True)
        logger.begin(payload, resume=self.resume)
        return payload

    def metadata(self, classes: list[str] | None) -> dict[str, Any]:
        """What every checkpoint carries beside the training state, so that it can be used without its folder."""
        record = self.logger.record
        return {
            "stage": record.mode,
            "run": record.run,
            "hash": record.hash,
            "config": dict(record.config),
            "choices": dict(record.choices),
            "versions": dict(record.versions),
            "tokenizer": self.tokenizer.to_json(),
            "classes": classes,
        }

"""What a training stage needs, and its steps before the loop: device, record, resume."""

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

# Settings of the hardware that the record lists
SETTINGS = ("compile", "micro_batch", "micro_tokens", "gradient_checkpointing")
RESULTS = ("predictions.parquet", "head.safetensors")  # written at the end of a training; removed when it starts again


@dataclass
class Session:
    """One training: settings, tokenizer, device, logger. `resume`: continue from the last checkpoint.

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
        """Moves the model to its device and fills in the record, `tokens` (the report of the token counts) included.

        Returns the checkpoint to continue from, None for step 0. Raises UserError if it has another configuration.
        """
        seed_everything(self.seed)
        model.to(self.amp.device)
        if self.hardware.compile:
            compile_blocks(model)
        record = self.logger.record
        # `shared` comes from the launcher, `attention_path` from the record of an interrupted run.
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
        """The checkpoint to continue from. Starts the logger: on resume with the rows of the checkpoint, else empty.

        Without a checkpoint a resumed run starts again at step 0. It keeps its W&B id and its history, in which the
        earlier evaluations are marked as withdrawn; earlier results are removed.
        """
        logger = self.logger
        checkpoints = Checkpoints(folder=logger.folder, keep=self.training.keep)
        checkpoint = checkpoints.newest(logger.warn) if self.resume else None
        if checkpoint is not None and checkpoint["hash"] != logger.record.hash:
            raise UserError(
                f"{logger.folder}: the checkpoint is of another configuration (hash {checkpoint['hash'][:6]}, this one "
                f"{logger.record.hash[:6]}). Choose another exp=…, or move the checkpoints away."
            )
        if self.resume and checkpoint is None:
            logger.warn("There is no checkpoint to continue from; the run starts again at step 0.")
            for name in RESULTS:
                (logger.folder / name).unlink(missing_ok=True)
        logger.begin(checkpoint, resume=self.resume)
        return checkpoint

    def metadata(self, classes: list[str] | None) -> dict[str, Any]:
        """What every checkpoint contains besides the training state, so that it can be used without its folder."""
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

"""mode=pretrain: masked language modelling on the training text, validated on masks that never change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Callable

from torch import Tensor, nn

from xcls.config.schema import Hardware, Masking, Training, UserError
from xcls.data.batching import MaskedBatches, evaluation_batches
from xcls.data.masking import IGNORED
from xcls.data.tokenizer import TextTokenizer
from xcls.model.heads import MaskedLanguageModel
from xcls.runs.record import Record
from xcls.stages.setup import checkpoint_metadata, load_resume_checkpoint, setup_device
from xcls.stages.texts import LanguageData, note_data
from xcls.train.loop import Loop, Scores
from xcls.train.precision import Precision
from xcls.train.randomness import seed_everything
from xcls.train.run_logger import RunLogger
from xcls.train.scoring import masked_loss
from xcls.train.stream import Batch, Stream, width_multiple

VALIDATION_SEED = 0  # the validation masks of every run are the same, whatever its seed
MOST_SEEDS = 100  # that are tried for them


def mlm_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The sum of the losses of the chosen tokens, scalar fp32."""
    return model(batch["input_ids"], batch["attention_mask"], batch["rows"], batch["targets"])


def with_chosen_tokens(maker: MaskedBatches, *, batch_size: int) -> MaskedBatches:
    """Validation batches whose masks choose a token at least: of few short documents the first masks may choose none.

    The seed is the first from the maker's own on that does. Raises UserError where no token can be chosen.
    """
    plan = evaluation_batches(maker.encoded.lengths, batch_size=batch_size)
    for seed in range(maker.seed, maker.seed + MOST_SEEDS):
        found = replace(maker, seed=seed)
        if any(bool((found.build(rows, 0)["labels"] != IGNORED).any()) for rows in plan):
            return found
    raise UserError(
        f"masking.probability={maker.masking.probability}: no token of the {len(maker.encoded)} validation documents "
        "is chosen. Raise dataset.validation, or choose another tokenizer where all of the text is [UNK]."
    )


def pretrain(
    *,
    model: MaskedLanguageModel,
    data: LanguageData,
    tokenizer: TextTokenizer,
    masking: Masking,
    training: Training,
    hardware: Hardware,
    precision: Precision,
    seed: int,
    logger: RunLogger,
    resume: bool,
) -> Record:
    """Trains `model` and leaves checkpoints with encoder, head and tokenizer. Call it within `with logger:`.

    Selection is by validation loss. Raises Interrupted, BadNumbers, OutOfMemory, UserError.
    """
    seed_everything(seed)
    amp = setup_device(model, hardware=hardware, precision=precision, logger=logger)
    note_data(logger, data)
    common: dict[str, Any] = {
        "masking": masking,
        "vocab_size": tokenizer.vocab_size,
        "continues": tokenizer.continues,
        "multiple": width_multiple(model.encoder.seq_len, compiled=hardware.compile),
    }
    held_out = MaskedBatches(encoded=data.validation, seed=VALIDATION_SEED, **common)
    held_out = with_chosen_tokens(held_out, batch_size=training.eval_batch_size)
    stream = Stream(
        maker=MaskedBatches(encoded=data.train, seed=seed, **common),
        lengths=data.train.lengths,
        batch_size=training.batch_size,
        seed=seed,
        group_by_length=training.group_by_length,
    )

    def evaluate(poll: Callable[[], None]) -> Scores:
        size = training.eval_batch_size
        return {"val_loss": masked_loss(model, held_out, data.validation.lengths, batch_size=size, amp=amp, poll=poll)}

    payload = load_resume_checkpoint(logger, resume=resume, keep=training.keep)
    loop = Loop(
        model=model,
        loss=mlm_loss,
        stream=stream,
        evaluate=evaluate,
        training=training,
        amp=amp,
        logger=logger,
        extras=checkpoint_metadata(logger, stage="pretrain", tokenizer=tokenizer.to_json(), classes=None),
    )
    loop.run(payload)
    return logger.record

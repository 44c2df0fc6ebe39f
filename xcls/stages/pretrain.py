"""mode=pretrain: masked language modelling on the training text, validated on masks that never change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Callable

from torch import Tensor, nn

from xcls.config.schema import Masking, UserError
from xcls.data.batching import MaskedBatches, evaluation_batches
from xcls.data.masking import IGNORED
from xcls.model.heads import MaskedLanguageModel
from xcls.runs.record import Record
from xcls.stages.texts import LanguageData
from xcls.train.loop import Loop
from xcls.train.metrics import Scores
from xcls.train.scoring import masked_loss
from xcls.train.session import Session
from xcls.train.stream import Batch

VALIDATION_SEED = 0  # the validation masks of every run are the same, whatever its seed
MOST_SEEDS = 100  # seeds that are tried for the validation masks


def mlm_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The sum of the losses of the chosen tokens, scalar fp32."""
    return model(batch["input_ids"], batch["attention_mask"], batch["rows"], batch["targets"])


def with_chosen_tokens(collator: MaskedBatches, *, batch_size: int) -> MaskedBatches:
    """A collator whose masks choose at least one validation token: with few short documents they may choose none.

    Takes the first seed from the collator's own on that chooses one. Raises UserError if no seed does.
    """
    plan = evaluation_batches(collator.encoded.lengths, batch_size=batch_size)
    for seed in range(collator.seed, collator.seed + MOST_SEEDS):
        found = replace(collator, seed=seed)
        if any(bool((found.build(rows, 0)["labels"] != IGNORED).any()) for rows in plan):
            return found
    raise UserError(
        f"masking.probability={collator.masking.probability}: no token of the {len(collator.encoded)} validation "
        "documents is chosen. Raise dataset.validation, or choose another tokenizer if all of the text becomes [UNK]."
    )


def pretrain(*, model: MaskedLanguageModel, data: LanguageData, masking: Masking, session: Session) -> Record:
    """Trains `model` and leaves checkpoints with encoder, head and tokenizer. Call it within `with logger:`.

    Selection is by validation loss. Raises Interrupted, BadNumbers, OutOfMemory, UserError.
    """
    size = session.training.eval_batch_size
    common: dict[str, Any] = {
        "masking": masking,
        "vocab_size": session.tokenizer.vocab_size,
        "continues": session.tokenizer.continues,
        "multiple": session.width_multiple(model.encoder.seq_len),
    }
    held_out = MaskedBatches(encoded=data.validation, seed=VALIDATION_SEED, **common)
    held_out = with_chosen_tokens(held_out, batch_size=size)

    def evaluate(poll: Callable[[], None]) -> Scores:
        return {"val_loss": masked_loss(model, held_out, batch_size=size, amp=session.amp, poll=poll)}

    collator = MaskedBatches(encoded=data.train, seed=session.seed, **common)
    checkpoint = session.begin(model, tokens=data.report, warnings=data.warnings)
    Loop(session, model, loss=mlm_loss, collator=collator, evaluate=evaluate).run(checkpoint)
    return session.logger.record

"""One of our trainings in the bench: the suite's own loop, as a run has it, but for evaluations and checkpoints.

Letters: B batch, N tokens, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from xcls.bench.make import make
from xcls.bench.training_meter import BACKWARD, DATA, FORWARD, REST, Meter
from xcls.bench.training_plan import Contender, Recipe
from xcls.config.schema import Wandb
from xcls.data.batching import Batches, ClassBatches, MaskedBatches
from xcls.data.encode import Encoded
from xcls.model.encoder import Encoder
from xcls.model.heads import Classifier, MaskedLanguageModel, MLMHead, TextClassifier
from xcls.runs.record import Record
from xcls.train.amp import Amp, compile_blocks
from xcls.train.loop import Loop, Scores
from xcls.train.precision import Precision
from xcls.train.randomness import seed_everything
from xcls.train.run_logger import RunLogger
from xcls.train.stream import Batch, Stream, width_multiple

ENDLESS = 10**9  # steps: the bench says when it is enough


def make_encoder(recipe: Recipe, contender: Contender) -> Encoder:
    """The encoder of the run's size with the contender's attention and position."""
    size = recipe.size
    heads = {"num_heads": size.num_heads, "head_dim": size.width // size.num_heads}
    sizes = {**heads, "embed_dim": size.width, "num_layers": size.num_layers, "seq_len": recipe.seq_len}
    return Encoder(
        vocab_size=recipe.texts.vocab_size,
        seq_len=recipe.seq_len,
        num_layers=size.num_layers,
        embed_dim=size.width,
        num_heads=size.num_heads,
        feed_forward=size.feed_forward,
        norm=size.norm,
        activation=size.activation,
        dropout=size.dropout,
        position=make(contender.position_node, sizes),
        make_attention=lambda layer: make(contender.node, {**heads, "layer": layer, "seed": recipe.seed}),
        gradient_checkpointing=recipe.hardware.gradient_checkpointing,
    )


def make_classifier(encoder: Encoder, recipe: Recipe) -> TextClassifier:
    """The classifier on `encoder`."""
    classes, head = recipe.texts.num_classes, recipe.head
    made = Classifier(embed_dim=recipe.size.width, num_classes=classes, pooling=head.pooling, dropout=head.dropout)
    return TextClassifier(encoder=encoder, head=made)


def make_language_model(encoder: Encoder, recipe: Recipe) -> MaskedLanguageModel:
    """The masked language model on `encoder`."""
    return MaskedLanguageModel(
        encoder=encoder, head=MLMHead(embed_dim=recipe.size.width, vocab_size=recipe.texts.vocab_size)
    )


def class_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The sum of the cross-entropies, as in fine-tuning: logits [B, C] -> scalar."""
    logits = model(batch["input_ids"], batch["attention_mask"])
    return F.cross_entropy(logits.float(), batch["labels"], reduction="sum")


def masked_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The sum of the losses of the chosen tokens, as in pretraining: scalar."""
    return model(batch["input_ids"], batch["attention_mask"], batch["rows"], batch["targets"])


def no_scores(poll: Callable[[], None]) -> Scores:
    """The evaluation of a training that has none."""
    return {"val_loss": None}


def class_batches(recipe: Recipe, encoded: Encoded, labels: np.ndarray, continues: np.ndarray) -> Batches:
    """What builds the batches of fine-tuning."""
    return ClassBatches(encoded=encoded, labels=labels, multiple=_multiple(recipe))


def masked_batches(recipe: Recipe, encoded: Encoded, labels: np.ndarray, continues: np.ndarray) -> Batches:
    """What builds the batches of pretraining."""
    return MaskedBatches(
        encoded=encoded,
        masking=recipe.masking,
        seed=recipe.seed,
        vocab_size=recipe.texts.vocab_size,
        continues=continues,
        multiple=_multiple(recipe),
    )


def _multiple(recipe: Recipe) -> int:
    """What widths are rounded up to: nothing, as in other trainings, unless each costs the compiler its time."""
    return width_multiple(recipe.seq_len, compiled=True) if recipe.compile else 1


STAGES = {
    "finetune": (make_classifier, class_loss, class_batches),
    "pretrain": (make_language_model, masked_loss, masked_batches),
}


@dataclass
class Timed:
    """Builds batches on the meter's clock."""

    maker: Batches
    meter: Meter

    def build(self, indices: np.ndarray, epoch: int) -> dict[str, Tensor]:
        """The batch of these rows: tensors [B, N] and [B]."""
        self.meter.enter(DATA)
        batch = self.maker.build(indices, epoch)
        self.meter.enter(REST)
        return batch


def train(recipe: Recipe, contender: Contender, meter: Meter, folder: Path, ready: Callable[[nn.Module], None]) -> None:
    """Trains until the meter raises Enough. `folder`: what a run leaves behind; ready(model) comes before any step."""
    make_model, loss, make_batches = STAGES[recipe.stage]
    seed_everything(recipe.seed)
    meter.start_memory()
    hardware = replace(recipe.hardware, compile=recipe.compile)
    amp = Amp(precision=Precision(recipe.device, recipe.dtype), hardware=hardware)
    model = make_model(make_encoder(recipe, contender), recipe).to(amp.device)
    if recipe.compile:
        compile_blocks(model)
    encoded, labels, continues = recipe.texts.read()
    maker = make_batches(recipe, encoded, labels, continues)
    in_here = recipe.hardware.workers == 0 and recipe.device == "cpu"  # built ahead, it costs a step only waiting

    def timed_loss(network: nn.Module, batch: Batch) -> Tensor:
        meter.batch(batch["input_ids"], batch["attention_mask"])
        meter.enter(FORWARD)
        value = loss(network, batch)
        meter.enter(BACKWARD)
        return value

    training = replace(
        recipe.training,
        max_steps=ENDLESS,
        eval_every_steps=None,
        eval_every_epochs=None,
        checkpoint_every_steps=None,
        checkpoint_every_epochs=None,
        checkpoint_every_minutes=None,
    )
    stream = Stream(
        maker=Timed(maker, meter) if in_here else maker,
        lengths=encoded.lengths,
        batch_size=training.batch_size,
        seed=recipe.seed,
        group_by_length=contender.grouped,
    )
    record = Record(run="bench", mode="bench", status="running", hash="", seed=recipe.seed, seq_len=recipe.seq_len)
    with RunLogger(folder=folder, record=record, wandb=Wandb(mode="disabled")) as journal:
        loop = Loop(
            model=model,
            loss=timed_loss,
            stream=stream,
            evaluate=no_scores,
            training=training,
            seed=recipe.seed,
            amp=amp,
            hardware=hardware,
            journal=journal,
            extras={},
        )
        meter.watch(model, loop.optimizer, recipe.steps)
        ready(model)
        meter.begin()
        loop.run(None)

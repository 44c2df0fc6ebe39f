"""Evaluation of a whole split: fixed batches sorted by length, results put back in order. Two calls are bit-equal."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch

from xcls.data.batching import Batches, evaluation_batches
from xcls.model.heads import MaskedLanguageModel, TextClassifier
from xcls.train.amp import Amp
from xcls.train.stream import on_device, real_and_padded


def no_poll() -> None:
    """For callers that nobody interrupts."""


@dataclass
class Inference:
    """Logits [rows, C] in fp32, in the order of the rows, and the time of all batches but the first, a warm-up."""

    logits: np.ndarray
    seconds: float
    examples: int
    tokens: int

    def costs(self) -> dict[str, float | None]:
        """Throughput and time per example (ms) at the batch size of the evaluation; None when one batch was all."""
        if not self.examples or self.seconds <= 0:
            return dict.fromkeys(("inference_examples_per_s", "inference_ms_per_example", "inference_tokens_per_s"))
        return {
            "inference_examples_per_s": self.examples / self.seconds,
            "inference_ms_per_example": 1000 * self.seconds / self.examples,
            "inference_tokens_per_s": self.tokens / self.seconds,
        }


@torch.no_grad()
def classify(
    model: TextClassifier,
    maker: Batches,
    lengths: np.ndarray,
    *,
    batch_size: int,
    amp: Amp,
    poll: Callable[[], None] = no_poll,
) -> Inference:
    """Logits of every row, by a model in evaluation mode. `poll` runs between batches and may raise to stop."""
    model.eval()
    logits = np.zeros((len(lengths), model.head.linear.out_features), np.float32)
    result = Inference(logits=logits, seconds=0.0, examples=0, tokens=0)
    for number, rows in enumerate(evaluation_batches(lengths, batch_size=batch_size)):
        poll()
        batch = maker.build(rows, 0)
        tokens, _ = real_and_padded(batch, None)
        began = time.perf_counter()
        for micro in on_device(batch, None, amp):
            with amp.autocast():
                out = model(micro["input_ids"], micro["attention_mask"])
            logits[rows] = out.float().cpu().numpy()  # waits for the device
        if number:
            result.seconds += time.perf_counter() - began
            result.examples += len(rows)
            result.tokens += tokens
    return result


@torch.no_grad()
def masked_loss(
    model: MaskedLanguageModel,
    maker: Batches,
    lengths: np.ndarray,
    *,
    batch_size: int,
    amp: Amp,
    poll: Callable[[], None] = no_poll,
) -> float | None:
    """Mean loss (nats) over the chosen tokens of every row, with the masks of epoch 0; None where none was chosen."""
    model.eval()
    total, count = 0.0, 0
    for rows in evaluation_batches(lengths, batch_size=batch_size):
        poll()
        for micro in on_device(maker.build(rows, 0), None, amp):
            with amp.autocast():
                loss, terms = model(micro["input_ids"], micro["attention_mask"], micro["labels"])
            total += float(loss)
            count += terms
    return total / count if count else None

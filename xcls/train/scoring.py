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
from xcls.train.cost import compiled_graphs
from xcls.train.faults import memory_errors
from xcls.train.stream import Batch, on_device, real_and_padded


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
        with memory_errors(lambda: _sizes(batch, "finetuning", amp)):
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
def latency(
    model: TextClassifier, maker: Batches, lengths: np.ndarray, *, amp: Amp, most: int = 100, seconds: float = 5.0
) -> dict[str, float | None]:
    """Time from token ids to logits of one document at a time, ms: its median and 95th percentile.

    Over at most `most` documents of all lengths, warmed up by the longest; after `seconds` five are enough. A call in
    which a graph was compiled does not count.
    """
    model.eval()
    rows = np.argsort(lengths, kind="stable")[np.linspace(0, len(lengths) - 1, min(most, len(lengths))).astype(int)]
    times, start = [], time.perf_counter()
    for row in (rows[-1], *np.random.default_rng(0).permutation(rows)):
        graphs, began = compiled_graphs(), time.perf_counter()
        for micro in on_device(maker.build(np.asarray([row]), 0), None, amp):
            with amp.autocast():
                out = model(micro["input_ids"], micro["attention_mask"])
            out.float().cpu()  # waits for the device
        if compiled_graphs() == graphs:
            times.append(1000 * (time.perf_counter() - began))
        if len(times) > 5 and time.perf_counter() - start > seconds:
            break
    if len(times) < 2:
        return dict.fromkeys(("latency_ms", "latency_p95_ms"))
    return {"latency_ms": float(np.median(times[1:])), "latency_p95_ms": float(np.quantile(times[1:], 0.95))}


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
        batch = maker.build(rows, 0)
        with memory_errors(lambda: _sizes(batch, "pretraining", amp)):
            for micro in on_device(batch, None, amp):
                with amp.autocast():
                    loss, terms = model(micro["input_ids"], micro["attention_mask"], micro["labels"])
                total += float(loss)
                count += terms
    return total / count if count else None


def _sizes(batch: Batch, stage: str, amp: Amp) -> str:
    """The sizes behind a memory that an evaluation has exhausted, and the way out."""
    rows, longest = batch["input_ids"].shape
    remedy = f"{stage}.eval_batch_size={(rows + 1) // 2} (same results)" if rows > 1 else "a smaller seq_len"
    where = f"{amp.precision.dtype} on {amp.precision.device}"
    return f"evaluation, {rows} rows at once, longest sequence {longest} tokens, {where}. Set {remedy}."

"""Evaluation of a whole split: fixed batches sorted by length, results put back in order. Two calls are bit-equal."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Callable, Iterator, TypeVar

import numpy as np
import torch

from xcls.data.batching import Batches, count_terms, evaluation_batches
from xcls.model.heads import MaskedLanguageModel, TextClassifier
from xcls.train.amp import Amp
from xcls.train.cost import compiled_graphs
from xcls.train.faults import OutOfMemory, free_memory, memory_errors
from xcls.train.progress import progress_bar
from xcls.train.stream import Batch, on_device, real_and_padded, rows_at_once

Result = TypeVar("Result")


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


class _InParts:
    """Batches of an evaluation in the parts that the hardware allows; with on_oom=halve in ever smaller ones where
    memory runs out. What comes out depends on neither."""

    def __init__(self, stage: str, amp: Amp) -> None:
        self.stage, self.amp = stage, amp
        self.most: int | None = None  # rows at once, where memory has run out with more

    def run(self, batch: Batch, use: Callable[[Batch], Result]) -> list[Result]:
        """use(part) of every part of `batch`, on the device and under autocast. Raises OutOfMemory."""
        while True:
            size = rows_at_once(batch, self.most, tokens=self.amp.hardware.micro_tokens)
            try:
                with memory_errors(partial(_sizes, batch, size, self.stage, self.amp)), self.amp.autocast():
                    return [use(part) for part in on_device(batch, size, self.amp)]
            except OutOfMemory:
                rows = min(size or len(batch["input_ids"]), len(batch["input_ids"]))
                if self.amp.hardware.on_oom != "halve" or rows == 1:
                    raise
                self.most = (rows + 1) // 2
            free_memory()  # only here, after `except`: the error has kept the attempt's tensors alive


@torch.no_grad()
def classify(
    model: TextClassifier, maker: Batches, *, batch_size: int, amp: Amp, poll: Callable[[], None] = no_poll
) -> Inference:
    """Logits of every row, by a model in evaluation mode. `poll` runs between batches and may raise to stop."""
    model.eval()
    logits = np.zeros((len(maker.encoded), model.head.linear.out_features), np.float32)
    result = Inference(logits=logits, seconds=0.0, examples=0, tokens=0)
    parts = _InParts("finetuning", amp)

    def outputs(part: Batch) -> np.ndarray:
        return model(part["input_ids"], part["attention_mask"]).float().cpu().numpy()  # waits for the device

    for number, rows in enumerate(_shown(maker, batch_size)):
        poll()
        batch = maker.build(rows, 0)
        tokens, _ = real_and_padded(batch, None)
        began = time.perf_counter()
        logits[rows] = np.concatenate(parts.run(batch, outputs))
        if number:
            result.seconds += time.perf_counter() - began
            result.examples += len(rows)
            result.tokens += tokens
    return result


@torch.no_grad()
def latency(
    model: TextClassifier, maker: Batches, *, amp: Amp, most: int = 100, seconds: float = 5.0
) -> dict[str, float | None]:
    """Time from token ids to logits of one document at a time, ms: its median and 95th percentile.

    Over at most `most` documents of all lengths, warmed up by the longest; after `seconds` five are enough. A call in
    which a graph was compiled does not count.
    """
    model.eval()
    lengths = maker.encoded.lengths
    rows = np.argsort(lengths, kind="stable")[np.linspace(0, len(lengths) - 1, min(most, len(lengths))).astype(int)]
    times, start = [], time.perf_counter()
    for row in (rows[-1], *np.random.default_rng(0).permutation(rows)):
        graphs, began = compiled_graphs(), time.perf_counter()
        for micro in on_device(maker.build(np.asarray([row]), 0), None, amp):
            with amp.autocast():
                out = model(micro["input_ids"], micro["attention_mask"])
            out.float().cpu()  # waits for the device
        if compiled_graphs() == graphs:
            times.append(time.perf_counter() - began)
        if len(times) > 5 and time.perf_counter() - start > seconds:
            break
    return latency_costs(times)


def latency_costs(times: list[float]) -> dict[str, float | None]:
    """Median and 95th percentile in ms, of seconds of which the first was a warm-up; None without others."""
    if len(times) < 2:
        return dict.fromkeys(("latency_ms", "latency_p95_ms"))
    return {f"latency{name}_ms": 1000 * float(np.quantile(times[1:], q)) for name, q in (("", 0.5), ("_p95", 0.95))}


@torch.no_grad()
def masked_loss(
    model: MaskedLanguageModel, maker: Batches, *, batch_size: int, amp: Amp, poll: Callable[[], None] = no_poll
) -> float | None:
    """Mean loss (nats) over the chosen tokens of every row, with the masks of epoch 0; None where none was chosen."""
    model.eval()
    total, count = 0.0, 0
    parts = _InParts("pretraining", amp)

    def losses(part: Batch) -> float:
        return float(model(part["input_ids"], part["attention_mask"], part["rows"], part["targets"]))

    for rows in _shown(maker, batch_size):
        poll()
        batch = maker.build(rows, 0)
        for loss in parts.run(batch, losses):
            total += loss
        count += count_terms(batch["labels"])
    return total / count if count else None


def _shown(maker: Batches, batch_size: int) -> Iterator[np.ndarray]:
    """The rows of every batch, with a bar for the user who waits for them."""
    with progress_bar(total=len(maker.encoded), desc="evaluating", unit="row") as bar:
        for rows in evaluation_batches(maker.encoded.lengths, batch_size=batch_size):
            yield rows
            bar.update(len(rows))


def _sizes(batch: Batch, size: int | None, stage: str, amp: Amp) -> str:
    """The sizes behind a memory that an evaluation has exhausted, and the way out."""
    rows, longest = batch["input_ids"].shape
    rows = min(size or rows, rows)
    remedy = f"{stage}.eval_batch_size={(rows + 1) // 2} (same results)" if rows > 1 else "a smaller seq_len"
    where = f"{amp.precision.dtype} on {amp.precision.device}"
    return f"evaluation, {rows} rows at once, longest sequence {longest} tokens, {where}. Set {remedy}."

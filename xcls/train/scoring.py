"""Evaluation of a whole split in fixed batches, sorted by length; results in row order, bit-equal in every call."""

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
    """For callers that need no interruption."""


@dataclass
class Inference:
    """Logits [rows, C] in fp32, in row order, and the time of all batches but the first, which is the warm-up."""

    logits: np.ndarray
    seconds: float
    examples: int
    tokens: int

    def costs(self) -> dict[str, float | None]:
        """Throughput and time per example (ms) at the batch size of the evaluation; None for a single batch."""
        if not self.examples or self.seconds <= 0:
            return dict.fromkeys(("inference_examples_per_s", "inference_ms_per_example", "inference_tokens_per_s"))
        return {
            "inference_examples_per_s": self.examples / self.seconds,
            "inference_ms_per_example": 1000 * self.seconds / self.examples,
            "inference_tokens_per_s": self.tokens / self.seconds,
        }


class _InParts:
    """Runs evaluation batches in parts of `micro_tokens`; with on_oom=halve it halves the parts when memory runs out.
    The results do not depend on the parts."""

    def __init__(self, stage: str, amp: Amp) -> None:
        self.stage, self.amp = stage, amp
        self.most: int | None = None  # rows at once; set after memory ran out with more

    def run(self, batch: Batch, use: Callable[[Batch], Result]) -> list[Result]:
        """The results of use(part) for every part of `batch`, on the device and under autocast. Raises OutOfMemory."""
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
            free_memory()  # only after `except`: the error keeps the tensors of the attempt alive


@torch.no_grad()
def classify(
    model: TextClassifier, collator: Batches, *, batch_size: int, amp: Amp, poll: Callable[[], None] = no_poll
) -> Inference:
    """Logits of every row, with the model in evaluation mode. `poll` runs between batches and may raise to stop."""
    model.eval()
    logits = np.zeros((len(collator.encoded), model.head.linear.out_features), np.float32)
    result = Inference(logits=logits, seconds=0.0, examples=0, tokens=0)
    parts = _InParts("finetuning", amp)

    def outputs(part: Batch) -> np.ndarray:
        return model(part["input_ids"], part["attention_mask"]).float().cpu().numpy()  # waits for the device

    for number, rows in enumerate(_shown(collator, batch_size)):
        poll()
        batch = collator.build(rows, 0)
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
    model: TextClassifier, collator: Batches, *, amp: Amp, most: int = 100, seconds: float = 5.0
) -> dict[str, float | None]:
    """Time from token ids to logits of one document at a time, ms: its median and 95th percentile.

    Measures at most `most` documents of all lengths, after a warm-up with the longest. After `seconds` it stops once it
    has five. A call that compiles a graph does not count.
    """
    model.eval()
    lengths = collator.encoded.lengths
    rows = np.argsort(lengths, kind="stable")[np.linspace(0, len(lengths) - 1, min(most, len(lengths))).astype(int)]
    times, start = [], time.perf_counter()
    for row in (rows[-1], *np.random.default_rng(0).permutation(rows)):
        graphs, began = compiled_graphs(), time.perf_counter()
        for micro in on_device(collator.build(np.asarray([row]), 0), None, amp):
            with amp.autocast():
                out = model(micro["input_ids"], micro["attention_mask"])
            out.float().cpu()  # waits for the device
        if compiled_graphs() == graphs:
            times.append(time.perf_counter() - began)
        if len(times) > 5 and time.perf_counter() - start > seconds:
            break
    return latency_costs(times)


def latency_costs(times: list[float]) -> dict[str, float | None]:
    """Median and 95th percentile in ms of `times` in seconds, without the first (warm-up); None if no other."""
    if len(times) < 2:
        return dict.fromkeys(("latency_ms", "latency_p95_ms"))
    return {f"latency{name}_ms": 1000 * float(np.quantile(times[1:], q)) for name, q in (("", 0.5), ("_p95", 0.95))}


@torch.no_grad()
def masked_loss(
    model: MaskedLanguageModel, collator: Batches, *, batch_size: int, amp: Amp, poll: Callable[[], None] = no_poll
) -> float | None:
    """Mean loss (nats) over the chosen tokens of every row, with the masks of epoch 0; None if no token was chosen."""
    model.eval()
    total, count = 0.0, 0
    parts = _InParts("pretraining", amp)

    def losses(part: Batch) -> float:
        return float(model(part["input_ids"], part["attention_mask"], part["rows"], part["targets"]))

    for rows in _shown(collator, batch_size):
        poll()
        batch = collator.build(rows, 0)
        for loss in parts.run(batch, losses):
            total += loss
        count += count_terms(batch["labels"])
    return total / count if count else None


def _shown(collator: Batches, batch_size: int) -> Iterator[np.ndarray]:
    """The rows of every batch, with a progress bar."""
    with progress_bar(total=len(collator.encoded), desc="evaluating", unit="row") as bar:
        for rows in evaluation_batches(collator.encoded.lengths, batch_size=batch_size):
            yield rows
            bar.update(len(rows))


def _sizes(batch: Batch, size: int | None, stage: str, amp: Amp) -> str:
    """The sizes of an evaluation that ran out of memory, and the remedy."""
    rows, longest = batch["input_ids"].shape
    rows = min(size or rows, rows)
    remedy = f"{stage}.eval_batch_size={(rows + 1) // 2} (same results)" if rows > 1 else "a smaller seq_len"
    where = f"{amp.precision.dtype} on {amp.precision.device}"
    return f"evaluation, {rows} rows at once, longest sequence {longest} tokens, {where}. Set {remedy}."

"""The order of training: which rows form which batch, and batches built ahead of the step that needs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from xcls.data.batching import Batches, Pass, batches, micro_batches
from xcls.train.amp import Amp, to_device

Batch = dict[str, Tensor]
MULTIPLE = 8  # widths of batches: ever new ones cost kernels and fragment memory, and GPUs like eights


def width_multiple(seq_len: int) -> int:
    """What a batch's width is rounded up to, for a maker: 1 where rounding could pass `seq_len`."""
    return MULTIPLE if seq_len % MULTIPLE == 0 else 1


@dataclass(frozen=True)
class Stream:
    """A stage's training data, without state: its order is a function of (seed, epoch), a batch one of (rows, epoch).

    `maker` builds batches of rows whose token counts are `lengths` [D]; `ids` are their stable names, for messages.
    """

    maker: Batches
    lengths: np.ndarray
    batch_size: int
    seed: int
    group_by_length: bool
    ids: Sequence[str] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Effective batches per epoch; the last may be smaller."""
        return -(-len(self.lengths) // self.batch_size)

    def order(self, epoch: int) -> list[np.ndarray]:
        """The rows of every effective batch of an epoch."""
        return batches(
            self.lengths,
            batch_size=self.batch_size,
            seed=self.seed,
            epoch=epoch,
            group_by_length=self.group_by_length,
        )

    def names(self, rows: Sequence[int]) -> list[str]:
        """The stable ids of rows; `row 7` where they have none."""
        return [f"row {row}" if self.ids is None else str(self.ids[row]) for row in rows]


def batches_from(stream: Stream, *, step: int, total: int, workers: int) -> Iterator[Batch]:
    """The batches of steps `step` … `total`-1, in order, over as many epochs as that takes.

    `workers` processes build them ahead; 0 builds them here. What a batch holds does not depend on it.
    """
    while step < total:
        epoch, done = divmod(step, stream.steps_per_epoch)
        plan = stream.order(epoch)[: done + total - step]
        rest = Pass(maker=stream.maker, plan=plan, epoch=epoch, start=done)
        if workers == 0:
            yield from (rest[item] for item in range(len(rest)))
        else:
            generator = torch.Generator().manual_seed(0)  # else the loader would draw its seed from the model's stream
            yield from DataLoader(rest, batch_size=None, num_workers=workers, generator=generator)
        step += len(rest)


def on_device(batch: Batch, size: int | None, amp: Amp) -> Iterator[dict[str, Tensor | None]]:
    """The micro-batches of at most `size` rows on the device; `attention_mask` is None where nothing is padded."""
    for micro in micro_batches(batch, size, multiple=MULTIPLE):
        if bool(micro["attention_mask"].all()):
            micro["attention_mask"] = None
        yield {name: to_device(tensor, amp.device) for name, tensor in micro.items()}


def real_and_padded(batch: Batch, size: int | None) -> tuple[int, int]:
    """Numbers of real tokens and of computed positions of a batch on the CPU, in micro-batches of `size` rows."""
    lengths, width = batch["attention_mask"].sum(1), batch["input_ids"].shape[1]
    parts = lengths.split(size or len(lengths))
    widths = [min(-(-int(part.max()) // MULTIPLE) * MULTIPLE, width) for part in parts]
    return int(lengths.sum()), sum(wide * len(part) for wide, part in zip(widths, parts))

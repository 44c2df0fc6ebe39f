"""The order of the training data: which rows form which batch. Batches are built before the step that needs them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import FrameType
from typing import Any, Generator, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from xcls.config.schema import Hardware
from xcls.data.batching import Batches, Pass, batches, micro_batches
from xcls.train.amp import Amp, to_device
from xcls.train.signals import NAMES

Batch = dict[str, Tensor]
LINGER = 60  # seconds that a worker lives after a signal, unless its parent ends it
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
MULTIPLE = 8  # batch widths are multiples of it: fewer kernels, less fragmented memory, aligned to GPU tiles
COMPILED_WIDTHS = 4  # at most: every width takes compilation time


def width_multiple(seq_len: int, *, compiled: bool = False) -> int:
    """The number that batch widths are rounded up to a multiple of: a divisor of `seq_len`, so never above `seq_len`.

    `compiled`: chosen so that there are at most COMPILED_WIDTHS widths, since each width needs its own graphs.
    """
    if compiled:
        return next(part for part in range(-(-seq_len // COMPILED_WIDTHS), seq_len + 1) if seq_len % part == 0)
    return MULTIPLE if seq_len % MULTIPLE == 0 else 1


@dataclass(frozen=True)
class Stream:
    """A stage's training data, without state: (seed, epoch) give the order, (rows, epoch) give a batch.

    `collator` builds the batches; `ids` are the stable names of its rows, for messages.
    """

    collator: Batches
    batch_size: int
    seed: int
    group_by_length: bool
    ids: Sequence[str] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Effective batches per epoch; the last may be smaller."""
        return -(-len(self.collator.encoded) // self.batch_size)

    def order(self, epoch: int) -> list[np.ndarray]:
        """The row numbers of every effective batch of an epoch."""
        return batches(
            self.collator.encoded.lengths,
            batch_size=self.batch_size,
            seed=self.seed,
            epoch=epoch,
            group_by_length=self.group_by_length,
        )

    def names(self, rows: Sequence[int]) -> list[str]:
        """The stable ids of rows; `row 7` if they have none."""
        return [f"row {row}" if self.ids is None else str(self.ids[row]) for row in rows]


def batches_from(
    stream: Stream, *, step: int, total: int, workers: int, device: str = "cpu"
) -> Generator[Batch, None, None]:
    """The batches of steps `step` … `total`-1, in order, over as many epochs as needed.

    `workers` processes build them in advance; with 0 workers this process does, for CUDA in a thread. For CUDA they are
    in pinned memory, so that copies do not block. The content of a batch does not depend on this.
    """
    pinned = device == "cuda"
    if pinned and workers == 0:
        here = batches_from(stream, step=step, total=total, workers=0)
        yield from ahead({name: tensor.pin_memory() for name, tensor in batch.items()} for batch in here)
        return
    while step < total:
        epoch, done = divmod(step, stream.steps_per_epoch)
        plan = stream.order(epoch)[: done + total - step]
        rest = Pass(collator=stream.collator, plan=plan, epoch=epoch, start=done)
        if workers == 0:
            yield from (rest[item] for item in range(len(rest)))
        else:
            # Else the loader would draw its seed from torch's global generator
            generator = torch.Generator().manual_seed(0)
            yield from DataLoader(
                rest,
                batch_size=None,
                generator=generator,
                num_workers=workers,
                worker_init_fn=_begin_worker,
                pin_memory=pinned,
            )
        step += len(rest)


def ahead(batches: Iterator[Batch], depth: int = 2) -> Generator[Batch, None, None]:
    """`batches`; a thread builds up to `depth` in advance, passes on its errors and ends with this generator."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="xcls-batches")
    try:
        built = deque(pool.submit(next, batches, None) for _ in range(depth))
        while (batch := built.popleft().result()) is not None:
            built.append(pool.submit(next, batches, None))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def _linger(number: int, frame: FrameType | None) -> None:
    """Signal handler: the first signal starts a timer of LINGER seconds, the second ends the process."""
    if signal.alarm(LINGER):
        os._exit(1)


def _begin_worker(number: int) -> None:
    """Sets when a worker ends: together with its parent, since it would keep the parent's locks otherwise. A signal to
    the whole process group ends it only after LINGER seconds, because the parent needs it for the current step."""
    for name in NAMES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _linger)
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def rows_at_once(batch: Batch, *limits: int | None, tokens: int | None) -> int | None:
    """The number of rows of `batch` that are computed at once, for `on_device`; None: all of them.

    At most each of `limits`, and at most `tokens` tokens in total, padding included, but at least one row.
    """
    sizes = [limit for limit in limits if limit is not None]
    if tokens is not None:
        sizes.append(max(1, tokens // batch["input_ids"].shape[1]))
    return min(sizes, default=None)


def on_device(batch: Batch, size: int | None, amp: Amp) -> Iterator[Batch]:
    """The micro-batches of at most `size` rows (`micro_batches`) on the device; `index` stays on the CPU."""
    for micro in micro_batches(batch, size, multiple=trimming(batch, amp.hardware)):
        moved: dict[str, Any] = {
            name: tensor if name == "index" else to_device(tensor, amp.device) for name, tensor in micro.items()
        }
        if amp.hardware.compile and "rows" in moved:  # a copy loses this mark
            torch._dynamo.maybe_mark_dynamic(moved["rows"], 0)  # else every number of chosen tokens needs its own graph
        yield moved


def trimming(batch: Batch, hardware: Hardware) -> int:
    """The multiple for the widths of micro-batches; if compiled the width of the batch, for which a graph exists."""
    return batch["input_ids"].shape[1] if hardware.compile else MULTIPLE


def real_and_padded(batch: Batch, size: int | None, multiple: int = MULTIPLE) -> tuple[int, int]:
    """(real tokens, computed positions) of a batch on the CPU, in micro-batches of `size` rows whose widths are
    rounded up to a multiple of `multiple`."""
    lengths, width = batch["attention_mask"].sum(1), batch["input_ids"].shape[1]
    parts = lengths.split(size or len(lengths))
    widths = [min(-(-int(part.max()) // multiple) * multiple, width) for part in parts]
    return int(lengths.sum()), sum(wide * len(part) for wide, part in zip(widths, parts))

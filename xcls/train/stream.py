"""The order of training: which rows form which batch, and batches built ahead of the step that needs them."""

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
LINGER = 60  # seconds that a worker outlives a signal, if nobody sends it home
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
MULTIPLE = 8  # widths of batches: ever new ones cost kernels and fragment memory, and GPUs like eights
COMPILED_WIDTHS = 4  # at most: each costs the compiler its time


def width_multiple(seq_len: int, *, compiled: bool = False) -> int:
    """What a batch's width is rounded up to, for a maker: a divisor of `seq_len`, which rounding then never passes.

    `compiled`: so that there are at most COMPILED_WIDTHS widths, each of which gets graphs of its own.
    """
    if compiled:
        return next(part for part in range(-(-seq_len // COMPILED_WIDTHS), seq_len + 1) if seq_len % part == 0)
    return MULTIPLE if seq_len % MULTIPLE == 0 else 1


@dataclass(frozen=True)
class Stream:
    """A stage's training data, without state: its order is a function of (seed, epoch), a batch one of (rows, epoch).

    `maker` builds the batches; `ids` are the stable names of its rows, for messages.
    """

    maker: Batches
    batch_size: int
    seed: int
    group_by_length: bool
    ids: Sequence[str] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Effective batches per epoch; the last may be smaller."""
        return -(-len(self.maker.encoded) // self.batch_size)

    def order(self, epoch: int) -> list[np.ndarray]:
        """The rows of every effective batch of an epoch."""
        return batches(
            self.maker.encoded.lengths,
            batch_size=self.batch_size,
            seed=self.seed,
            epoch=epoch,
            group_by_length=self.group_by_length,
        )

    def names(self, rows: Sequence[int]) -> list[str]:
        """The stable ids of rows; `row 7` where they have none."""
        return [f"row {row}" if self.ids is None else str(self.ids[row]) for row in rows]


def batches_from(
    stream: Stream, *, step: int, total: int, workers: int, device: str = "cpu"
) -> Generator[Batch, None, None]:
    """The batches of steps `step` … `total`-1, in order, over as many epochs as that takes.

    `workers` processes build them ahead; with 0 they are built here, for CUDA by a thread, ahead too. For CUDA they lie
    in pinned memory, from which copies need no waiting. What a batch holds depends on none of this.
    """
    pinned = device == "cuda"
    if pinned and workers == 0:
        here = batches_from(stream, step=step, total=total, workers=0)
        yield from ahead({name: tensor.pin_memory() for name, tensor in batch.items()} for batch in here)
        return
    while step < total:
        epoch, done = divmod(step, stream.steps_per_epoch)
        plan = stream.order(epoch)[: done + total - step]
        rest = Pass(maker=stream.maker, plan=plan, epoch=epoch, start=done)
        if workers == 0:
            yield from (rest[item] for item in range(len(rest)))
        else:
            generator = torch.Generator().manual_seed(0)  # else the loader would draw its seed from the model's stream
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
    """`batches`, up to `depth` of them built ahead by a thread that ends with this generator; its errors come here."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="xcls-batches")
    try:
        built = deque(pool.submit(next, batches, None) for _ in range(depth))
        while (batch := built.popleft().result()) is not None:
            built.append(pool.submit(next, batches, None))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def _linger(number: int, frame: FrameType | None) -> None:
    """The first signal sets the time, the second ends the process."""
    if signal.alarm(LINGER):
        os._exit(1)


def _begin_worker(number: int) -> None:
    """How a worker dies: with its parent, whose locks and folder it would else hold for seconds; but not of a signal to
    the whole group, while the parent still needs it for the step under way. Then it goes a while later."""
    for name in NAMES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _linger)
    with contextlib.suppress(OSError, AttributeError):  # Linux alone knows it
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def rows_at_once(batch: Batch, *limits: int | None, tokens: int | None) -> int | None:
    """How many rows of `batch` go through at once, for `on_device`; None: all of them.

    No more than any of `limits`, and than have so many `tokens` together, padding included (one row at least).
    """
    sizes = [limit for limit in limits if limit is not None]
    if tokens is not None:
        sizes.append(max(1, tokens // batch["input_ids"].shape[1]))
    return min(sizes, default=None)


def on_device(batch: Batch, size: int | None, amp: Amp) -> Iterator[Batch]:
    """The micro-batches of at most `size` rows (`micro_batches`) on the device; `index` stays here."""
    for micro in micro_batches(batch, size, multiple=trimming(batch, amp.hardware)):
        moved: dict[str, Any] = {
            name: tensor if name == "index" else to_device(tensor, amp.device) for name, tensor in micro.items()
        }
        if amp.hardware.compile and "rows" in moved:  # a copy does not keep the mark
            torch._dynamo.maybe_mark_dynamic(moved["rows"], 0)  # else every number of chosen tokens costs a graph
        yield moved


def trimming(batch: Batch, hardware: Hardware) -> int:
    """What the widths of micro-batches are rounded up to: compiled, they keep the batch's, which has a graph."""
    return batch["input_ids"].shape[1] if hardware.compile else MULTIPLE


def real_and_padded(batch: Batch, size: int | None, multiple: int = MULTIPLE) -> tuple[int, int]:
    """Numbers of real tokens and of computed positions of a batch on the CPU, in micro-batches of `size` rows whose
    widths are rounded up to a `multiple`."""
    lengths, width = batch["attention_mask"].sum(1), batch["input_ids"].shape[1]
    parts = lengths.split(size or len(lengths))
    widths = [min(-(-int(part.max()) // multiple) * multiple, width) for part in parts]
    return int(lengths.sum()), sum(wide * len(part) for wide, part in zip(widths, parts))

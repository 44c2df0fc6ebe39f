"""Batches as functions of (seed, epoch): the examples of each batch, and its tensors.

Nothing here has a state; so a resumed run, or one with another number of workers, makes the same batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from xcls.config.schema import Masking
from xcls.data.draws import permutation
from xcls.data.encode import Encoded
from xcls.data.masking import IGNORED, mask_tokens

ROWS = 64  # the number of MLM rows is rounded up to a multiple: new sizes cost compiled kernels and fragment memory
POOL = 50  # batches whose examples are sorted by length together
_ORDER, _GROUPS = 1, 2  # so that the two permutations of an epoch differ


def batches(
    lengths: np.ndarray, *, batch_size: int, seed: int, epoch: int, group_by_length: bool = True
) -> list[np.ndarray]:
    """The batches of an epoch, each int64 [<= batch_size] of positions; every position occurs once.

    Grouped by length: shuffled pools of 50 batches are sorted by length and cut into batches, which are shuffled again;
    so there is little padding, and the order is still random. One batch may be smaller, at any place.
    """
    order = permutation(len(lengths), [seed, epoch, _ORDER])
    if not group_by_length:
        return _cut(order, batch_size)
    made: list[np.ndarray] = []
    for pool in _cut(order, POOL * batch_size):
        made += _cut(pool[np.argsort(-np.asarray(lengths)[pool], kind="stable")], batch_size)
    return [made[i] for i in permutation(len(made), [seed, epoch, _GROUPS])]


def evaluation_batches(lengths: np.ndarray, *, batch_size: int) -> list[np.ndarray]:
    """Every position once, the longest first, so that a lack of memory shows at once."""
    return _cut(np.argsort(-np.asarray(lengths), kind="stable"), batch_size)


def _cut(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def pad(rows: Sequence[np.ndarray], *, length: int | None = None, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(ids int64 [B, N], real bool [B, N]) of token ids [n_i].

    N is the longest row's length, or `length` (static padding), rounded up to a `multiple`.
    """
    counts = np.array([len(row) for row in rows], np.int64)
    longest = max(int(counts.max(initial=1)), 1) if length is None else length
    longest = -(-longest // multiple) * multiple
    real = np.arange(longest)[None] < counts[:, None]
    ids = np.zeros((len(rows), longest), np.int64)
    ids[real] = np.concatenate(rows) if len(rows) else 0
    return ids, real


def micro_batches(
    batch: dict[str, torch.Tensor], size: int | None, *, multiple: int = 1
) -> list[dict[str, torch.Tensor | None]]:
    """Splits a batch into parts of at most `size` rows (None: one part), each trimmed to its own longest row
    (rounded up to a `multiple`). Tensors that are not [B, N] stay as they are.

    `attention_mask` becomes None where nothing is padded, and the `labels` [B, N] of MLM become `rows` and `targets`
    (`chosen_rows`). This is done on the CPU, so that the model does not have to wait for its device.
    """
    count, width = batch["input_ids"].shape
    parts: list[dict[str, torch.Tensor | None]] = []
    for start in range(0, count, size or max(count, 1)):
        part: dict[str, Any] = {name: tensor[start : start + (size or count)] for name, tensor in batch.items()}
        longest = max(int(part["attention_mask"].sum(1).max()), 1)
        longest = min(-(-longest // multiple) * multiple, width)
        for name, tensor in part.items():
            if tensor.ndim == 2 and tensor.shape[1] == width:
                part[name] = tensor[:, :longest].contiguous()
        if bool(part["attention_mask"].all()):
            part["attention_mask"] = None
        if part["labels"].ndim == 2:
            part["rows"], part["targets"] = chosen_rows(part.pop("labels"))
        parts.append(part)
    return parts


def chosen_rows(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows int64 [K], targets int64 [K]) of labels [B, N]: the numbers and ids of the chosen among B * N tokens.

    K is rounded up to a multiple of ROWS, at least ROWS, by entries that do not count: row 0, target IGNORED.
    """
    flat = labels.flatten()
    rows = (flat != IGNORED).nonzero().squeeze(1)
    filler = -len(rows) % ROWS if len(rows) else ROWS  # never 0 rows: torch.compile would compile that case separately
    targets = torch.nn.functional.pad(flat[rows], (0, filler), value=IGNORED)
    return torch.nn.functional.pad(rows, (0, filler)), targets


def count_terms(labels: torch.Tensor) -> int:
    """How many of the labels or targets [...] count: those other than IGNORED."""
    return int((labels != IGNORED).sum())


class Batches(Protocol):
    """Makes batches of the examples of `encoded`."""

    encoded: Encoded

    def build(self, indices: np.ndarray, epoch: int) -> dict[str, torch.Tensor]:
        """`input_ids` int64 [B, N], `attention_mask` bool [B, N] (True = real), `labels` int64, `index` int64 [B]."""


@dataclass
class ClassBatches:
    """Batches to classify: `labels` [B]. `multiple` rounds N up; `static` pads to a fixed N instead of the longest."""

    encoded: Encoded
    labels: np.ndarray
    multiple: int = 1
    static: int | None = None

    def build(self, indices: np.ndarray, epoch: int = 0) -> dict[str, torch.Tensor]:
        """The batch of these rows; the epoch does not matter."""
        ids, real = pad([self.encoded[row] for row in indices], length=self.static, multiple=self.multiple)
        return _tensors(ids, real, np.asarray(self.labels, np.int64)[indices], indices)


@dataclass
class MaskedBatches:
    """Batches for MLM: `labels` [B, N] hold the id of each chosen token and -100 elsewhere."""

    encoded: Encoded
    masking: Masking
    seed: int
    vocab_size: int
    continues: np.ndarray | None = None
    multiple: int = 1
    static: int | None = None

    def build(self, indices: np.ndarray, epoch: int) -> dict[str, torch.Tensor]:
        """The batch of these rows, with the masks of this epoch."""
        ids, real = pad([self.encoded[row] for row in indices], length=self.static, multiple=self.multiple)
        ids, labels = mask_tokens(
            ids,
            index=indices,
            seed=self.seed,
            epoch=epoch,
            masking=self.masking,
            vocab_size=self.vocab_size,
            continues=self.continues,
        )
        return _tensors(ids, real, labels, indices)


def _tensors(ids: np.ndarray, real: np.ndarray, labels: np.ndarray, index: np.ndarray) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(real),
        "labels": torch.from_numpy(labels),
        "index": torch.from_numpy(np.array(index, np.int64)),
    }


class Pass(Dataset):
    """One epoch, from batch number `start` on, for `DataLoader(Pass(…), batch_size=None, num_workers=…)`."""

    def __init__(self, *, collator: Batches, plan: list[np.ndarray], epoch: int, start: int = 0) -> None:
        self.collator, self.plan, self.epoch, self.start = collator, plan, epoch, start

    def __len__(self) -> int:
        return max(len(self.plan) - self.start, 0)

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        """The batch `step` batches after `start`."""
        if not 0 <= step < len(self):
            raise IndexError(step)
        return self.collator.build(self.plan[self.start + step], self.epoch)

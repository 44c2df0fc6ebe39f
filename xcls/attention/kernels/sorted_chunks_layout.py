"""The place of each token of sorted chunks in the lists that `sorted_chunks_blocks.py` works on.

The tokens of all sequences are rows of one list, row (b N + n) H + h, the order in which the projections write them.
The list of slots holds, example after example, the chunks of its heads and then `before + after` spare (empty) chunks.
So the window of a chunk is a view of that list, and no window holds real tokens of two examples.
Letters: B batch, H heads, N tokens, D head dimension, R hash rounds, C slots of a chunk, K slots of a window, S slots
of a sequence, rows = B N H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xcls.attention.sorted_chunks import Chunks


def as_rows(x: Tensor) -> Tensor:
    """[B, H, N, D] -> [B N H, D], a view if x is the output of a projection."""
    return x.transpose(1, 2).reshape(-1, x.shape[-1])


class Side(NamedTuple):
    """The places of queries, or of keys.

    take: [R, slots], the row in each slot; an empty slot names a row of its own sequence, a spare one any row. For keys
        [R, before C + slots + after C]: their list has more spare chunks at both ends.
    give: [R, rows], the slot of each row in the list of `take`; padding tokens name any slot.
    chunk: [R, rows], each row's chunk within its sequence.
    """

    take: Tensor
    give: Tensor
    chunk: Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """The place of each token. The list of slots has `per_example` chunks per example: `real` ones, then spare ones.

    filled: bool [slots], whether the slot holds a real token: the same in all rounds, for queries and for keys.
    all_filled: whether all slots are known to be filled.
    """

    batch: int
    heads: int
    length: int
    size: int
    before: int
    after: int
    real: int
    q: Side
    k: Side
    filled: Tensor
    all_filled: bool

    @property
    def rounds(self) -> int:
        """R."""
        return self.q.take.shape[0]

    @property
    def span(self) -> int:
        """K, the slots that a query sees."""
        return (self.before + 1 + self.after) * self.size

    @property
    def per_example(self) -> int:
        """Chunks of an example, including the spare ones."""
        return self.real + self.before + self.after

    def open_slots(self) -> Tensor:
        """Whether each slot of a window holds a real token of the chunk's own sequence: bool [all chunks, K]."""
        chunks = self.filled.view(self.batch, self.per_example, self.size)
        spare = chunks[:, self.real :]
        chunks = chunks[:, : self.real].unflatten(1, (self.heads, -1))  # [B, H, chunks of a sequence, C]
        seen = F.pad(chunks, (0, 0, self.before, self.after)).unfold(2, self.before + 1 + self.after, 1)
        seen = seen.transpose(3, 4).flatten(3).flatten(1, 2)  # [B, real, K]
        return torch.cat((seen, spare.new_zeros(self.batch, spare.shape[1], self.span)), dim=1).flatten(0, 1)

    def spare_chunks(self) -> tuple[Tensor, list[int]]:
        """The numbers of the spare chunks in the list of keys, in order: a tensor on the device, and a Python list."""
        chunks, reach = self.batch * self.per_example, self.before + self.after
        if not reach:
            return self.filled.new_empty(0, dtype=torch.int64), []
        device, ends = self.filled.device, (self.before, self.before + chunks)
        first = [self.before + example * self.per_example + self.real for example in range(self.batch)]
        host = [n for start in first for n in range(start, start + reach)]
        host = [*range(ends[0]), *host, *range(ends[1], ends[1] + self.after)]
        start = torch.arange(self.batch, device=device)[:, None] * self.per_example + self.before + self.real
        between = (start + torch.arange(reach, device=device)).flatten()
        front, behind = torch.arange(self.before, device=device), torch.arange(self.after, device=device) + ends[1]
        return torch.cat((front, between, behind)), host


@torch.no_grad()
def lay_out(chunks: Chunks, batch: int, heads: int) -> Layout:
    """The lists of slots for `chunks`."""
    length, size, number = chunks.length, chunks.size, chunks.number
    before, after = (min(reach, number - 1) for reach in (chunks.before, chunks.after))  # a chunk has no more beside it
    real, spare = heads * number, before + after
    ends = (before * size, after * size)
    device = chunks.q_order.device
    example = torch.arange(batch, device=device)[:, None, None, None]
    head = torch.arange(heads, device=device)[:, None, None]

    def side(order: Tensor, ends: tuple[int, int]) -> Side:
        row = (example * length + chunks.token_in_slot(order)) * heads + head  # [B, H, R, S]
        row = F.pad(row.transpose(0, 2).transpose(1, 2).flatten(2), (0, spare * size))  # [R, B, (real + spare) C]
        slot = chunks.slot_of_token(order)  # [B, H, R, N]
        place = slot + (example * (real + spare) + head * number) * size + ends[0]
        give, chunk = (x.permute(2, 0, 3, 1).flatten(1) for x in (place, slot // size))
        return Side(F.pad(row.flatten(1), ends), give, chunk)

    k = side(chunks.k_order, ends)
    slots = batch * (real + spare) * size
    if chunks.q_order is chunks.k_order:
        q = Side(k.take[:, ends[0] : ends[0] + slots], k.give - ends[0], k.chunk)
    else:
        q = side(chunks.q_order, (0, 0))
    filled = chunks.rank_in_slot[1][:, None].expand(batch, heads, -1).flatten(1)
    filled = F.pad(filled, (0, spare * size)).flatten()
    all_filled = chunks.count is None and length % size == 0 and spare == 0
    return Layout(batch, heads, length, size, before, after, real, q, k, filled, all_filled)

"""Sorted tokens cut into chunks: where each token goes in each round, as query and as key.

All mechanisms that sort tokens and attend chunk-wise (LSH, SMYRF) share this. Tokens of all sequences are the rows of
one list, row (b N + n) H + h, which is how the projections leave them in memory. Chunks of all sequences lie one
behind the other in a list of slots. Letters: B batch, H heads, N tokens, R rounds, C slots of a chunk, G = B x H
sequences, rows = B N H, T = G x chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where each token goes. A query sees the keys of its own chunk, of `before` chunks before it and `after` behind.

    q_take: [R, slots], the row in each slot; a slot without a token of its own names row 0.
    k_take: [R, (before + T + after) C], the same for keys; the list has spare chunks at both ends.
    q_give, k_give: [R, rows], the slot of each row in the lists of q_take and k_take; pads name any slot.
    q_chunk, k_chunk: [R, rows], each row's chunk within its sequence.
    filled: bool [slots], whether the slot holds a real token: the same in all rounds, for queries and for keys.
    all_filled: whether that is known to be so everywhere.
    """

    batch: int
    heads: int
    length: int
    size: int
    before: int
    after: int
    q_take: Tensor
    k_take: Tensor
    q_give: Tensor
    k_give: Tensor
    q_chunk: Tensor
    k_chunk: Tensor
    filled: Tensor
    all_filled: bool

    @property
    def rounds(self) -> int:
        """R."""
        return self.q_take.shape[0]

    @property
    def span(self) -> int:
        """K, the slots that a query sees."""
        return (self.before + 1 + self.after) * self.size

    def open_slots(self) -> Tensor:
        """Whether a chunk may attend to each slot it sees, a real token of its own sequence: bool [T, K]."""
        chunks = self.filled.view(self.batch * self.heads, -1, self.size)  # [G, chunks, C]
        chunks = F.pad(chunks, (0, 0, self.before, self.after))
        seen = chunks.unfold(1, self.before + 1 + self.after, 1)  # [G, chunks, C, before + 1 + after]
        return seen.transpose(2, 3).reshape(-1, self.span)


def as_rows(x: Tensor) -> Tensor:
    """[B, H, N, D] -> [B N H, D], a view if x is one of the projections' output."""
    return x.transpose(1, 2).reshape(-1, x.shape[-1])


def from_rows(x: Tensor, batch: int, heads: int) -> Tensor:
    """[B N H, D] -> [B, H, N, D], a view."""
    return x.view(batch, -1, heads, x.shape[-1]).transpose(1, 2)


def real_tokens(key_padding_mask: Tensor | None, heads: int) -> Tensor | None:
    """How many tokens of each sequence are no pads: bool [B, N] -> [G, 1]; None without a mask."""
    if key_padding_mask is None:
        return None
    return (~key_padding_mask).sum(dim=-1, keepdim=True).repeat_interleave(heads, dim=0)


@torch.no_grad()
def lay_out(
    q_order: Tensor,
    k_order: Tensor,
    shape: tuple[int, int, int],
    *,
    key_padding_mask: Tensor | None,
    size: int,
    before: int = 0,
    after: int = 0,
    balanced: bool = False,
) -> Layout:
    """Cut sorted rows into chunks: q_order and k_order [R, G, N], each sequence's rows sorted, pads last -> Layout.

    shape: (B, H, N). A chunk has `size` tokens, the last one what is left; `balanced` spreads the tokens evenly over
    as many chunks instead, so that sizes differ by one at the most. Where a token goes depends on real tokens alone.
    """
    batch, heads, length = shape
    device, sequences, chunks = q_order.device, batch * heads, -(-length // size)
    rank = torch.arange(length, device=device)
    count = real_tokens(key_padding_mask, heads)
    if balanced:
        tokens = torch.tensor([[length]], device=device) if count is None else count.clamp(min=1)
        parts = (tokens + size - 1) // size
        chunk = rank * parts // tokens
        inside = rank - (chunk * tokens + parts - 1) // parts
    else:
        chunk, inside = (rank // size)[None], (rank % size)[None]
    slots = sequences * chunks * size
    first = torch.arange(sequences, device=device)[:, None] * (chunks * size)
    slot = first + chunk * size + inside  # [G, N]
    if count is not None:
        slot = torch.where(rank < count, slot, slots)  # pads: a slot behind all others, cut off below
    slot, chunk = slot.flatten(), chunk.expand(sequences, -1).flatten()
    ends = (before * size, after * size)

    def side(order: Tensor, ends: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        order = order.flatten(1)
        where, number = slot.expand_as(order), chunk.expand_as(order)
        take = order.new_zeros(len(order), slots + 1).scatter_(1, where, order)[:, :-1]
        give = torch.empty_like(order).scatter_(1, order, where.clamp(max=slots - 1) + ends[0])
        return F.pad(take, ends), give, torch.empty_like(order).scatter_(1, order, number)

    k_take, k_give, k_chunk = side(k_order, ends)
    if q_order is k_order:
        q_take, q_give, q_chunk = k_take[:, ends[0] : ends[0] + slots], k_give - ends[0], k_chunk
    else:
        q_take, q_give, q_chunk = side(q_order, (0, 0))
    filled = torch.zeros(slots + 1, dtype=torch.bool, device=device).index_fill_(0, slot, True)[:-1]
    return Layout(
        batch, heads, length, size, before, after, q_take, k_take, q_give, k_give, q_chunk, k_chunk, filled,
        all_filled=count is None and length % size == 0,
    )  # fmt: skip

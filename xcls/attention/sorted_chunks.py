"""Attention within chunks of sorted tokens, in several rounds; shared by LSH and SMYRF.

Each hash round sorts the tokens of a sequence and cuts them into chunks; a query attends to the keys of its own chunk
and of some chunks beside it, its window. The result is one softmax over the union of the windows of all rounds.
Letters: B batch, H heads, N tokens, F and D dimensions of keys and of values, R hash rounds, T chunks of a sequence, C
slots of a chunk, K slots of a window, S = T C. The rank of a token is its place in the order of a round. A slot without
a real token is empty.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from xcls.attention.base import Masks, full_dtype
from xcls.attention.kernels import is_compiling

SELF = -1e30  # the logit of a token for itself with avoid_self: it counts only where every other one is BLOCKED
BLOCKED = -1e37  # finite, so that a row with only blocked entries gives no NaN


def real_tokens(masks: Masks) -> Tensor | None:
    """The number of real tokens of each example, int32 [B], counted once per forward pass; None without padding."""
    pads = masks.padding
    return None if pads is None else masks.once("real tokens", lambda: (~pads).sum(dim=-1, dtype=torch.int32))


@dataclass(frozen=True, eq=False)
class Chunks:
    """Which chunk each token is in, in each round, as a query and as a key.

    q_order, k_order: [B, H, R, N], the positions of each round in sorted order, padding last; the same object if
    queries and keys have one order. count: [B], the real tokens of each example, or None where all are real.
    size: C. before, after: chunks on each side that a query sees besides its own.
    balanced: spread the tokens of a sequence evenly over the smallest number of chunks, so that sizes differ by one at
        most; otherwise all chunks but the last are full. The chunk of a token depends only on the real tokens.
    """

    q_order: Tensor
    k_order: Tensor
    count: Tensor | None
    size: int
    before: int = 0
    after: int = 0
    balanced: bool = False

    @property
    def length(self) -> int:
        """N."""
        return self.q_order.shape[-1]

    @property
    def number(self) -> int:
        """T."""
        return -(-self.length // self.size)

    @property
    def _sizes(self) -> tuple[Tensor, Tensor]:
        """The real tokens of each example and its chunks, [B|1, 1] each, at least 1."""
        if self.count is None:
            tokens = torch.full((1, 1), self.length, device=self.q_order.device)  # no copy that waits
        else:
            tokens = self.count.clamp(min=1)[:, None].long()
        return tokens, (tokens + self.size - 1) // self.size

    @property
    def rank_in_slot(self) -> tuple[Tensor, Tensor]:
        """The rank in each slot, [B|1, S] (any rank if it is empty), and whether it is filled, bool [B|1, S]."""
        slot = torch.arange(self.number * self.size, device=self.q_order.device)[None]
        count = self.length if self.count is None else self.count[:, None]
        if not self.balanced:
            return slot.clamp(max=self.length - 1), slot < count
        tokens, parts = self._sizes
        chunk = slot // self.size
        first, end = ((number * tokens + parts - 1) // parts for number in (chunk, chunk + 1))  # ranks of the chunk
        rank = first + slot % self.size
        return rank.clamp(max=self.length - 1), (rank < end) & (rank < count)

    @property
    def slot_of_rank(self) -> Tensor:
        """The slot of each rank, [B|1, N]; any slot for padding."""
        rank = torch.arange(self.length, device=self.q_order.device)[None]
        if not self.balanced:
            return rank
        tokens, parts = self._sizes
        chunk = rank * parts // tokens
        slot = chunk * self.size + rank - (chunk * tokens + parts - 1) // parts
        return slot.clamp(max=self.number * self.size - 1)

    def token_in_slot(self, order: Tensor) -> Tensor:
        """The position in each slot, [B, H, R, S], by q_order or k_order; an empty slot names any of its sequence."""
        rank = self.rank_in_slot[0]
        if len(rank) == 1:
            return order.long()[..., rank[0]]
        return order.long().gather(-1, rank[:, None, None].expand(*order.shape[:3], -1))

    def slot_of_token(self, order: Tensor) -> Tensor:
        """The slot of each token, [B, H, R, N], by q_order or k_order; any slot for padding."""
        slot = self.slot_of_rank[:, None, None].expand(order.shape)
        return torch.empty_like(slot, memory_format=torch.contiguous_format).scatter_(-1, order.long(), slot)

    def windows(self, x: Tensor) -> Tensor:
        """The window of each chunk: x [.., T, C, F] -> [.., T, K, F], zeros beyond the ends of the sequence."""
        if not self.before and not self.after:
            return x
        chunks, size = x.shape[-3:-1]
        flat = F.pad(x.flatten(-3, -2), (0, 0, self.before * size, self.after * size))
        return flat.unfold(-2, (self.before + 1 + self.after) * size, size).transpose(-1, -2)


def attend(
    q: Tensor, k: Tensor, v: Tensor, chunks: Chunks, masks: Masks, *, scale: float = 1.0, avoid_self: bool = False
) -> Tensor:
    """Softmax of scale q.k over the union of all rounds' windows: q, k [B, H, N, F], v [B, H, N, D] -> [B, H, N, D].

    A key met in several rounds counts once. avoid_self: a token attends to itself only where nothing else is allowed.
    Products in the dtype of q, k, v, softmax in fp32 at least. Rows with nothing to attend to are zero; those of
    padding are finite.
    """
    from xcls.attention.kernels.sorted_chunks_blocks import attend_in_blocks

    run = attend_plainly if is_compiling() else attend_in_blocks
    return run(q, k, v, chunks, masks, scale=scale, avoid_self=avoid_self)


def attend_plainly(
    q: Tensor, k: Tensor, v: Tensor, chunks: Chunks, masks: Masks, *, scale: float = 1.0, avoid_self: bool = False
) -> Tensor:
    """`attend` written out, all chunks at once.

    The logit of a key met in n rounds is lowered by log n in each; so it counts once when the rounds are merged by
    their normalisers.
    """
    cut = (chunks.number, chunks.size)
    query, key = chunks.token_in_slot(chunks.q_order), chunks.token_in_slot(chunks.k_order)  # [B, H, R, S]
    queries = take(q[:, :, None], query).unflatten(3, cut)  # [B, H, R, T, C, F]
    keys, values = (chunks.windows(take(x[:, :, None], key).unflatten(3, cut)) for x in (k, v))  # [B, H, R, T, K, F]
    query = query.unflatten(3, cut)[..., None]  # [B, H, R, T, C, 1]
    key = chunks.windows(key.unflatten(3, cut)[..., None]).transpose(-1, -2)  # [B, H, R, T, 1, K]
    filled = chunks.rank_in_slot[1].unflatten(1, cut)[:, None, None, ..., None]  # [B|1, 1, 1, T, C, 1]
    blocked = ~chunks.windows(filled).transpose(-1, -2)  # [B|1, 1, 1, T, 1, K]

    logits = (queries @ keys.transpose(-1, -2)).to(full_dtype(q)) * scale  # [B, H, R, T, C, K]
    if masks.bias is not None:
        window, head = masks.bias.shape[-1] // 2, torch.arange(q.shape[1], device=q.device).view(-1, 1, 1, 1, 1)
        logits = logits + masks.bias[head, (key - query).clamp(-window, window) + window]
    if query.shape[2] > 1:
        logits = logits - times_met(chunks, query, key).clamp(min=1).to(logits.dtype).log()  # empty slots meet no query
    if avoid_self:
        logits = logits.masked_fill(query == key, SELF)
    if masks.pairs is not None:
        example, head = (
            torch.arange(n, device=q.device).view(-1, *[1] * dims) for n, dims in zip(masks.pairs.shape, (5, 4))
        )
        blocked = blocked | masks.pairs[example, head, query, key]
    logits = logits.masked_fill(blocked, BLOCKED)

    outs = torch.softmax(logits, dim=-1).to(v.dtype) @ values  # [B, H, R, T, C, D]
    slot = chunks.slot_of_token(chunks.q_order)
    outs = take(outs.flatten(3, 4), slot)  # [B, H, R, N, D]
    norms = torch.logsumexp(logits, dim=-1).flatten(3, 4).gather(-1, slot)  # [B, H, R, N]
    nothing = (norms < BLOCKED / 2).all(dim=2, keepdim=True)
    shares = torch.softmax(norms, dim=2).masked_fill(nothing, 0.0)
    return (outs * shares[..., None]).sum(dim=2).to(v.dtype)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [B, H, 1|R, N, F] in another order: index [B, H, R, M] -> [B, H, R, M, F]."""
    wide = index[..., None].expand(*index.shape, x.shape[-1])
    return x.expand(-1, -1, index.shape[2], -1, -1).gather(3, wide)


def times_met(chunks: Chunks, query: Tensor, key: Tensor) -> Tensor:
    """In how many rounds the pairs of query [B, H, R, T, C, 1] and key [B, H, R, T, 1, K] meet: [B, H, R, T, C, K]."""
    q_chunk = chunks.slot_of_token(chunks.q_order) // chunks.size  # [B, H, R, N]
    k_chunk = chunks.slot_of_token(chunks.k_order) // chunks.size
    times = torch.zeros((), dtype=torch.int64, device=query.device)
    for number in range(query.shape[2]):
        at_query, at_key = (
            chunk[:, :, number : number + 1]
            .expand(-1, -1, query.shape[2], -1)
            .gather(-1, place.flatten(3))
            .view_as(place)
            for chunk, place in ((q_chunk, query), (k_chunk, key))
        )
        apart = at_key - at_query
        times = times + ((apart >= -chunks.before) & (apart <= chunks.after))
    return times

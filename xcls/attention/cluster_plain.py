"""Attention within chunks of sorted tokens, several rounds united: the readable version, all chunks at once.

`cluster_fast.py` computes the same in blocks. Letters: B batch, H heads, N tokens, D head width, R rounds, C slots of
a chunk, K slots that a query sees, T all chunks of all sequences, rows = B N H, W window of the relative bias.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xcls.attention.base import full_dtype
from xcls.attention.cluster_layout import Layout

ITSELF = -1e30  # a token's logit for itself: it counts only where every other one is BLOCKED
BLOCKED = -1e37  # finite, and still so when added up, so that a row of nothing else is no NaN; such rows end as zeros


def plain_clusters(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    attn_mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float = 1.0,
    shun_itself: bool = False,
) -> Tensor:
    """Softmax of scale q.k over the union of all rounds' candidates: q, k, v [rows, D] -> [rows, D].

    A key met in n rounds has log n taken off in each, so the rounds, merged by their normalisers, give each key its
    weight once. attn_mask: bool [1|B, 1|H, N, N]; bias: [H, 2W+1]. shun_itself: a token attends to itself only where
    nothing else is allowed. A row that may attend to nothing is zero.
    """
    window = ChunkPairs(layout)
    outs, norms = [], []
    for number in range(layout.rounds):
        queries, keys = window.queries(q, number), window.keys(k, number)
        logits = (queries @ keys.transpose(1, 2)).to(full_dtype(q)) * scale  # [T, C, K]
        logits = logits - window.times_met(number).clamp(min=1).to(logits.dtype).log()  # empty slots met nobody
        if bias is not None:
            logits = logits + bias.flatten()[window.bias_entries(number, bias.shape[-1])]
        if shun_itself:
            logits = logits.masked_fill(window.same_token(number), ITSELF)
        closed = ~layout.open_slots()[:, None]
        if attn_mask is not None:
            closed = closed | window.blocked(number, attn_mask)
        logits = logits.masked_fill(closed, BLOCKED)
        out = torch.softmax(logits, dim=-1).to(v.dtype) @ window.keys(v, number)
        outs.append(out.flatten(0, 1)[layout.q_give[number]])
        norms.append(torch.logsumexp(logits, dim=-1).flatten()[layout.q_give[number]])
    norm = torch.stack(norms)  # [R, rows]
    share = torch.softmax(norm, dim=0).masked_fill((norm <= BLOCKED / 2).all(dim=0), 0.0)
    return (torch.stack(outs) * share[..., None]).sum(dim=0).to(v.dtype)


class ChunkPairs:
    """The pairs (query, key) that meet in a round, for the chunks `start` to `stop`: who they are.

    T stands for stop - start here.
    """

    def __init__(self, layout: Layout, start: int = 0, stop: int | None = None) -> None:
        """Chunks `start` to `stop`, all of them by default."""
        size = layout.size
        stop = layout.q_take.shape[1] // size if stop is None else stop
        self.layout = layout
        self.own = slice(start * size, stop * size)
        self.seen = slice(start * size, (stop + layout.before + layout.after) * size)

    def chunks(self, slots: Tensor) -> Tensor:
        """[T C, …] -> [T, C, …]."""
        return slots.view(-1, self.layout.size, *slots.shape[1:])

    def windows(self, slots: Tensor) -> Tensor:
        """What each chunk sees: [(before + T + after) C, F] or without F -> [T, K, F] or [T, K]."""
        seen = slots.unfold(0, self.layout.span, self.layout.size)
        return seen.transpose(1, 2) if slots.dim() == 2 else seen

    def queries(self, x: Tensor, number: int) -> Tensor:
        """A round's queries: x [rows, F] -> [T, C, F]."""
        return self.chunks(x.index_select(0, self.layout.q_take[number, self.own]))

    def keys(self, x: Tensor, number: int) -> Tensor:
        """A round's keys as each chunk sees them: x [rows, F] -> [T, K, F], a view of overlapping windows."""
        return self.windows(x.index_select(0, self.layout.k_take[number, self.seen]))

    def times_met(self, number: int) -> Tensor:
        """In how many rounds each pair of this round meets: [T, C, K]."""
        layout, times = self.layout, 0
        for q_chunk, k_chunk in zip(layout.q_chunk, layout.k_chunk):
            queries = self.queries(q_chunk, number)[:, :, None]
            apart = self.keys(k_chunk, number)[:, None] - queries
            times = times + ((apart >= -layout.before) & (apart <= layout.after))
        return times

    def same_token(self, number: int) -> Tensor:
        """Pairs of a token with itself: bool [T, C, K]."""
        queries, keys = self.layout.q_take[number, self.own], self.layout.k_take[number, self.seen]
        return self.chunks(queries)[:, :, None] == self.windows(keys)[:, None]

    def places(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Example, head and position of a round's queries [T, C, 1], and position of its keys [T, 1, K]."""
        heads, length = self.layout.heads, self.layout.length
        queries = self.chunks(self.layout.q_take[number, self.own])[:, :, None]
        keys = self.windows(self.layout.k_take[number, self.seen])[:, None]
        return queries // (heads * length), queries % heads, queries // heads % length, keys // heads % length

    def bias_entries(self, number: int, width: int) -> Tensor:
        """Where a pair's relative bias is in bias.flatten(), bias [H, width = 2W+1]: int32 [T, C, K]."""
        _, head, query, key = self.places(number)
        apart = key.int() - query.int()
        return apart.clamp_(-(width // 2), width // 2).add_((head * width + width // 2).int())

    def blocked(self, number: int, attn_mask: Tensor) -> Tensor:
        """attn_mask [1|B, 1|H, N, N] at a round's pairs: bool [T, C, K]."""
        example, head, query, key = self.places(number)
        return attn_mask[example % attn_mask.shape[0], head % attn_mask.shape[1], query, key]

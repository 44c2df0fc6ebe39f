"""Attention within chunks of sorted tokens, in blocks: small on a CPU, to stay in its cache; large on a GPU, where they
save memory.

`attend_plainly` of xcls/attention/sorted_chunks.py is the readable version. This one keeps neither logits nor sorted
copies for the backward pass: it computes them again, block by block (as Dao et al. 2022 do for whole rows).
The lists of rows and slots are those of `sorted_chunks_layout.py`. Letters: B batch, H heads, N tokens, D head
dimension, R hash rounds, C slots of a chunk, K slots of a window, T chunks of a block, rows = B N H, W window of the
relative bias.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xcls.attention.base import Masks, full_dtype
from xcls.attention.kernels.sorted_chunks_layout import Layout, as_rows, lay_out
from xcls.attention.sorted_chunks import BLOCKED, SELF, Chunks

BLOCK = 2**20  # logits of a block on a CPU, so that they stay in its caches
LARGE_BLOCK = 2**26  # on a GPU, where launches cost more than memory
PART = 2**14  # rows at a time: small buffers stay in the cache and cause no page faults


def attend_in_blocks(
    q: Tensor, k: Tensor, v: Tensor, chunks: Chunks, masks: Masks, *, scale: float = 1.0, avoid_self: bool = False
) -> Tensor:
    """`sorted_chunks.attend`: q, k [B, H, N, F], v [B, H, N, D] -> [B, H, N, D]. No second derivatives.

    Peak memory grows by one list of slots per input and by one block; it does not depend on K.
    """
    batch, heads, length, _ = q.shape
    plan = Plan(lay_out(chunks, batch, heads), full_dtype(q), masks.pairs, scale, avoid_self)
    out = AttendChunks.apply(*(as_rows(x) for x in (q, k, v)), masks.bias, plan)
    return out.view(batch, length, heads, -1).transpose(1, 2)


class Plan:
    """The inputs of `AttendChunks` that have no gradient.

    closed: [all chunks, 1, K], BLOCKED where a slot may not be attended, else 0; None if all slots may be.
    marks: with several rounds, two of [R, rows]: twice the chunk of each query, and of each key, shifted (see `_met`).
    spare: see `Layout.spare_chunks`.
    """

    def __init__(
        self, layout: Layout, dtype: torch.dtype, pairs: Tensor | None, scale: float, avoid_self: bool
    ) -> None:
        """Prepares what all blocks share; dtype is that of the logits."""
        self.layout, self.pairs, self.scale, self.avoid_self = layout, pairs, scale, avoid_self
        self.closed = None if layout.all_filled else (~layout.open_slots()).to(dtype)[:, None].mul_(BLOCKED)
        self.marks: tuple[Any, Any] = None, None
        if layout.rounds > 1:
            kind = torch.int16 if layout.length < 8192 * layout.size else torch.int32  # 2 x chunks and differences fit
            shift = layout.before - layout.after
            self.marks = (2 * layout.q.chunk).to(kind), (2 * layout.k.chunk + shift).to(kind)
        self.spare = layout.spare_chunks()

    def blocks(self) -> list[Block]:
        """All chunks, some at a time."""
        size, chunks = self.layout.size, self.layout.q.take.shape[1] // self.layout.size
        most = BLOCK if self.layout.filled.device.type == "cpu" else LARGE_BLOCK
        step = max(1, most // (size * self.layout.span))
        step = -(-chunks // max(1, round(chunks / step)))  # of equal size, or a small block would be left at the end
        return [Block(self, start, min(start + step, chunks)) for start in range(0, chunks, step)]


class Block:
    """Some consecutive chunks of the list, and the pairs (query, key) in them."""

    def __init__(self, plan: Plan, start: int, stop: int) -> None:
        """Chunks `start` to `stop`."""
        layout = plan.layout
        self.plan, self.layout = plan, layout
        self.own = slice(start * layout.size, stop * layout.size)
        self.seen = slice(start * layout.size, (stop + layout.before + layout.after) * layout.size)
        self.own_spare = self._spare(start + layout.before, stop + layout.before)
        self.seen_spare = self._spare(start, stop + layout.before + layout.after)
        self.closed = None if plan.closed is None else plan.closed[start:stop]

    def _spare(self, start: int, stop: int) -> Tensor | None:
        """The spare ones among the chunks `start` to `stop` of the list of keys, counted from `start`, or None."""
        numbers, host = self.plan.spare
        first, behind = bisect_left(host, start), bisect_left(host, stop)
        return numbers[first:behind] - start if first < behind else None

    def chunks(self, slots: Tensor) -> Tensor:
        """[T C, …] -> [T, C, …]."""
        return slots.view(-1, self.layout.size, *slots.shape[1:])

    def windows(self, slots: Tensor) -> Tensor:
        """The window of each chunk: [(before + T + after) C, F] or without F -> [T, K, F] or [T, K]."""
        seen = slots.unfold(0, self.layout.span, self.layout.size)
        return seen.transpose(1, 2) if slots.dim() == 2 else seen

    def queries(self, x: Tensor, number: int) -> Tensor:
        """The queries of a round: x [rows, F] or [rows] -> [T, C, F] or [T, C], zeros in spare chunks."""
        chunks = self.chunks(x.index_select(0, self.layout.q.take[number, self.own]))
        return chunks if self.own_spare is None else chunks.index_fill_(0, self.own_spare, 0)

    def keys(self, x: Tensor, number: int) -> Tensor:
        """The keys of a round in the window of each chunk: x [rows, F] -> [T, K, F], zeros in spare chunks.

        A view of overlapping windows; in half precision a copy, because products of such views are slow there.
        """
        slots = x.index_select(0, self.layout.k.take[number, self.seen])
        if self.seen_spare is not None:
            self.chunks(slots).index_fill_(0, self.seen_spare, 0)
        keys = self.windows(slots)
        return keys.contiguous() if keys.element_size() == 2 else keys

    def places(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Example, head and position of a round's queries [T, C, 1], and position of its keys [T, 1, K]."""
        heads, length = self.layout.heads, self.layout.length
        queries = self.chunks(self.layout.q.take[number, self.own])[:, :, None]
        keys = self.windows(self.layout.k.take[number, self.seen])[:, None]
        return queries // (heads * length), queries % heads, queries // heads % length, keys // heads % length

    def bias_entries(self, number: int, width: int) -> Tensor:
        """The index of each pair's relative bias in bias.flatten(), bias [H, width = 2W+1]: int32 [T, C, K]."""
        _, head, query, key = self.places(number)
        apart = key.int() - query.int()
        return apart.clamp_(-(width // 2), width // 2).add_((head * width + width // 2).int())

    def blocked(self, number: int, pairs: Tensor) -> Tensor:
        """The entries of pairs [1|B, 1|H, N, N] for the pairs of a round: bool [T, C, K]."""
        example, head, query, key = self.places(number)
        return pairs[example % pairs.shape[0], head % pairs.shape[1], query, key]

    def logits(self, q: Tensor, k: Tensor, number: int, bias: Tensor | None) -> Tensor:
        """scale q.k with bias and masks: q [T, C, D], k [T, K, D] -> [T, C, K] in fp32 at least."""
        plan = self.plan
        logits = torch.bmm(q, k.transpose(1, 2)).to(full_dtype(q))
        if plan.scale != 1.0:
            logits.mul_(plan.scale)
        if bias is not None:
            entries = self.bias_entries(number, bias.shape[-1])
            logits.add_(bias.flatten().index_select(0, entries.flatten()).view_as(logits))
        if self.closed is not None:
            logits.add_(self.closed)
        if number > 0:  # a pair counts in the first round in which it meets
            logits.add_(self._met(number).to(logits.dtype), alpha=-BLOCKED)
        elif plan.avoid_self:
            self._avoid_self(logits)
        if plan.pairs is not None:
            logits.masked_fill_(self.blocked(number, plan.pairs), BLOCKED)
        return logits

    def _avoid_self(self, logits: Tensor) -> None:
        """With one order for queries and keys, slot i of a chunk is slot i + before x C of its window."""
        logits.diagonal(self.layout.before * self.layout.size, 1, 2).fill_(SELF)

    def _met(self, number: int) -> Tensor:
        """-1 where a pair met in an earlier round, else 0: integers [T, C, K].

        A query sees key chunks at distances -before .. after; then |2 distance + before - after| is at most
        before + after. Arithmetic on small integers takes a tenth of the time of comparisons, which make bools.
        """
        least: Any = None
        for q_mark, k_mark in zip(self.plan.marks[0][:number], self.plan.marks[1][:number]):
            queries = self.queries(q_mark, number)[:, :, None]
            seen = k_mark.index_select(0, self.layout.k.take[number, self.seen])
            apart = (self.windows(seen)[:, None] - queries).abs_()
            least = apart if least is None else torch.minimum(least, apart, out=least)
        return least.sub_(self.layout.before + self.layout.after + 1).clamp_(-1, 0)


class AttendChunks(torch.autograd.Function):
    """`attend_in_blocks` on rows, with its gradient."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
        """q, k, v [rows, D], bias [H, 2W+1] -> [rows, D]."""
        out: Any = None
        norm: Any = None
        norms: list[Any] = []
        for number in range(plan.layout.rounds):
            part, part_norm = _round(q, k, v, bias, plan, number)
            norms.append(part_norm)
            out, norm = (part, part_norm) if out is None else _merged(out, norm, part, part_norm)
        share = None
        if norm is not None:  # the weight of each round's softmax in the union; 0 where nothing is allowed
            nothing = norm <= BLOCKED / 2
            share = torch.stack([part - norm for part in norms]).exp_().masked_fill_(nothing, 0.0)
            out = out.masked_fill_(nothing[:, None], 0.0)
        out = out.to(v.dtype)
        ctx.save_for_backward(q, k, v, bias, out, share)
        ctx.plan = plan
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """[rows, D] -> the gradients of q, k, v and bias."""
        q, k, v, bias, out, share = ctx.saved_tensors
        plan, layout = ctx.plan, ctx.plan.layout
        with torch.autocast(q.device.type, enabled=False):
            grad = grad.to(q.dtype)
            # The gradient of a logit is p (grad . v - grad . out), with p and out of the union of all rounds.
            along = _row_products(grad, out)
            grad_bias: Any = None if bias is None else torch.zeros_like(bias, dtype=full_dtype(q))
            totals: list[Tensor] = []
            for number in range(layout.rounds):
                slots = [q.new_empty(layout.q.take.shape[1], q.shape[1])]
                slots += [x.new_zeros(layout.k.take.shape[1], x.shape[1]) for x in (k, v)]
                weight = None if share is None else share[number]
                for block in plan.blocks():
                    _block_gradients(block, number, (q, k, v, bias), (grad, along, weight), (*slots, grad_bias))
                gives = (layout.q.give[number], layout.k.give[number], layout.k.give[number])
                parts = [slot.index_select(0, give) for slot, give in zip(slots, gives)]
                if layout.rounds > 1:
                    parts = [part.to(full_dtype(part)) for part in parts]
                totals = [total.add_(part) for total, part in zip(totals, parts)] if totals else parts
            grads = [total.to(q.dtype) for total in totals]
        return *grads, None if bias is None else grad_bias.to(bias.dtype), None


def _row_products(x: Tensor, y: Tensor) -> Tensor:
    """x and y [rows, D] -> x.y of each row [rows], in fp32 at least, with small buffers."""
    dtype = full_dtype(x)
    step = PART if x.device.type == "cpu" else max(1, len(x))
    return torch.cat([torch.linalg.vecdot(a.to(dtype), b.to(dtype)) for a, b in zip(x.split(step), y.split(step))])


def _round(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, plan: Plan, number: int) -> tuple[Tensor, Any]:
    """One round's softmax over pairs not met before: q, k, v [rows, D] -> (out [rows, D], logsumexp [rows] or None)."""
    layout = plan.layout
    out = v.new_empty(layout.q.take.shape[1], v.shape[1])
    norm = None
    if layout.rounds > 1 or plan.pairs is not None:
        norm = torch.empty(len(out), dtype=full_dtype(q), device=q.device)
    for block in plan.blocks():
        logits = block.logits(block.queries(q, number), block.keys(k, number), number, bias)
        weights = torch.softmax(logits, dim=-1)
        if norm is not None:  # log p = logit - norm, at the largest of a row
            norm[block.own] = (logits.amax(dim=-1) - weights.amax(dim=-1).log_()).flatten()
        out[block.own] = torch.bmm(weights.to(v.dtype), block.keys(v, number)).flatten(0, 1)
    give = layout.q.give[number]
    return out.index_select(0, give), None if norm is None else norm.index_select(0, give)


def _merged(out: Tensor, norm: Tensor, part: Tensor, part_norm: Tensor) -> tuple[Tensor, Tensor]:
    """Two softmaxes over different pairs as one: out and part [rows, D], their norms [rows] -> (out, norm)."""
    both = torch.logaddexp(norm, part_norm)
    out = out.to(norm.dtype).mul_((norm - both).exp_()[:, None])
    return out.addcmul_(part.to(norm.dtype), (part_norm - both).exp_()[:, None]), both


def _block_gradients(
    block: Block,
    number: int,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None],
    grads: tuple[Tensor, Tensor, Tensor | None],
    slots: tuple[Tensor, Tensor, Tensor, Tensor | None],
) -> None:
    """Adds the gradients of (q, k, v, bias) of one block to `slots`.

    grads: the gradient of the output [rows, D], its product with the output [rows], and the weight of the round in each
    row [rows], or None if that is 1.
    """
    (q, k, v, bias), (grad, along, weight), (q_slots, k_slots, v_slots, grad_bias) = inputs, grads, slots
    queries, keys, values = block.queries(q, number), block.keys(k, number), block.keys(v, number)
    weights = torch.softmax(block.logits(queries, keys, number, bias), dim=-1)
    grad, along = block.queries(grad, number), block.queries(along, number)[:, :, None]
    if weight is not None or not block.layout.all_filled:
        share = block.chunks(block.layout.filled[block.own]).to(along.dtype)[:, :, None]  # empty slots have no gradient
        if weight is not None:
            share = share * block.queries(weight, number)[:, :, None]
        grad, along = grad * share.to(grad.dtype), along * share
    _add_windows(block, v_slots, torch.bmm(weights.to(v.dtype).transpose(1, 2), grad))
    change = torch.bmm(grad, values.transpose(1, 2)).to(weights.dtype).sub_(along).mul_(weights)  # of the logits
    if grad_bias is not None:
        entries = block.bias_entries(number, grad_bias.shape[-1])
        grad_bias.view(-1).index_add_(0, entries.flatten(), change.flatten())
    if block.plan.scale != 1.0:
        change.mul_(block.plan.scale)
    change = change.to(q.dtype)
    q_slots[block.own] = torch.bmm(change, keys).flatten(0, 1)
    _add_windows(block, k_slots, torch.bmm(change.transpose(1, 2), queries))


def _add_windows(block: Block, slots: Tensor, grads: Tensor) -> None:
    """Adds the gradients of windows to their slots: grads [T, K, D], slots [(before + all + after) C, D]."""
    size = block.layout.size
    for first in range(0, block.layout.span, size):
        start = block.own.start + first
        part = grads[:, first : first + size]
        slots[start : start + part.shape[0] * size].view_as(part).add_(part)

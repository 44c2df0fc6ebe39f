"""FAVOR+ without masks between tokens, in few passes over blocks that stay in the cache of a CPU: `favor.Performer` there.

Written with the mean value of each feature, mu_m = sum_j phi_m(k_j) v_j / t_m and t_m = sum_j phi_m(k_j), linear
attention is softmax attention over M prototypes: out_i = sum_m softmax_m(w_m.q_i + log t_m) mu_m. One fused softmax
then does the features of the queries, their stabiliser and the normaliser, in fp32, and mu is well scaled for bf16.
The features are kept for the backward pass, in bf16 where the products are: to keep them costs less than the product and
the exponential that would make them again.
Letters: B batch, H heads, N tokens, D head width, M random features, G heads of a block's examples, n its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from xcls.attention.base import full_dtype

CACHED = 2**20  # features of a block: 4 MiB in fp32, which stay in the cache that cores share
NEVER = -1e30  # log t of a feature that no key has: finite, so that a row of them has a softmax

Slot = tuple[slice, slice]  # examples, tokens


def favor(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    directions: Tensor,
    offset: Tensor | None,
    padding: Tensor | None,
    epsilon: float,
    *,
    block_entries: int = CACHED,
) -> Tensor:
    """Linear attention with the features exp(w.x + c - |x|^2 / (2 sqrt D)): q, k, v [B, H, N, D] -> [B, H, N, D].

    directions: w [B|1, H|1, M, D]; offset: c [B|1, H|1, 1, M] or None; padding [B, N]: pads hold finite numbers, and what
    comes out in their rows means nothing; epsilon is added to the features of keys, the largest of which is 1.
    Gradients reach q, k, v, w and c. They hold the stabiliser, the largest exponent of a key, constant: exact at epsilon = 0,
    where it cancels, and else up to terms of the size of epsilon. Features and normaliser are fp32 (fp64 for fp64 input);
    the products behind them are bf16 where v is. block_entries: features in a block.
    """
    return _Favor.apply(q, k, v, directions, offset, padding, epsilon, block_entries)


def slots(shape: torch.Size, num_features: int, block_entries: int) -> Iterator[list[Slot]]:
    """Blocks of [B, H, N, M] with about `block_entries` entries, listed for each group of examples.

    Several whole examples where they are short, pieces of one where it is long.
    """
    batch, heads, length, _ = shape
    size = heads * length * num_features
    examples = max(1, block_entries // max(size, 1))
    tokens = length if size <= block_entries else max(1, block_entries // (heads * num_features))
    for first in range(0, batch, examples):
        group = slice(first, min(first + examples, batch))
        yield [(group, slice(start, min(start + tokens, length))) for start in range(0, length, tokens)]


def block_of(x: Tensor, slot: Slot, dtype: torch.dtype) -> Tensor:
    """A block of x [B, H, N, D] as [G, n, D] in `dtype`; a view where nothing has to change."""
    return x[slot[0], :, slot[1]].to(dtype).flatten(0, 1)


def put_product(x: Tensor, slot: Slot, a: Tensor, b: Tensor) -> Tensor:
    """Writes a b, [G, n, M] x [G, M, D], into its block of x [B, H, N, D]; returns that block, [b, H, n, D]."""
    part = x[slot[0], :, slot[1]]
    if part.shape[0] == 1 and part.dtype == a.dtype:
        torch.bmm(a, b, out=part[0])
    else:
        part.copy_(torch.bmm(a, b).view(part.shape))
    return part


def per_head(x: Tensor | None, group: slice, heads: int) -> Tensor | None:
    """Rows of x [B|1, H|1, R, F] for a group of examples: [G, R, F]."""
    if x is None:
        return None
    examples = group.stop - group.start
    x = x if x.shape[0] == 1 else x[group]
    return x.expand(examples, heads, -1, -1).flatten(0, 1)


def add_per_head(sums: Tensor | None, group: slice, block: Tensor) -> None:
    """Adds the gradient [G, R, F] of `per_head` to sums [B|1, H|1, R, F], if it is wanted."""
    if sums is not None:
        part = sums if sums.shape[0] == 1 else sums[group]
        examples = group.stop - group.start
        part.add_(block.unflatten(0, (examples, -1)).sum_to_size(part.shape))


def token_major(like: Tensor) -> Tensor:
    """An empty [B, H, N, D] whose memory is [B, N, H, D]: heads are split and merged without a copy."""
    batch, heads, length, width = like.shape
    return like.new_empty(batch, length, heads, width).transpose(1, 2)


def pads_of(pads: Tensor | None, slot: Slot, heads: int) -> Tensor | None:
    """The pads of a block, [G, n, 1]."""
    return None if pads is None else pads[slot].repeat_interleave(heads, dim=0).unsqueeze(-1)


class _Kept:
    """The list of what the backward pass needs, if there will be one."""

    def __init__(self, wanted: bool) -> None:
        self.wanted, self.tensors = wanted, []

    def add(self, *tensors: Tensor) -> None:
        if self.wanted:
            self.tensors.extend(tensors)


class _Keys:
    """The sums over the keys of one group of examples, block by block, under the largest exponent met so far."""

    def __init__(self, directions: Tensor, offset: Tensor | None, width: int) -> None:
        heads, features, _ = directions.shape
        self.directions, self.offset = directions, offset
        self.peak = directions.new_full((heads, 1, 1), -torch.inf)
        self.total = directions.new_zeros(heads, features, 1)  # t
        self.weighted = directions.new_zeros(heads, features, width)  # t mu
        self.values = directions.new_zeros(heads, 1, width)  # the sum of v
        self.count = directions.new_zeros(heads, 1, 1)  # tokens that are not pads

    def add(self, k: Tensor, v: Tensor, pads: Tensor | None) -> Tensor:
        """k, v [G, n, D], pads bool [G, n, 1] -> phi(k) [G, n, M] under the peak so far, in the dtype of v."""
        exponent = torch.bmm(k, self.directions.transpose(1, 2))
        if self.offset is not None:
            exponent.add_(self.offset)
        half_norm = k.square().sum(dim=-1, keepdim=True).mul_(0.5 * k.shape[-1] ** -0.5)
        if pads is not None:
            half_norm.masked_fill_(pads, torch.inf)
        highest = exponent.amax(dim=-1, keepdim=True).sub_(half_norm).amax(dim=1, keepdim=True)
        peak = torch.maximum(self.peak, highest).clamp_(min=torch.finfo(k.dtype).min)
        features = exponent.sub_(half_norm.add_(peak)).exp_()
        shrink = (self.peak - peak).exp_()
        self.peak = peak
        self.total.mul_(shrink).add_(features.sum(dim=1).unsqueeze(-1))
        features = features.to(v.dtype)
        self.weighted.mul_(shrink).add_(torch.bmm(features.transpose(1, 2), v))
        if pads is None:
            self.values.add_(v.sum(dim=1, keepdim=True))
            self.count.add_(k.shape[1])
        else:
            real = ~pads
            self.values.add_(torch.bmm(real.to(v.dtype).transpose(1, 2), v))
            self.count.add_(real.sum(dim=1, keepdim=True))
        return features

    def prototypes(self, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        """mu [G, M, D], log t + c [G, 1, M] and t [G, M, 1], with epsilon in every feature of a key."""
        total = self.total + epsilon * self.count
        empty = total == 0
        total = total.masked_fill(empty, 1.0)
        level = total.log().masked_fill_(empty, NEVER).transpose(1, 2)
        level = level if self.offset is None else level + self.offset
        return (self.weighted + epsilon * self.values) / total, level, total


class _Favor(torch.autograd.Function):
    """Forward and backward of `favor`."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        directions: Tensor,
        offset: Tensor | None,
        pads: Tensor | None,
        epsilon: float,
        block_entries: int,
    ) -> Tensor:
        """As in `favor`. Kept for each block: phi(k), its peak, softmax; for each group: mu, t, the peak."""
        dtype, heads, width = full_dtype(q), q.shape[1], q.shape[3]
        products = torch.bfloat16 if v.dtype == torch.bfloat16 else dtype
        out = token_major(v)
        kept = _Kept(any(ctx.needs_input_grad))
        for blocks in slots(q.shape, directions.shape[-2], block_entries):
            group = blocks[0][0]
            w = per_head(directions.to(dtype), group, heads)
            keys = _Keys(w, per_head(offset, group, heads), width)
            for slot in blocks:
                block = block_of(k, slot, dtype), block_of(v, slot, products)
                kept.add(keys.add(*block, pads_of(pads, slot, heads)), keys.peak)
            mean, level, total = keys.prototypes(epsilon)
            mean = mean.to(products)
            for slot in blocks:
                exponent = torch.bmm(block_of(q, slot, dtype), w.transpose(1, 2)).add_(level)
                weights = torch.softmax(exponent, dim=-1).to(products)
                put_product(out, slot, weights, mean)
                kept.add(weights)
            kept.add(mean, total, keys.peak)
        ctx.save_for_backward(q, k, v, directions, offset, pads, out, *kept.tensors)
        ctx.epsilon, ctx.block_entries = epsilon, block_entries
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of q, k, v, directions and offset."""
        q, k, v, directions, offset, pads, out, *kept = ctx.saved_tensors
        kept, dtype = iter(kept), full_dtype(q)
        grads = [token_major(x) for x in (q, k, v)]
        given = zip((directions, offset), ctx.needs_input_grad[3:5])
        grads += [torch.zeros_like(x, dtype=dtype) if needed else None for x, needed in given]
        with torch.autocast(q.device.type, enabled=False):
            for blocks in slots(q.shape, directions.shape[-2], ctx.block_entries):
                features = [(next(kept), next(kept)) for _ in blocks]
                weights = [next(kept) for _ in blocks]
                mean, total, last = next(kept), next(kept), next(kept)
                w = per_head(directions, blocks[0][0], q.shape[1]).to(mean.dtype)
                dmean, dlevel = 0.0, 0.0
                for slot, softmax in zip(blocks, weights):
                    more = _backward_queries(slot, softmax, mean, w, (q, out, grad), grads)
                    dmean, dlevel = dmean + more[0], dlevel + more[1]
                dweighted = dmean / total
                dtotal = dlevel / total.transpose(1, 2) - (dweighted * mean).sum(dim=-1).unsqueeze(1)
                for slot, (phi, peak) in zip(blocks, features):
                    shrink = (peak - last).exp_()
                    sums = dweighted * shrink, dtotal * shrink, ctx.epsilon * dweighted.sum(dim=1, keepdim=True)
                    _backward_keys(slot, phi, w, sums, (k, v, pads), grads)
        return *grads, None, None, None


def _backward_queries(
    slot: Slot, softmax: Tensor, mean: Tensor, w: Tensor, inputs: tuple[Tensor, ...], grads: list[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Fills a block of dq, adds to the gradients of directions and offset; returns those of mu and log t."""
    q, out, grad = inputs
    g = block_of(grad, slot, mean.dtype)
    delta = (g * block_of(out, slot, mean.dtype)).sum(dim=-1, keepdim=True)
    dexponent = torch.bmm(g, mean.transpose(1, 2)).sub_(delta).mul_(softmax)
    put_product(grads[0], slot, dexponent, w)
    dmean = torch.bmm(softmax.transpose(1, 2), g).to(full_dtype(q))
    dlevel = dexponent.sum(dim=1, keepdim=True, dtype=dmean.dtype)
    add_per_head(grads[4], slot[0], dlevel)
    if grads[3] is not None:
        add_per_head(grads[3], slot[0], torch.bmm(dexponent.transpose(1, 2), block_of(q, slot, mean.dtype)))
    return dmean, dlevel


def _backward_keys(
    slot: Slot,
    phi: Tensor,
    w: Tensor,
    sums: tuple[Tensor, Tensor, Tensor],
    inputs: tuple[Tensor, Tensor, Tensor | None],
    grads: list[Tensor | None],
) -> None:
    """Fills a block of dk and dv, adds to the gradients of directions and offset.

    sums: the gradients of the two sums over keys, t mu [G, M, D] and t [G, 1, M], under the block's own peak, and that
    of every value through epsilon, [G, 1, D].
    """
    k, v, pads = inputs
    dweighted, dtotal = (x.to(phi.dtype) for x in sums[:2])
    values, keys = (block_of(x, slot, phi.dtype) for x in (v, k))
    dexponent = torch.baddbmm(dtotal, values, dweighted.transpose(1, 2)).mul_(phi)
    dnorm = dexponent.sum(dim=-1, keepdim=True).mul_(keys.shape[-1] ** -0.5)
    part = put_product(grads[1], slot, dexponent, w)
    part.sub_((dnorm * keys).view(part.shape))
    part = put_product(grads[2], slot, phi, dweighted)
    alike = sums[2].view(*part.shape[:2], 1, -1).to(part.dtype)
    part.add_(alike if pads is None else alike * ~pads[slot][:, None, :, None])
    if grads[4] is not None:
        add_per_head(grads[4], slot[0], dexponent.sum(dim=1, keepdim=True, dtype=grads[4].dtype))
    if grads[3] is not None:
        add_per_head(grads[3], slot[0], torch.bmm(dexponent.transpose(1, 2), keys))

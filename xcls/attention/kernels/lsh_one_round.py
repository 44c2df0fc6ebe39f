"""LSH attention of one round on GPUs that Triton has no kernel for (a V100, Windows): few operations, few bytes.

Sorted tokens are gathered once per tensor, straight into chunks and the windows that they see; PyTorch's fused attention
does the rest, and is computed again in the backward pass, so that only the inputs are kept. Gradients go back through the
inverse permutation, without atomics. The readable version is `lsh_attention` through `sorted_chunks.attend_plainly`.
Letters: B batch, H heads, N tokens, D head width, T chunks of a sequence, C slots of a chunk, K slots of a window, S = T C.
Tensors are token-major here, [B, .., H, D], as that kernel has them inside.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from xcls.attention.base import Masks, full_dtype, is_compiling
from xcls.attention.sorted_chunks import Chunks


class Window(NamedTuple):
    """What depends on the padding alone: the same in all layers of a forward pass."""

    own: Tensor  # [S], the rank in each slot, the last one where there is none
    seen: Tensor  # [T K], the rank in each slot of each window, any where there is none
    rank: Tensor  # [B, N, H], 0 .. N - 1 along N
    mask: Tensor  # [B T, 1, C, K], 0 where a query may attend to a slot, else -inf


def window_of(qk: Tensor, chunks: Chunks, masks: Masks) -> Window:
    """The window of `chunks` for qk [B, H, N, D], from the context if an earlier layer has made it."""
    key = ("lsh window", chunks.size, chunks.before, chunks.after, qk.dtype)
    if key not in masks.context or is_compiling():
        masks.context[key] = _make_window(qk, chunks)
    return masks.context[key]


def _make_window(qk: Tensor, chunks: Chunks) -> Window:
    """A token attends to itself only where there is nothing else; the rows of pads may attend to anything."""
    batch, heads, length, _ = qk.shape
    size, before = chunks.size, chunks.before
    own = torch.arange(chunks.number * size, device=qk.device).view(-1, size, 1)  # [T, C, 1]
    span = torch.arange(-before * size, (1 + chunks.after) * size, device=qk.device)
    seen = own[:, :1] + span  # [T, 1, K]
    count = length if chunks.count is None else chunks.count.view(-1, 1, 1, 1)
    real = (seen >= 0) & (seen < count)  # [B, T, 1, K], or without B
    others = real & (own != seen)
    mask = torch.full(others.shape, -torch.inf, dtype=qk.dtype, device=qk.device).masked_fill_(others, 0.0)
    mask.masked_fill_(~others.any(dim=-1, keepdim=True) & (real | ~real.any(dim=-1, keepdim=True)), 0.0)
    mask = mask.expand(batch, *mask.shape[-3:]).flatten(0, 1)[:, None]
    rank = torch.arange(length, device=qk.device)[:, None].expand(batch, length, heads)
    return Window(own.flatten().clamp(max=length - 1), seen.flatten().clamp(0, length - 1), rank, mask)


def attend_one_round(qk: Tensor, v: Tensor, chunks: Chunks, masks: Masks) -> Tensor:
    """`lsh_attention` of `chunks` with one round and neither pairs nor bias: qk, v [B, H, N, D] -> [B, H, N, D]."""
    window = window_of(qk, chunks, masks)
    order = chunks.q_order[:, :, 0].long().transpose(1, 2)  # [B, N, H]
    slot = torch.empty_like(order).scatter_(1, order, window.rank)
    own = order if len(window.own) == chunks.length else order.index_select(1, window.own)
    return OneRound.apply(qk, v, own, order.index_select(1, window.seen), slot, window.mask, chunks.size, chunks.before)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Tokens of x [B, N, H, D] in another order, each head in its own: index [B, M, H] -> [B, M, H, D]."""
    return x.gather(1, index[..., None].expand(*index.shape, x.shape[-1]))


def attend_in_chunks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q.k + mask) v: q [B, S, H, D], k and v [B, T K, H, D], mask [B T, 1, C, K] -> [B, S, H, D]."""
    parts = (x.reshape(len(mask), -1, *x.shape[2:]).transpose(1, 2) for x in (q, k, v))  # [B T, H, C or K, D]
    out = F.scaled_dot_product_attention(*parts, attn_mask=mask, scale=1.0)
    return out.transpose(1, 2).reshape(q.shape)


class OneRound(torch.autograd.Function):
    """qk, v [B, H, N, D]; own [B, S, H] and seen [B, T K, H], the tokens in chunks and in windows; slot [B, N, H], where
    each token stands -> [B, H, N, D].
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, qk: Tensor, v: Tensor, own: Tensor, seen: Tensor, slot: Tensor,
        mask: Tensor, size: int, before: int,
    ) -> Tensor:  # fmt: skip
        """-> [B, H, N, D], in memory [B, N, H, D]."""
        norm = torch.linalg.vector_norm(qk.transpose(1, 2), dim=-1, keepdim=True, dtype=full_dtype(qk))
        norm.clamp_(min=1e-6 * qk.shape[-1] ** 0.5)  # finite at zero
        ctx.save_for_backward(qk, v, norm, own, seen, slot, mask)
        ctx.sizes = size, before
        qk, v = qk.transpose(1, 2), v.transpose(1, 2)
        out = attend_in_chunks(take(qk, own), take(unit(qk, norm), seen), take(v, seen), mask)
        return take(out, slot).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With k = q / |q|, a token's gradient is that of the query and (g - k (k.g)) / |q| of its key's g."""
        qk, v, norm, own, seen, slot, mask = ctx.saved_tensors
        qk, v, grad = qk.transpose(1, 2), v.transpose(1, 2), take(grad.transpose(1, 2), own)
        if own.shape[1] > slot.shape[1]:  # slots without a token have no gradient
            grad[:, slot.shape[1] :] = 0
        keys = unit(qk, norm)
        inputs = [x.requires_grad_() for x in (take(qk, own), take(keys, seen), take(v, seen))]
        with torch.enable_grad():
            out = attend_in_chunks(*inputs, mask)
        d_query, *d_windows = torch.autograd.grad(out, inputs, grad)
        del inputs, out, grad
        d_key, d_value = (take(folded(x, own.shape[1], mask.shape[-1], *ctx.sizes), slot) for x in d_windows)
        d_query = take(d_query, slot)
        along = (d_key * keys).sum(dim=-1, keepdim=True, dtype=norm.dtype)
        d_query.addcdiv_(d_key, norm).addcmul_(keys, along / norm, value=-1)
        return d_query.transpose(1, 2), d_value.transpose(1, 2), *[None] * 6


def unit(x: Tensor, norm: Tensor) -> Tensor:
    """x / norm in the dtype of x, in one pass: x [B, N, H, D], norm [B, N, H, 1]."""
    return torch.div(x, norm, out=torch.empty_like(x))


def folded(x: Tensor, slots: int, span: int, size: int, before: int) -> Tensor:
    """The sum over all windows that show a slot: x [B, T K, H, D] -> [B, S, H, D]."""
    windows = x.unflatten(1, (-1, span)).permute(0, 1, 3, 4, 2)  # [B, T, H, D, K], as Tensor.unfold has it
    all_slots = slots + span - size
    total = torch.ops.aten.unfold_backward(windows, (len(x), all_slots, *x.shape[2:]), 1, span, size)
    return total[:, before * size : before * size + slots]

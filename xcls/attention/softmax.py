"""Exact softmax attention: written out (`Sdpa`), and by PyTorch's fused kernel (`SdpaFused`).

softmax(Q K^T / sqrt(D)) V: Vaswani et al. 2017, section 3.2.1. Letters: B batch, H heads, N tokens, D head dimension,
G = B x H, W window of the relative bias.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from xcls.attention.base import HEADROOM, Attention, Masks, distance_matrix, fits
from xcls.attention.kernels.softmax_blocks import in_blocks
from xcls.attention.operations import Shape, Work

LOWEST_HALF = torch.finfo(torch.float16).min


def additive_mask(masks: Masks, like: Tensor) -> Tensor | None:
    """Padding, pairs and relative bias as one summand of the scores: [1|B, 1|H, 1|N, N] in the dtype of `like`.

    like: q, [B, H, N, D]. Blocked entries are finite, so that a row with only blocked entries gives no NaN, and so low
    that their weight is zero in all other rows.
    """

    def make() -> Tensor | None:
        blocked, mask = masks.blocked(), None
        if masks.bias is not None:
            mask = distance_matrix(masks.bias, rows=like.shape[2], columns=like.shape[2])[None].to(like.dtype)
        if blocked is not None:
            lowest = LOWEST_HALF if like.dtype == torch.float16 else -1e30
            mask = torch.zeros((), dtype=like.dtype, device=like.device) if mask is None else mask
            mask = torch.where(blocked, lowest, mask)
        return mask

    return masks.once(("additive mask", like.dtype), make) if masks.bias is None else make()


def scores(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """q k^T / sqrt(D) + mask: q, k [B, H, N, D], mask as `additive_mask` gives it -> [G, N, N]."""
    batch, heads, length, width = q.shape
    if mask is None:
        summand = q.new_zeros(1).expand(batch * heads, 1, 1)
    else:
        summand = mask.expand(batch, heads, -1, -1).flatten(0, 1)  # [G, 1|N, N]
    q, k = q.flatten(0, 1), k.flatten(0, 1)
    if q.dtype == torch.float16:
        return _HalfScores.apply(q, k, summand)
    return torch.baddbmm(summand, q, k.transpose(1, 2), beta=0 if mask is None else 1, alpha=width**-0.5)


class _HalfScores(torch.autograd.Function):
    """`scores` in fp16, up to a constant per row: q, k [G, N, D], summand [G, 1|N, 1|N] -> [G, N, N].

    Scores are computed divided by HEADROOM, so that they do not overflow. Then the difference from the row maximum is
    multiplied by HEADROOM, in one pass.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, summand: Tensor) -> Tensor:
        ctx.save_for_backward(q, k)
        ctx.shape = summand.shape
        # Below every score, and so is their sum
        summand = torch.where(summand == LOWEST_HALF, -3e4, summand / HEADROOM)
        out = torch.baddbmm(summand, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5 / HEADROOM)
        return torch.lerp(out.amax(dim=-1, keepdim=True), out, HEADROOM)  # largest + 16 (score - largest), fp32 inside

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        summand = grad.sum_to_size(ctx.shape) if ctx.needs_input_grad[2] else None
        return torch.bmm(grad, k) * scale, torch.bmm(grad.transpose(1, 2), q) * scale, summand


class Sdpa(Attention):
    """Softmax attention written out, with the scores in memory.

    Where they do not fit (`base.fits`), blocks of query rows are computed one by one, and again in the backward pass.
    `path` says which: "whole" or "blocks".
    """

    def operations(self, shape: Shape) -> tuple[Work, Work]:
        """Q K^T and P V; four more products backward. The N x N scores are written and read, and so are the
        probabilities.
        """
        once = Work(4.0 * shape.pairs * shape.head_dim, shape.moved + 4.0 * shape.itemsize * shape.pairs)
        return once, once * 3

    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        """q, k, v [B, H, N, D] -> [B, H, N, D]."""
        whole = fits(q, masks.layers)
        self.path = "whole" if whole else "blocks"
        if not whole:
            return in_blocks(q, k, v, masks)
        weights = torch.softmax(scores(q, k, additive_mask(masks, q)), dim=-1)  # fp32 inside, also in 16 bits
        return torch.bmm(weights, v.flatten(0, 1)).unflatten(0, q.shape[:2])


class SdpaFused(Attention):
    """`F.scaled_dot_product_attention`, which keeps no scores: the usual choice in practice.

    It gets the smallest mask that suffices: none, `is_causal`, or a summand. With a relative bias the summand is N x N,
    and as it needs a gradient, PyTorch does not use its fused kernels. Where it does not fit, the blocks of `Sdpa` are
    used.
    """

    def operations(self, shape: Shape) -> tuple[Work, Work]:
        """As `Sdpa`, without scores in memory; the backward pass computes Q K^T again: training has seven products."""
        product = 2.0 * shape.pairs * shape.head_dim
        return Work(2 * product, shape.moved), Work(7 * product, 3 * shape.moved)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        """q, k, v [B, H, N, D] -> [B, H, N, D]."""
        if masks.bias is not None and not fits(q, masks.layers):
            self.path = "blocks"
            return in_blocks(q, k, v, masks)
        self.path = "fused"
        if masks.causal and masks.padding is None and masks.bias is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        # A mask of padding only stays [B, 1, 1, N]: from an expanded one PyTorch would make N x N floats.
        return F.scaled_dot_product_attention(q, k, v, attn_mask=additive_mask(masks, q))

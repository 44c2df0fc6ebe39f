"""Exact softmax attention: written out (`Sdpa`), and by PyTorch's fused kernel (`SdpaFused`).

softmax(Q K^T / sqrt(D)) V: Vaswani et al. 2017, section 3.2.1. Letters: B batch, H heads, N tokens, D head width,
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
    """Padding, pairs and relative bias as one summand of the scores, [1|B, 1|H, 1|N, N] in the dtype of `like` [B, H,
    N, D].

    Blocked entries are finite, so that a row of nothing else is no NaN, and so low that their weight is zero elsewhere.
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
    """`scores` in fp16, up to a constant per row: what is written down is at most 65,504 / 16, and then grown again
    about the largest of its row, in one pass and in place. q, k [G, N, D], summand [G, 1|N, 1|N] -> [G, N, N].
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, summand: Tensor) -> Tensor:
        ctx.save_for_backward(q, k)
        ctx.shape = summand.shape
        summand = torch.where(
            summand == LOWEST_HALF, -3e4, summand / HEADROOM
        )  # below every score, and so is their sum
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
    """Softmax attention written out, with the scores in memory; where they do not fit (`base.fits`), in blocks of query
    rows that are computed again in the backward pass. `path` says which: "whole" or "blocks".
    """

    def operations(self, shape: Shape) -> tuple[Work, Work]:
        """Q K^T and P V; four more products backward. The scores are written, read, and written and read again as
        probabilities: that is what explicit means.
        """
        once = Work(4.0 * shape.pairs * shape.head_dim, shape.moved + 4.0 * shape.itemsize * shape.pairs)
        return once, once * 3

    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        """q, k, v [B, H, N, D] -> [B, H, N, D]."""
        whole = fits(q, masks.layers)
        self.path = "whole" if whole else "blocks"
        if not whole:
            return in_blocks(q, k, v, masks)
        weights = torch.softmax(scores(q, k, additive_mask(masks, q)), dim=-1)  # fp32 inside, whatever it reads
        return torch.bmm(weights, v.flatten(0, 1)).unflatten(0, q.shape[:2])


class SdpaFused(Attention):
    """`F.scaled_dot_product_attention`, which keeps no scores: what a practitioner would use instead of all the others.

    It gets the least mask that will do: none, its own causal one, or a sum. With a relative bias that is N x N, and a
    trained one makes PyTorch leave its fused kernels; where it does not fit, `Sdpa`'s blocks do the work.
    """

    def operations(self, shape: Shape) -> tuple[Work, Work]:
        """The same products without the scores in memory, which the backward pass computes again: seven products."""
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
        # A mask of pads alone stays [B, 1, 1, N]: of an expanded one PyTorch would make N x N floats.
        return F.scaled_dot_product_attention(q, k, v, attn_mask=additive_mask(masks, q))

"""PyTorch's fused kernel, `F.scaled_dot_product_attention`: what a practitioner would use instead of all the others.

Letters: B batch, H heads, N tokens, D head width, W window of the relative bias.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from xcls.attention.base import (
    Attention,
    blocked_pairs,
    check_attn_mask,
    distance_matrix,
    is_causal,
    kept_whole,
    zero_padding,
)
from xcls.attention.sdpa import dense_softmax, in_blocks


def fused_without_bias(q: Tensor, k: Tensor, v: Tensor, pads: Tensor | None, attn_mask: Tensor | None) -> Tensor:
    """The kernel with the least mask that will do: none, its own causal one, or a boolean one.

    q, k, v [B, H, N, D], pads bool [B, N], attn_mask bool [1|B, 1|H, N, N] -> [B, H, N, D].
    """
    blocked = blocked_pairs(pads, attn_mask)
    if blocked is None:
        return F.scaled_dot_product_attention(q, k, v)
    if pads is None and is_causal(attn_mask):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    nothing = blocked.all(dim=-1, keepdim=True)  # the kernels disagree on such rows: let them attend, then zero them
    # A mask of pads alone stays [B, 1, 1, N]: of an expanded one PyTorch would make N x N floats.
    return F.scaled_dot_product_attention(q, k, v, attn_mask=~blocked | nothing).masked_fill(nothing, 0.0)


def fused_with_bias(q: Tensor, k: Tensor, v: Tensor, *, blocked: Tensor | None, bias: Tensor) -> Tensor:
    """The kernel with a bias as its additive mask: q, k, v [B, H, N, D], bias [H, N, N]."""
    mask = bias.to(q.dtype)[None]  # [1, H, N, N]
    if blocked is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    nothing = blocked.all(dim=-1, keepdim=True)
    mask = mask.masked_fill(blocked & ~nothing, -torch.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).masked_fill(nothing, 0.0)


def sdpa_fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    relative_bias: Tensor | None = None,
    block_size: int = 256,
    block_above: int = 2**26,
) -> Tensor:
    """Exact attention by PyTorch's fused kernels: q, k, v [B, H, N, D] -> [B, H, N, D].

    Masks and bias as in `Attention.forward`. The kernels keep no scores, but a relative bias is an additive mask of
    [H, N, N], and a trained one makes PyTorch leave them. Where B x H x N x N is above `block_above` that would not
    fit: then it is `sdpa`'s explicit softmax, for `block_size` query rows at a time.
    """
    batch, heads, length, _ = q.shape
    attn_mask = check_attn_mask(attn_mask)
    q, k, v = (zero_padding(x, key_padding_mask) for x in (q, k, v))
    if relative_bias is None:
        return zero_padding(fused_without_bias(q, k, v, key_padding_mask, attn_mask), key_padding_mask)

    if not kept_whole(batch, heads, length, block_above):
        out = in_blocks(q, k, v, key_padding_mask, attn_mask, relative_bias, block_size)
    else:
        bias = distance_matrix(relative_bias, rows=length, columns=length)
        out = fused_with_bias(q, k, v, blocked=blocked_pairs(key_padding_mask, attn_mask), bias=bias)
    return zero_padding(out, key_padding_mask)


class SdpaFused(Attention):
    """Fused softmax attention; see `sdpa_fused`."""

    def __init__(
        self, *, num_heads: int, head_dim: int, layer: int, seed: int, block_size: int = 256, block_above: int = 2**26
    ) -> None:
        """block_size, block_above: rows per block and largest additive mask kept whole, for a relative bias only."""
        super().__init__(num_heads=num_heads, head_dim=head_dim, layer=layer, seed=seed)
        if block_size < 1 or block_above < 0:
            raise ValueError(f"block_size must be at least 1, block_above at least 0, not {block_size}, {block_above}")
        self.block_size = block_size
        self.block_above = block_above

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        relative_bias: Tensor | None = None,
        rotate: Callable[[Tensor], Tensor] | None = None,
        context: dict | None = None,
    ) -> Tensor:
        """q, k, v [B, H, N, D] -> [B, H, N, D]; arguments as in `Attention.forward`."""
        return sdpa_fused(
            q,
            k,
            v,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            relative_bias=relative_bias,
            block_size=self.block_size,
            block_above=self.block_above,
        )

    def oracle(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        relative_bias: Tensor | None = None,
        rotate: Callable[[Tensor], Tensor] | None = None,
        context: dict | None = None,
    ) -> Tensor:
        """The whole N x N softmax, step by step: [B, H, N, D] -> [B, H, N, D]."""
        return dense_softmax(
            q, k, v, key_padding_mask=key_padding_mask, attn_mask=attn_mask, relative_bias=relative_bias
        )

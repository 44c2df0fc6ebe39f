"""Scaled dot-product attention written out: softmax(Q K^T / sqrt(D)) V, in query blocks where it would not fit.

Letters: B batch, H heads, N tokens, D head width, W window of the relative bias.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xcls.attention.base import (
    Attention,
    blocked_pairs,
    check_attn_mask,
    distance_matrix,
    kept_whole,
    product_dtype,
    zero_padding,
    zero_rows,
)
from xcls.attention.sdpa_blocks import AttendRows, Rows

LARGEST_BLOCK = 2**22  # scores of a block of rows: 16 MiB in fp32


def softmax_rows(
    q: Tensor, k: Tensor, v: Tensor, *, blocked: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v for some rows of queries: q [B, H, rows, D], k and v [B, H, N, D].

    blocked: bool [1|B, 1|H, 1|rows, N], True = may not be attended; bias: [H, rows, N]. Returns [B, H, rows, D],
    zeros in rows that may attend to nothing.
    """
    # fp16 ends at 65,504, and q k^T of large activations does not: leave it four more powers of two.
    headroom = 16.0 if product_dtype(q) == torch.float16 else 1.0
    scores = (q * (q.shape[-1] ** -0.5 / headroom)) @ k.transpose(-1, -2)  # [B, H, rows, N]
    if headroom != 1.0:
        scores = scores.float() * headroom
    if bias is not None:
        scores = scores + bias
    nothing = None
    if blocked is not None:
        nothing = blocked.all(dim=-1, keepdim=True)  # such rows attend to everything (finite), and are zeroed at the end
        wall = torch.zeros(blocked.shape, dtype=scores.dtype, device=scores.device)
        scores = scores + wall.masked_fill_(blocked & ~nothing, -torch.inf)  # a sum: masks are small, scores are not
    # Softmax works in fp32 whatever it reads, and what the product with v takes is of the dtype of v anyway; autocast
    # would write the scores and the weights down in fp32 as well.
    with torch.autocast(q.device.type, enabled=False):
        weights = torch.softmax(scores, dim=-1).to(v.dtype)
    out = weights @ v
    return out if nothing is None else zero_rows(out, nothing)


def sdpa(
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
    """Exact attention (Vaswani et al. 2017, section 3.2.1): q, k, v [B, H, N, D] -> [B, H, N, D].

    Masks and bias as in `Attention.forward`. A score matrix of more than `block_above` entries (B x H x N x N; see
    `kept_whole`) is computed in blocks of `block_size` query rows, and again in the backward pass, instead of being kept.
    """
    batch, heads, length, _ = q.shape
    attn_mask = check_attn_mask(attn_mask)
    q, k, v = (zero_padding(x, key_padding_mask) for x in (q, k, v))

    if not kept_whole(batch, heads, length, block_above):
        out = in_blocks(q, k, v, key_padding_mask, attn_mask, relative_bias, block_size)
    else:
        blocked, bias = blocked_pairs(key_padding_mask, attn_mask), None
        if relative_bias is not None:
            bias = distance_matrix(relative_bias, rows=length, columns=length)
        out = softmax_rows(q, k, v, blocked=blocked, bias=bias)
    return zero_padding(out, key_padding_mask)


def in_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    relative_bias: Tensor | None,
    block_size: int,
) -> Tensor:
    """`softmax_rows` for all rows, a block at a time: q, k, v [B, H, N, D], attn_mask [1|B, 1|H, N, N].

    A block has `block_size` rows, or fewer where its scores would be a buffer that the C library hands back to the
    system each time: page faults then cost more than the products do.
    """
    most = LARGEST_BLOCK if q.device.type == "cpu" else 2**27
    block_size = min(block_size, max(16, most // (q.shape[0] * q.shape[1] * q.shape[2])))
    dtype = product_dtype(q)
    headroom = 16.0 if dtype == torch.float16 else 1.0
    rows = Rows(key_padding_mask, attn_mask, headroom, block_size)
    q = q * (q.shape[-1] ** -0.5 / headroom)
    return AttendRows.apply(q.to(dtype), k.to(dtype), v.to(dtype), relative_bias, rows).to(v.dtype)


class Sdpa(Attention):
    """Explicit softmax attention; see `sdpa`."""

    def __init__(
        self, *, num_heads: int, head_dim: int, layer: int, seed: int, block_size: int = 256, block_above: int = 2**26
    ) -> None:
        """block_size: query rows per block; block_above: largest score matrix kept whole, in entries."""
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
        return sdpa(
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


def dense_softmax(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    relative_bias: Tensor | None = None,
) -> Tensor:
    """Softmax attention from exponentials and sums alone, as the oracle: [B, H, N, D] -> [B, H, N, D]."""
    length = q.shape[2]
    q, k, v = (zero_padding(x, key_padding_mask) for x in (q, k, v))
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
    if relative_bias is not None:
        window = relative_bias.shape[-1] // 2
        position = torch.arange(length, device=q.device)
        scores = scores + relative_bias[:, (position - position[:, None]).clamp(-window, window) + window]
    allowed = torch.ones_like(scores, dtype=torch.bool)
    blocked = blocked_pairs(key_padding_mask, check_attn_mask(attn_mask))
    if blocked is not None:
        allowed = allowed & ~blocked
    peak = scores.masked_fill(~allowed, -torch.inf).amax(dim=-1, keepdim=True).clamp(min=-1e30).detach()
    weights = torch.where(allowed, (scores - peak).masked_fill(~allowed, 0.0).exp(), 0.0)
    total = weights.sum(dim=-1, keepdim=True)
    weights = (weights / total.masked_fill(total == 0, 1.0)).to(v.dtype)
    return zero_padding(weights @ v, key_padding_mask)

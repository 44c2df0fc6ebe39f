"""Chunked attention on the whole N x N matrix: the oracle of the sorted versions, without any sorting.

Letters: B batch, H heads, N tokens, D head width, R rounds, W window of the relative bias.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xcls.attention.base import blocked_pairs, check_attn_mask, distance_matrix, full_dtype, zero_padding


def ranks(order: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """How many real tokens of its sequence come before each token, by (order, position): [B, H, R, N] -> the same."""
    position = torch.arange(order.shape[-1], device=order.device)
    this, other = order[..., :, None], order[..., None, :]
    earlier = (other < this) | ((other == this) & (position < position[:, None]))  # [B, H, R, N, N]
    if key_padding_mask is not None:
        earlier = earlier & ~key_padding_mask[:, None, None, None, :]
    return earlier.sum(dim=-1)


def candidates(
    buckets: Tensor, key_padding_mask: Tensor | None, *, bucket_size: int, chunks_before: int, chunks_after: int
) -> Tensor:
    """Who meets whom in some round: buckets [B, H, R, N] -> bool [B, H, N, N], query i in rows, key j in columns."""
    chunk = ranks(buckets, key_padding_mask) // bucket_size  # [B, H, R, N]
    apart = chunk[..., None, :] - chunk[..., :, None]
    return ((apart >= -chunks_before) & (apart <= chunks_after)).any(dim=2)


def softmax_over(
    allowed: Tensor,
    logits: Tensor,
    v: Tensor,
    *,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    relative_bias: Tensor | None,
    shun_itself: bool = False,
) -> Tensor:
    """Softmax over the allowed pairs: allowed and logits [B, H, N, N], v [B, H, N, D] -> [B, H, N, D].

    Masks and bias as in `Attention.forward`; shun_itself: a token attends to itself only where nothing else is allowed.
    """
    length = v.shape[2]
    if relative_bias is not None:
        logits = logits + distance_matrix(relative_bias, rows=length, columns=length)
    blocked = blocked_pairs(key_padding_mask, check_attn_mask(attn_mask))
    if blocked is not None:
        allowed = allowed & ~blocked
    if shun_itself:
        others = allowed & ~torch.eye(length, dtype=torch.bool, device=v.device)
        allowed = torch.where(others.any(dim=-1, keepdim=True), others, allowed)
    nothing = ~allowed.any(dim=-1, keepdim=True)
    logits = logits.to(full_dtype(logits)).masked_fill(~allowed & ~nothing, -torch.inf)
    weights = torch.softmax(logits, dim=-1).masked_fill(nothing, 0.0)
    return zero_padding(weights.to(v.dtype) @ v, key_padding_mask)


def dense_lsh(
    qk: Tensor,
    v: Tensor,
    buckets: Tensor,
    *,
    codes: Tensor | None = None,
    agreement: float = 0.0,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    relative_bias: Tensor | None = None,
    bucket_size: int,
    chunks_before: int,
    chunks_after: int,
) -> Tensor:
    """`lsh_attention` by a dense softmax: qk and v [B, H, N, D], buckets [B, H, R, N] -> [B, H, N, D]."""
    qk, v = zero_padding(qk, key_padding_mask), zero_padding(v, key_padding_mask)
    wide = qk.to(full_dtype(qk))
    keys = wide * (wide.square().mean(dim=-1, keepdim=True) + 1e-12).rsqrt() / qk.shape[-1] ** 0.5
    logits = qk @ keys.to(qk.dtype).transpose(-1, -2)  # [B, H, N, N]
    if codes is not None:
        codes = zero_padding(codes, key_padding_mask)
        logits = logits + agreement * codes @ codes.transpose(-1, -2)
    allowed = candidates(
        buckets,
        key_padding_mask,
        bucket_size=bucket_size,
        chunks_before=chunks_before,
        chunks_after=chunks_after,
    )
    return softmax_over(
        allowed,
        logits,
        v,
        key_padding_mask=key_padding_mask,
        attn_mask=attn_mask,
        relative_bias=relative_bias,
        shun_itself=True,
    )

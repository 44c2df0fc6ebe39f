"""LSH attention on the whole N x N matrix: the readable version, and the oracle of the sorted one.

Letters: B batch, H heads, N tokens, D head width, R rounds, W window of the relative bias.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xcls.attention.base import blocked_pairs, check_attn_mask, distance_matrix, full_dtype, zero_padding


def candidates(
    buckets: Tensor, key_padding_mask: Tensor | None, *, bucket_size: int, chunks_before: int, chunks_after: int
) -> Tensor:
    """Who meets whom in some round: buckets [B, H, R, N] -> bool [B, H, N, N], query i in rows, key j in columns.

    A token's place in a round is the number of real tokens before it by (bucket, position): no sorting needed.
    """
    position = torch.arange(buckets.shape[-1], device=buckets.device)
    this, other = buckets[..., :, None], buckets[..., None, :]
    earlier = (other < this) | ((other == this) & (position < position[:, None]))  # [B, H, R, N, N]
    if key_padding_mask is not None:
        earlier = earlier & ~key_padding_mask[:, None, None, None, :]
    chunk = earlier.sum(dim=-1) // bucket_size  # [B, H, R, N]
    apart = chunk[..., None, :] - chunk[..., :, None]
    return ((apart >= -chunks_before) & (apart <= chunks_after)).any(dim=2)


def dense_lsh(
    qk: Tensor,
    v: Tensor,
    buckets: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    relative_bias: Tensor | None = None,
    bucket_size: int,
    chunks_before: int,
    chunks_after: int,
) -> Tensor:
    """`lsh_attention` by a dense softmax: qk and v [B, H, N, D], buckets [B, H, R, N] -> [B, H, N, D]."""
    length, width = qk.shape[2:]
    qk, v = zero_padding(qk, key_padding_mask), zero_padding(v, key_padding_mask)
    wide = qk.to(full_dtype(qk))
    keys = wide * (wide.square().mean(dim=-1, keepdim=True) + 1e-12).rsqrt() / width**0.5
    logits = qk @ keys.to(qk.dtype).transpose(-1, -2)  # [B, H, N, N]
    if relative_bias is not None:
        logits = logits + distance_matrix(relative_bias, rows=length, columns=length)
    allowed = candidates(
        buckets,
        key_padding_mask,
        bucket_size=bucket_size,
        chunks_before=chunks_before,
        chunks_after=chunks_after,
    )
    blocked = blocked_pairs(key_padding_mask, check_attn_mask(attn_mask))
    if blocked is not None:
        allowed = allowed & ~blocked
    itself = torch.eye(length, dtype=torch.bool, device=qk.device)
    others = allowed & ~itself
    allowed = torch.where(others.any(dim=-1, keepdim=True), others, allowed)  # itself only where there is nothing else
    nothing = ~allowed.any(dim=-1, keepdim=True)
    logits = logits.to(full_dtype(logits)).masked_fill(~allowed & ~nothing, -torch.inf)
    weights = torch.softmax(logits, dim=-1).masked_fill(nothing, 0.0)
    return zero_padding(weights.to(v.dtype) @ v, key_padding_mask)

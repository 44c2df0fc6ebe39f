"""FAVOR+ with an exact band: the softmax kernel itself for near pairs, random features for the rest, one normaliser.

Chen et al. 2021, "Scatterbrain": out = (phi(Q) phi(K)^T V + S V) / the same of ones, with S = exp(q.k) - phi(q).phi(k)
on near pairs. Here the near pairs are left out of the far field instead of being subtracted from it, so that every
weight is positive. Near are the tokens of the same chunk and of the two beside it: all at most `window` away, and some
further.
Where exact attention is peaked on neighbours, features alone are at their worst; here they only estimate the rest.
Letters: B batch, H heads, N tokens, D head width, M random features, C tokens of a chunk, W window of the bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xcls.attention.base import (
    blocked_pairs,
    broken_sequences,
    by_query_blocks,
    check_attn_mask,
    distance_matrix,
    full_dtype,
    is_causal,
    isolated,
    kept_whole,
    spoiled,
    zero_padding,
)
from xcls.attention.chunks import chunk_count, from_chunks, outside_windows, to_chunks, windows
from xcls.attention.kernel import normalised, with_ones
from xcls.attention.performer import favor_map
from xcls.attention.performer_chunks import far_field
from xcls.attention.performer_features import Exponential, RandomFeatures
from xcls.attention.performer_oprf import oprf_features

LOWEST = -1e30  # the stabiliser of a row without keys: finite


@dataclass(frozen=True)
class Parts:
    """q (scaled by 1 / sqrt D), k [B, H, N, D], their features [B, H, N, M], log of the features' factor [B, H, N, 1],
    values with ones [B, H, N, D+1], relative bias [H, 2W+1] with maximum 0, pads [B, N].
    """

    q: Tensor
    k: Tensor
    phi_q: Tensor
    phi_k: Tensor
    level: Tensor
    values: Tensor
    bias: Tensor | None
    pads: Tensor | None


def make_parts(
    q: Tensor, k: Tensor, v: Tensor, features: Exponential, pads: Tensor | None, bias: Tensor | None
) -> Parts:
    """What both ways of computing need, in fp32 (fp64 for fp64 input): q, k, v [B, H, N, D]."""
    dtype = full_dtype(q)
    q, k, v = (zero_padding(x, pads).to(dtype) for x in (q, k, v))
    phi_q, level_q = features.scaled_queries(q)
    phi_k, level_k = features.scaled_keys(k, pads)
    level = (level_q + level_k - math.log(phi_q.shape[-1])).clamp(min=LOWEST)
    if bias is not None:
        bias = (bias - bias.detach().amax(dim=-1, keepdim=True)).to(dtype)
    return Parts(q * q.shape[-1] ** -0.5, k, phi_q, phi_k, level, with_ones(v), bias, pads)


def chunked_products(parts: Parts, *, chunk: int, causal: bool) -> Tensor:
    """The band pair by pair and the far field through sums over chunks: sums of weights x values [B, H, N, D+1]."""
    batch, heads, length, width = parts.q.shape
    shape = (batch, heads, chunk_count(length, chunk, 1))
    q, k, phi_q, phi_k, level, values = (
        to_chunks(x, chunk, 1) for x in (parts.q, parts.k, parts.phi_q, parts.phi_k, parts.level, parts.values)
    )
    logits = (q @ windows(k, 1).transpose(1, 2)).view(*shape, chunk, 3 * chunk)
    if parts.bias is not None:
        logits = logits + distance_matrix(parts.bias, rows=chunk, columns=3 * chunk, offset=-chunk)[:, None]
    blocked = outside_windows(parts.pads, parts.q, chunk, 1)
    if causal:
        blocked = blocked | logits.new_ones(chunk, 3 * chunk, dtype=torch.bool).triu(chunk + 1)
    logits = logits.masked_fill(blocked, -torch.inf).flatten(0, 2)
    peak = torch.maximum(logits.detach().amax(dim=-1, keepdim=True), level.detach())  # [B*H*chunks, C, 1]
    near = (logits - peak).exp() @ windows(values, 1)
    factor = None if parts.bias is None else parts.bias.exp()
    far = phi_q @ far_field(phi_k, values, shape, factor=factor, causal=causal, reach=1)
    return from_chunks(near + far * (level - peak).exp(), batch, heads, length)


def dense_products(parts: Parts, *, chunk: int, block: Tensor, start: int, attn_mask: Tensor | None) -> Tensor:
    """The whole kernel matrix for some rows: block [B, H, rows, D + M + 1] of q, phi_q and level, from row `start`;
    attn_mask bool [1|B, 1|H, rows, N]. Returns [B, H, rows, D+1].
    """
    width, features = parts.q.shape[-1], parts.phi_q.shape[-1]
    q, phi_q, level = block.split((width, features, 1), dim=-1)
    rows, length = block.shape[2], parts.k.shape[2]
    home = torch.arange(length, device=q.device) // chunk
    near = (home - home[start : start + rows, None]).abs() <= 1  # [rows, N]
    blocked = blocked_pairs(parts.pads, attn_mask)
    away = ~near if blocked is None else ~near | blocked
    logits, bias = q @ parts.k.transpose(-1, -2), 0.0
    if parts.bias is not None:
        bias = distance_matrix(parts.bias, rows=rows, columns=length, offset=-start)
        logits = logits + bias
    logits = logits.masked_fill(away, -torch.inf)
    peak = torch.maximum(logits.detach().amax(dim=-1, keepdim=True), level.detach())
    far = (phi_q @ parts.phi_k.transpose(-1, -2)) * (level - peak + bias).exp()
    far = far.masked_fill(near if blocked is None else near | blocked, 0.0)
    return ((logits - peak).exp() + far) @ parts.values


def band_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    features: Exponential,
    *,
    window: int,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    relative_bias: Tensor | None = None,
    block_size: int = 256,
    block_above: int = 2**26,
    dense: bool = False,
) -> Tensor:
    """exp(q.k) for near pairs, phi(q).phi(k) for the others, times exp(bias): q, k, v [B, H, N, D] -> [B, H, N, D].

    Masks and bias as in `Attention.forward`. Chunks hold `window` tokens, or those of the bias's window if it is wider.
    Linear in N as `kernel_attention` is; a general attn_mask and `dense` take the whole kernel.
    """
    attn_mask = check_attn_mask(attn_mask)
    length = q.shape[2]
    chunk = window if relative_bias is None else max(window, relative_bias.shape[-1] // 2)
    with torch.autocast(q.device.type, enabled=False):
        parts = make_parts(q, k, v, features, key_padding_mask, relative_bias)
        causal = attn_mask is not None and not dense and is_causal(attn_mask)
        if dense or (attn_mask is not None and not causal):

            def rows(block: Tensor, start: int) -> Tensor:
                mask = None if attn_mask is None else attn_mask[:, :, start : start + block.shape[2]]
                return dense_products(parts, chunk=chunk, block=block, start=start, attn_mask=mask)

            packed = torch.cat((parts.q, parts.phi_q, parts.level), dim=-1)
            whole = dense or kept_whole(*q.shape[:2], length, block_above)
            products = rows(packed, 0) if whole else by_query_blocks(rows, packed, block_size)
        else:
            products = chunked_products(parts, chunk=min(chunk, max(length, 1)), causal=causal)
        return zero_padding(normalised(products), key_padding_mask).to(v.dtype)


class PerformerBand(RandomFeatures):
    """FAVOR+ with an exact band; see `band_attention`."""

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        layer: int,
        seed: int,
        num_features: int = 128,
        orthogonal: bool = True,
        epsilon: float = 1e-12,
        window: int = 64,
        block_size: int = 256,
        block_above: int = 2**26,
    ) -> None:
        """window: all pairs at most so far apart are exact; the others: see `RandomFeatures`."""
        super().__init__(
            num_heads=num_heads,
            head_dim=head_dim,
            layer=layer,
            seed=seed,
            num_features=num_features,
            orthogonal=orthogonal,
            epsilon=epsilon,
            chunk_size=window,
            block_size=block_size,
            block_above=block_above,
        )
        self.window = window

    def feature_map(self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None) -> Exponential:
        """Those of FAVOR+."""
        return favor_map(self.projection, epsilon=self.epsilon)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        relative_bias: Tensor | None,
        *,
        dense: bool,
    ) -> Tensor:
        # The empty chunk behind a sequence sees the next one, which gradients alone could tell: its own output is dropped.
        broken = broken_sequences(key_padding_mask, q, k, v) if torch.is_grad_enabled() else None
        q, k, v = (isolated(x, broken) for x in (q, k, v))
        out = band_attention(
            q,
            k,
            v,
            self.feature_map(q, k, key_padding_mask),
            window=self.window,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            relative_bias=relative_bias,
            block_size=self.block_size,
            block_above=self.block_above,
            dense=dense,
        )
        return out if broken is None else zero_padding(spoiled(out, broken), key_padding_mask)

    def operations(self, shape: Any) -> tuple[tuple[float, float], tuple[float, float]]:
        """Features as in `RandomFeatures`; then of whole chunks, the empty one behind the tokens included, the far field
        and the three chunks of the band, the normaliser being a column of the values. Two products backward for each.
        """
        chunk = min(self.window, shape.length)
        slots = shape.batch * shape.heads * chunk_count(shape.length, chunk, 1) * chunk
        features, width = 4.0 * shape.vectors * self.num_features, shape.head_dim
        band, far = 2.0 * slots * 3 * chunk * (2 * width + 1), 4.0 * slots * self.num_features * (width + 1)
        moved = 4.0 * shape.itemsize * shape.vectors
        return (features + band + far, moved), (2 * features + 3 * (band + far), 3 * moved)


class PerformerBandOprf(PerformerBand):
    """The band with the features of FAVOR++ beyond it."""

    def feature_map(self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None) -> Exponential:
        """Those that are best for these q, k."""
        return oprf_features(self.projection, q, k, key_padding_mask, epsilon=self.epsilon)

    def operations(self, shape: Any) -> tuple[tuple[float, float], tuple[float, float]]:
        """As in `PerformerBand`, and backward the gradient of the directions, through which A gets its own."""
        inference, (flops, moved) = super().operations(shape)
        return inference, (flops + 4.0 * shape.vectors * self.num_features, moved)

"""FAVOR+ with an exact band: the softmax kernel itself for near pairs, random features for the rest, one normaliser.

Chen et al. 2021, "Scatterbrain": out = (phi(Q) phi(K)^T V + S V) / the same of ones, with S = exp(q.k) - phi(q).phi(k)
on near pairs. Here the far field leaves the near pairs out instead of subtracting them, so that every weight is
positive. Near are the tokens of the same chunk and of the two beside it: all tokens up to `window` away, and some that
are further. Random features are least accurate where attention is peaked, which is often on neighbours; here they
only estimate the rest.
Letters: B batch, H heads, N tokens, D head dimension, M random features, C tokens of a chunk, n chunks, W window of the
bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xcls.attention.base import Masks, by_query_blocks, distance_matrix, full_dtype, zero_padding
from xcls.attention.favor import Performer, key_features, normalised, query_features
from xcls.attention.favor_masked import far_field, from_chunks, to_chunks
from xcls.attention.favor_oprf import best_directions
from xcls.attention.operations import Shape, Work

LOWEST = -1e30  # the stabiliser of a row without keys; finite, so that differences have a value


@dataclass(frozen=True)
class Parts:
    """The inputs of `chunked_sums` and `dense_sums`, in fp32 (fp64 for fp64 input).

    q (scaled by 1 / sqrt D), k: [B, H, N, D]; phi_q, phi_k: their features [B, H, N, M]; level: the log of the divisor
    of the features [B, H, N, 1]; values: [v, 1], [B, H, N, D+1]; bias: [H, 2W+1], of maximum 0.
    """

    q: Tensor
    k: Tensor
    phi_q: Tensor
    phi_k: Tensor
    level: Tensor
    values: Tensor
    bias: Tensor | None
    masks: Masks


def chunked_sums(parts: Parts, size: int, *, causal: bool) -> Tensor:
    """Sums of weights x [v, 1], [B, H, N, D+1]: the band pair by pair, the far field by sums over chunks of `size`."""
    batch, count, length, _ = parts.q.shape
    heads = batch, count
    q, phi_q, level = (to_chunks(x, size, 0) for x in (parts.q, parts.phi_q, parts.level))
    k, phi_k, values = (to_chunks(x, size, 1) for x in (parts.k, parts.phi_k, parts.values))
    step = batch * count  # to the next chunk of the same sequence
    band = [slice(number * step, number * step + len(q)) for number in range(2 if causal else 3)]  # before, own, after
    logits = []
    for number, (other, outside) in enumerate(zip(band, outside_chunks(parts, size))):
        scores = torch.bmm(q, k[other].transpose(1, 2)).unflatten(0, (-1, *heads))  # [n, B, H, C, C]
        if parts.bias is not None:
            scores = scores + distance_matrix(parts.bias, rows=size, columns=size, offset=(number - 1) * size)
        if causal and number == 1:
            outside = outside | scores.new_ones(size, size, dtype=torch.bool).triu(1)
        logits.append(scores.masked_fill_(outside, -torch.inf).flatten(0, 2))
    peak = level.detach()  # [n B H, C, 1]
    for scores in logits:
        peak = torch.maximum(peak, scores.detach().amax(dim=-1, keepdim=True))
    factor = None if parts.bias is None else parts.bias.exp()
    far = phi_q @ far_field(phi_k, values, factor, heads, causal=causal, reach=1)
    sums = far * (level - peak).exp()
    for scores, other in zip(logits, band):
        sums = sums + torch.bmm((scores - peak).exp_(), values[other])
    return from_chunks(sums, heads, length)


def outside_chunks(parts: Parts, size: int) -> list[Tensor]:
    """Which slots of the chunk before, the own chunk and the chunk after hold no real token: bool [n, B|1, 1, 1, C]."""
    length = parts.q.shape[2]
    outside = parts.q.new_zeros(1, length, dtype=torch.bool) if parts.masks.padding is None else parts.masks.padding
    outside = F.pad(outside, (size, -length % size + size), value=True).unflatten(1, (-1, size)).transpose(0, 1)
    return [outside[number : len(outside) - 2 + number, :, None, None] for number in range(3)]


def dense_sums(parts: Parts, size: int, block: Tensor, start: int) -> Tensor:
    """Sums of weights x [v, 1], [B, H, rows, D+1], with the whole kernel matrix of some rows, from row `start` on.

    block: q, phi_q and level of these rows, [B, H, rows, D + M + 1].
    """
    q, phi_q, level = block.split((parts.q.shape[-1], parts.phi_q.shape[-1], 1), dim=-1)
    rows, length = block.shape[2], parts.k.shape[2]
    chunk = torch.arange(length, device=q.device) // size
    near = (chunk - chunk[start : start + rows, None]).abs() <= 1  # [rows, N]
    blocked: Any = parts.masks.blocked(slice(start, start + rows))
    logits: Any = q @ parts.k.transpose(-1, -2)
    bias: Any = 0.0
    if parts.bias is not None:
        bias = distance_matrix(parts.bias, rows=rows, columns=length, offset=-start)
        logits = logits + bias
    logits = logits.masked_fill(~near | blocked, -torch.inf)
    peak = torch.maximum(logits.detach().amax(dim=-1, keepdim=True), level.detach())
    far = (phi_q @ parts.phi_k.transpose(-1, -2)) * (level - peak + bias).exp()
    return ((logits - peak).exp() + far.masked_fill(near | blocked, 0.0)) @ parts.values


class PerformerBand(Performer):
    """exp(q.k) for near pairs, phi(q).phi(k) for the others, times exp(bias).

    A chunk holds `window` tokens, or as many as the window of the bias, if that is wider. Linear in N in the same cases
    as `linear_attention`.
    """

    def __init__(self, *, window: int = 64, **shape: Any) -> None:
        """window: pairs up to this many tokens apart are exact."""
        super().__init__(chunk_size=window, **shape)
        self.window = window

    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        """q, k, v [B, H, N, D] -> [B, H, N, D]."""
        size = self.window if masks.bias is None else max(self.window, masks.bias.shape[-1] // 2)
        parts = self.parts(q, k, v, masks)
        if masks.pairs is None or masks.causal:
            return normalised(chunked_sums(parts, min(size, q.shape[2]), causal=masks.causal)).to(v.dtype)

        def rows(block: Tensor, start: int) -> Tensor:
            return dense_sums(parts, size, block, start)

        packed = torch.cat((parts.q, parts.phi_q, parts.level), dim=-1)
        return normalised(by_query_blocks(rows, packed, masks.layers)).to(v.dtype)

    def parts(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Parts:
        """See `Parts`."""
        q, k, v = (x.to(full_dtype(q)) for x in (q, k, v))
        directions, bias = self.directions(q, k, masks), masks.bias
        phi_q, level_q = query_features(q, *directions)
        phi_k, level_k = key_features(k, *directions, padding=masks.padding, epsilon=self.epsilon)
        level = (level_q + level_k - math.log(self.num_features)).clamp(min=LOWEST)
        if bias is not None:
            bias = (bias - bias.detach().amax(dim=-1, keepdim=True)).to(q.dtype)
        values = zero_padding(F.pad(v, (0, 1), value=1.0), masks.padding)
        return Parts(q * self.head_dim**-0.5, k, phi_q, phi_k, level, values, bias, masks)

    def operations(self, shape: Shape) -> tuple[Work, Work]:
        """Features as in `Performer`; then the far field and the three chunks of the band, on whole chunks.

        Backward: two products for each of these.
        """
        chunk = min(self.window, shape.length)
        slots, features = shape.slots(chunk), 4.0 * shape.vectors * self.num_features
        both = 4.0 * slots * shape.head_dim * (3 * chunk + self.num_features)
        return Work(features + both, shape.moved), Work(2 * features + 3 * both, 3 * shape.moved)


class PerformerBandOprf(PerformerBand):
    """The band with the features of FAVOR++ beyond it."""

    def directions(self, q: Tensor, k: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """The directions with the best A for these q, k."""
        return best_directions(self.projection, q, k, masks.padding)

    def operations(self, shape: Shape) -> tuple[Work, Work]:
        """As in `PerformerBand`, and backward the gradient of the directions, from which A gets its gradient."""
        inference, training = super().operations(shape)
        return inference, training + Work(4.0 * shape.vectors * self.num_features, 0)

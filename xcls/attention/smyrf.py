"""SMYRF attention: queries and keys are sorted separately by asymmetric hashes and cut into balanced clusters.

Daras, Kitaev, Odena and Dimakis 2020, "SMYRF: Efficient Attention using Asymmetric Clustering", section 3. With
F(q) = [q; 0; sqrt(M - |q|^2)] and G(k) = [k; sqrt(M - |k|^2); 0], M = max |q|^2 + max |k|^2, the distance
|F(q) - G(k)|^2 = 2 M - 2 q.k falls as q.k grows, so that hashing for near neighbours finds large logits. A hash is a
random projection; queries and keys are sorted by it separately, and the n-th cluster of queries attends to the n-th
cluster of keys. Ours differs: several hash rounds give one softmax over the union of their candidates; the paper weighs
rounds by their normalisers, so that a key met in several rounds counts several times.
Letters: B batch, H heads, N tokens, D head dimension, R hash rounds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xcls.attention.base import HEADROOM, Attention, Masks, full_dtype, mix
from xcls.attention.operations import Shape, Work, sorted_chunks_work
from xcls.attention.sorted_chunks import Chunks, attend, real_tokens


@torch.no_grad()
def asymmetric_scores(q: Tensor, k: Tensor, directions: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The hashes F(q).a and G(k).a: q and k [B, H, N, D], directions [R, H, D + 2] -> two of [B, H, R, N].

    The maxima of |q| and |k| are per example and head, over real tokens. Computed in fp32 at least.
    """
    dtype = full_dtype(q)
    q, k, directions = q.to(dtype), k.to(dtype), directions.to(dtype)
    q_square, k_square = q.square().sum(dim=-1, keepdim=True), k.square().sum(dim=-1, keepdim=True)  # [B, H, N, 1]
    if padding is not None:
        q_square, k_square = (x.masked_fill(padding[:, None, :, None], 0.0) for x in (q_square, k_square))
    most = q_square.amax(dim=2, keepdim=True) + k_square.amax(dim=2, keepdim=True)
    along, k_fill, q_fill = directions.permute(1, 2, 0).split((q.shape[-1], 1, 1), dim=1)  # [H, D, R], 2 x [H, 1, R]
    q_scores = q @ along + (most - q_square).sqrt() * q_fill  # [B, H, N, R]
    k_scores = k @ along + (most - k_square).sqrt() * k_fill
    return q_scores.transpose(2, 3), k_scores.transpose(2, 3)


@torch.no_grad()
def sorted_by(scores: Tensor, padding: Tensor | None) -> Tensor:
    """Each round's positions sorted by (score, position), padding last: [B, H, R, N] -> the same shape."""
    if padding is not None:
        scores = scores.masked_fill(padding[:, None, None, :], torch.inf)
    return scores.argsort(dim=-1, stable=True)


def smyrf_attention(
    q: Tensor, k: Tensor, v: Tensor, q_scores: Tensor, k_scores: Tensor, masks: Masks, *, bucket_size: int
) -> Tensor:
    """softmax(q.k / sqrt(D)) over the union of the clusters of all rounds.

    q, k, v [B, H, N, D], scores [B, H, R, N] -> [B, H, N, D]. The n real tokens of an example make
    ceil(n / bucket_size) clusters, whose sizes differ by one at most.
    """
    q_order, k_order = (sorted_by(scores, masks.padding) for scores in (q_scores, k_scores))
    clusters = Chunks(q_order, k_order, real_tokens(masks), bucket_size, balanced=True)
    scale = HEADROOM if q.dtype == torch.float16 else 1.0
    return attend(q * (q.shape[-1] ** -0.5 / scale), k, v, clusters, masks, scale=scale)


class Smyrf(Attention):
    """SMYRF attention with fixed random directions per layer, round and head; see `smyrf_attention`."""

    directions: Tensor

    def __init__(self, *, num_hashes: int = 2, bucket_size: int = 64, **shape: Any) -> None:
        """num_hashes: R; bucket_size: the largest number of tokens of a cluster."""
        super().__init__(**shape)
        if min(num_hashes, bucket_size) < 1:
            raise ValueError("num_hashes and bucket_size must be at least 1")
        self.bucket_size = bucket_size
        self.register_buffer("directions", torch.empty(num_hashes, self.num_heads, self.head_dim + 2))
        self.redraw(torch.Generator().manual_seed(mix(self.seed, self.layer)))

    def redraw(self, generator: torch.Generator) -> None:
        """New directions from `generator` (a CPU one)."""
        self.directions.copy_(torch.randn(self.directions.shape, generator=generator))

    def operations(self, shape: Shape) -> tuple[Work, Work]:
        """q and k times the direction of each round, and attention within clusters; moves the sorted k as well."""
        rounds = len(self.directions)
        hashes = Work(4.0 * rounds * shape.vectors, shape.moved / 2)
        inference, training = sorted_chunks_work(shape, rounds=rounds, size=self.bucket_size)
        keys = Work(0, rounds * shape.moved / 4)
        return hashes + inference + keys, hashes + training + keys * 3

    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        """q, k, v [B, H, N, D] -> [B, H, N, D]."""
        scores = asymmetric_scores(q, k, self.directions, masks.padding)
        return smyrf_attention(q, k, v, *scores, masks, bucket_size=self.bucket_size)

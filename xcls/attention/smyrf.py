"""SMYRF attention: queries and keys of their own, sorted apart by asymmetric hashes, cut into balanced clusters.

Daras, Kitaev, Odena and Dimakis 2020, "SMYRF: Efficient Attention using Asymmetric Clustering", section 3. With
F(q) = [q; 0; sqrt(M - |q|^2)] and G(k) = [k; sqrt(M - |k|^2); 0], M = max |q|^2 + max |k|^2, the distance
|F(q) - G(k)|^2 = 2 M - 2 q.k falls as q.k grows, so that hashing for near neighbours finds large logits. A hash is a
random projection; queries and keys are sorted by it, each on their own, and the n-th clusters of both attend.
Ours: several rounds give the softmax over the union of their candidates, where the paper adds up rounds by their
normalisers, and counts a key as often as it was met. Letters: B batch, H heads, N tokens, D head width, R rounds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xcls.attention.base import (
    Attention,
    broken_sequences,
    check_attn_mask,
    full_dtype,
    isolated,
    mix,
    product_dtype,
    spoiled,
    zero_padding,
)
from xcls.attention.cluster_fast import attend_clusters
from xcls.attention.cluster_layout import as_rows, from_rows, lay_out
from xcls.attention.reformer_oracle import ranks, softmax_over


@torch.no_grad()
def asymmetric_scores(
    q: Tensor, k: Tensor, directions: Tensor, key_padding_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The hashes F(q).a and G(k).a: q and k [B, H, N, D], directions [R, H, D + 2] -> two of [B, H, R, N].

    The maxima of |q| and |k| are per example and head, over real tokens (pads are zero here).
    """
    q, k = zero_padding(q, key_padding_mask), zero_padding(k, key_padding_mask)
    q_square, k_square = q.square().sum(dim=-1, keepdim=True), k.square().sum(dim=-1, keepdim=True)  # [B, H, N, 1]
    most = q_square.amax(dim=2, keepdim=True) + k_square.amax(dim=2, keepdim=True)
    along, k_fill, q_fill = directions.permute(1, 2, 0).split((q.shape[-1], 1, 1), dim=1)  # [H, D, R], 2 x [H, 1, R]
    q_scores = q @ along + (most - q_square).sqrt() * q_fill  # [B, H, N, R]
    k_scores = k @ along + (most - k_square).sqrt() * k_fill
    return q_scores.transpose(2, 3), k_scores.transpose(2, 3)


@torch.no_grad()
def score_rows(scores: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """Each sequence's rows (b N + n) H + h sorted by (score, position), pads last: [B, H, R, N] -> [R, G, N]."""
    batch, heads, rounds, length = scores.shape
    if key_padding_mask is not None:
        scores = scores.masked_fill(key_padding_mask[:, None, None, :], torch.inf)
    position = scores.argsort(dim=-1, stable=True)
    example = torch.arange(batch, device=scores.device)[:, None, None, None]
    head = torch.arange(heads, device=scores.device)[:, None, None]
    rows = (example * length + position) * heads + head
    return rows.permute(2, 0, 1, 3).reshape(rounds, batch * heads, length)


def smyrf_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_scores: Tensor,
    k_scores: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    relative_bias: Tensor | None = None,
    bucket_size: int = 64,
    attend: Callable[..., Tensor] = attend_clusters,
) -> Tensor:
    """softmax(q.k / sqrt(D)) over the union of the rounds' clusters: q, k, v [B, H, N, D], scores [B, H, R, N] ->
    [B, H, N, D].

    An example's real tokens make as many clusters as hold `bucket_size` at the most, of equal size up to one token.
    Masks and bias as in `Attention.forward`. `attend`: `attend_clusters` or `plain_clusters`, its readable version.
    """
    batch, heads, length, width = q.shape
    layout = lay_out(
        score_rows(q_scores, key_padding_mask),
        score_rows(k_scores, key_padding_mask),
        (batch, heads, length),
        key_padding_mask=key_padding_mask,
        size=bucket_size,
        balanced=True,
    )
    # fp16 ends at 65,504, and q k^T of large activations does not: leave it four more powers of two.
    headroom = 16.0 if product_dtype(q) == torch.float16 else 1.0
    broken = broken_sequences(key_padding_mask, q, k, v, shown=(q_scores, k_scores, v))
    queries, keys, values = (as_rows(isolated(zero_padding(x, key_padding_mask), broken)) for x in (q, k, v))
    out = attend(
        queries * (width**-0.5 / headroom),
        keys,
        values,
        layout,
        attn_mask=check_attn_mask(attn_mask),
        bias=relative_bias,
        scale=headroom,
    )
    return zero_padding(spoiled(from_rows(out, batch, heads), broken), key_padding_mask)


def dense_smyrf(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_scores: Tensor,
    k_scores: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    relative_bias: Tensor | None = None,
    bucket_size: int,
) -> Tensor:
    """`smyrf_attention` by a dense softmax and without sorting, as the oracle: arguments and result as there."""
    length = q.shape[2]
    tokens = torch.tensor(length, device=q.device)
    if key_padding_mask is not None:
        tokens = (~key_padding_mask).sum(dim=-1).clamp(min=1)[:, None, None, None]
    parts = (tokens + bucket_size - 1) // bucket_size
    q_cluster, k_cluster = (ranks(scores, key_padding_mask) * parts // tokens for scores in (q_scores, k_scores))
    allowed = (q_cluster[..., :, None] == k_cluster[..., None, :]).any(dim=2)  # [B, H, N, N]
    q, k, v = (zero_padding(x, key_padding_mask) for x in (q, k, v))
    dtype = full_dtype(q)
    logits = q.to(dtype) @ k.to(dtype).transpose(-1, -2) / q.shape[-1] ** 0.5
    return softmax_over(
        allowed, logits, v, key_padding_mask=key_padding_mask, attn_mask=attn_mask, relative_bias=relative_bias
    )


class Smyrf(Attention):
    """SMYRF attention with fixed random directions per layer, round and head; see `smyrf_attention`."""

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        layer: int,
        seed: int,
        num_hashes: int = 2,
        bucket_size: int = 64,
    ) -> None:
        """num_hashes: R; bucket_size: most tokens of a cluster."""
        super().__init__(num_heads=num_heads, head_dim=head_dim, layer=layer, seed=seed)
        if min(num_hashes, bucket_size) < 1:
            raise ValueError("num_hashes and bucket_size must be at least 1")
        self.bucket_size = bucket_size
        self.register_buffer("directions", torch.empty(num_hashes, num_heads, head_dim + 2))
        self.redraw(torch.Generator().manual_seed(mix(seed, layer)))

    def redraw(self, generator: torch.Generator) -> None:
        """New directions from `generator` (a CPU one)."""
        self.directions.copy_(torch.randn(self.directions.shape, generator=generator))

    def scores(self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """`asymmetric_scores` of q and k [B, H, N, D], in fp32 at least, outside autocast."""
        dtype = full_dtype(q)
        with torch.autocast(q.device.type, enabled=False):
            return asymmetric_scores(q.to(dtype), k.to(dtype), self.directions.to(dtype), key_padding_mask)

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
        return smyrf_attention(
            q,
            k,
            v,
            *self.scores(q, k, key_padding_mask),
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            relative_bias=relative_bias,
            bucket_size=self.bucket_size,
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
        """A dense softmax over the union of clusters, with the same hashes: [B, H, N, D] -> [B, H, N, D]."""
        return dense_smyrf(
            q,
            k,
            v,
            *self.scores(q, k, key_padding_mask),
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            relative_bias=relative_bias,
            bucket_size=self.bucket_size,
        )

"""LSH attention: each token attends to the tokens that random rotations sort near it, in N log N.

Kitaev, Kaiser and Levskaya 2020, "Reformer: The Efficient Transformer", sections 2 and 3 and appendix A.
Queries and keys are one projection. A round hashes it to buckets, sorts by (bucket, position) and cuts the sorted
sequence into chunks; a token's candidates are the real tokens of its chunk and of the named neighbouring chunks.
Letters: B batch, H heads, N tokens, D head width, R rounds, C tokens of a chunk, rows = B N H.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
from xcls.attention.reformer_oracle import dense_lsh
from xcls.attention.reformer_sort import lsh_buckets, sorted_rows

PART = 2**14  # rows at a time: small buffers stay in the cache, and cost no page faults


class UnitKeys(torch.autograd.Function):
    """x / |x|, computed in fp32 at least: [rows, D] -> same shape and dtype. Finite at zero, gradients too."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        """[rows, D] -> [rows, D]."""
        keys, scale = torch.empty_like(x), torch.empty(len(x), 1, dtype=full_dtype(x), device=x.device)
        for part, key, factor in zip(x.split(PART), keys.split(PART), scale.split(PART)):
            part = part.to(scale.dtype)
            square = torch.linalg.vecdot(part, part)[:, None]
            torch.rsqrt(square / x.shape[-1] + 1e-12, out=factor).mul_(x.shape[-1] ** -0.5)
            key.copy_(part * factor)
        ctx.save_for_backward(keys, scale)
        return keys

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        """The part of the gradient across the key, over |x|: [rows, D] -> [rows, D]."""
        keys, scale = ctx.saved_tensors
        out = torch.empty_like(keys)
        for g, key, factor, part in zip(*(x.split(PART) for x in (grad, keys, scale, out))):
            g, key = g.to(scale.dtype), key.to(scale.dtype)
            along = torch.linalg.vecdot(g, key)[:, None]
            part.copy_(torch.addcmul(g, key, along, value=-1).mul_(factor))
        return out


def lsh_attention(
    qk: Tensor,
    v: Tensor,
    buckets: Tensor,
    *,
    codes: Tensor | None = None,
    agreement: float = 0.0,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    relative_bias: Tensor | None = None,
    bucket_size: int = 64,
    chunks_before: int = 1,
    chunks_after: int = 0,
    attend: Callable[..., Tensor] = attend_clusters,
) -> Tensor:
    """Softmax over the union of the rounds' candidates: qk and v [B, H, N, D], buckets [B, H, R, N] -> [B, H, N, D].

    Logits are q.k with k = q / |q|, as in the authors' code and in transformers (no further 1 / sqrt(D): |q| is about
    sqrt(D) by itself; reformer-pytorch does divide once more). A key met in several rounds counts once. Masks and
    bias as in `Attention.forward`. A token attends to itself only where nothing else is allowed. Pads sort behind all
    real tokens, and no chunk wraps around. codes [B, H, N, F]: adds agreement x code.code to the logits of a pair.
    `attend`: `attend_clusters`, or `plain_clusters`, its readable version.
    """
    batch, heads, length, _ = qk.shape
    order = sorted_rows(buckets, key_padding_mask)
    layout = lay_out(
        order,
        order,
        (batch, heads, length),
        key_padding_mask=key_padding_mask,
        size=bucket_size,
        before=chunks_before,
        after=chunks_after,
    )
    broken = broken_sequences(key_padding_mask, qk, v)
    queries, values = (as_rows(isolated(zero_padding(x, key_padding_mask), broken)) for x in (qk, v))
    queries = queries.to(product_dtype(queries))
    keys = UnitKeys.apply(queries)
    if codes is not None:
        more = as_rows(isolated(zero_padding(codes, key_padding_mask), broken)).to(queries.dtype)
        queries, keys = torch.cat((queries, agreement * more), dim=-1), torch.cat((keys, more), dim=-1)
    out = attend(
        queries,
        keys,
        values,
        layout,
        attn_mask=check_attn_mask(attn_mask),
        bias=relative_bias,
        shun_itself=True,
    )
    return zero_padding(spoiled(from_rows(out, batch, heads), broken), key_padding_mask)


class Reformer(Attention):
    """LSH attention with fixed random rotations per layer, round and head; see `lsh_attention`."""

    ties_qk = True
    agreement = 0.0  # what the codes of a modification weigh in the logits

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        layer: int,
        seed: int,
        num_hashes: int = 1,
        bucket_size: int = 64,
        chunks_before: int = 1,
        chunks_after: int = 0,
        max_buckets: int = 256,
        hash_rotated: bool = False,
    ) -> None:
        """num_hashes: R; bucket_size: C; chunks_before, chunks_after: neighbouring chunks seen; max_buckets: even.

        hash_rotated: hash after the rotary embedding, which makes buckets depend on position, or before it.
        """
        super().__init__(num_heads=num_heads, head_dim=head_dim, layer=layer, seed=seed)
        if min(num_hashes, bucket_size) < 1 or min(chunks_before, chunks_after) < 0:
            raise ValueError("num_hashes and bucket_size must be at least 1, chunks_before and chunks_after at least 0")
        if max_buckets < 2 or max_buckets % 2:
            raise ValueError(f"max_buckets must be even and at least 2, not {max_buckets}")
        self.bucket_size = bucket_size
        self.chunks_before = chunks_before
        self.chunks_after = chunks_after
        self.hash_rotated = hash_rotated
        self.wants_unrotated = not hash_rotated
        self.register_buffer("rotations", torch.empty(num_hashes, num_heads, head_dim, max_buckets // 2))
        self.redraw(torch.Generator().manual_seed(mix(seed, layer)))

    def redraw(self, generator: torch.Generator) -> None:
        """New rotations from `generator` (a CPU one)."""
        self.rotations.copy_(torch.randn(self.rotations.shape, generator=generator))

    def buckets(self, x: Tensor, key_padding_mask: Tensor | None, context: dict | None) -> Tensor:
        """Hash x [B, H, N, D], zeros in pads, in fp32 at least -> [B, H, R, N]. Modifications replace this."""
        return lsh_buckets(
            x, self.rotations.to(full_dtype(x)), bucket_size=self.bucket_size, key_padding_mask=key_padding_mask
        )

    def codes(self, x: Tensor, key_padding_mask: Tensor | None) -> Tensor | None:
        """What `lsh_attention` takes as codes: x as for `buckets` -> [B, H, N, F], or None."""
        return None

    def arguments(
        self,
        q: Tensor,
        *,
        key_padding_mask: Tensor | None,
        rotate: Callable[[Tensor], Tensor] | None,
        context: dict | None,
    ) -> dict:
        """Rotate and hash, in the configured order: q [B, H, N, D] -> what `lsh_attention` takes besides v and masks.

        Hashes have no gradient; codes do, where a modification has them.
        """
        turned = q if rotate is None else rotate(q)
        with torch.autocast(q.device.type, enabled=False):
            source = zero_padding(turned if self.hash_rotated else q, key_padding_mask)
            buckets = self.buckets(source.detach(), key_padding_mask, context)
            codes = self.codes(source, key_padding_mask)
        return {
            "qk": turned,
            "buckets": buckets,
            "codes": codes,
            "agreement": self.agreement,
            "key_padding_mask": key_padding_mask,
            "bucket_size": self.bucket_size,
            "chunks_before": self.chunks_before,
            "chunks_after": self.chunks_after,
        }

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
        """q (k is the same, and is not read), v [B, H, N, D] -> [B, H, N, D]; arguments as in `Attention.forward`."""
        hashed = self.arguments(q, key_padding_mask=key_padding_mask, rotate=rotate, context=context)
        return lsh_attention(v=v, attn_mask=attn_mask, relative_bias=relative_bias, **hashed)

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
        """A dense softmax over the union of candidates, with the same hashes: [B, H, N, D] -> [B, H, N, D]."""
        hashed = self.arguments(q, key_padding_mask=key_padding_mask, rotate=rotate, context=context)
        return dense_lsh(v=v, attn_mask=attn_mask, relative_bias=relative_bias, **hashed)

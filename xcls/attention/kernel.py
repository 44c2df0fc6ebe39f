"""Kernel attention: weights phi(q).phi(k) for a feature map phi, linear in the number of tokens.

Katharopoulos et al. 2020, "Transformers are RNNs": phi(Q) (phi(K)^T V) needs no N x N matrix. What differs between
the mechanisms built on it is the feature map alone: `performer.py`, `performer_oprf.py`, `performer_relu.py`, ...
Letters: B batch, H heads, N tokens, D head width, M features, W window of the relative bias.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from xcls.attention.base import (
    Attention,
    by_query_blocks,
    check_attn_mask,
    distance_matrix,
    full_dtype,
    is_causal,
    kept_whole,
    zero_padding,
)
from xcls.attention.performer_chunks import banded_products

DEAD = 1e-30  # a normaliser below this is that of a row with nothing to attend to


class FeatureMap:
    """phi: what turns queries and keys [B, H, N, D] into non-negative features [B, H, N, M]."""

    def queries(self, q: Tensor) -> Tensor:
        """phi(q) [B, H, N, M], each row up to a factor of its own."""
        raise NotImplementedError

    def keys(self, k: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        """phi(k) [B, H, N, M], zero in pads, each head of each example up to a factor of its own."""
        raise NotImplementedError

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None) -> Tensor | None:
        """The attention without a mask between tokens, [B, H, N, D], where a map has a quicker way; else None."""
        return None


def normalised(products: Tensor) -> Tensor:
    """sum of weights x [v, 1] -> weighted mean of v: [B, H, N, D+1] -> [B, H, N, D], zeros where no weight is."""
    total = products[..., -1:]
    return products[..., :-1] / total.masked_fill(total < DEAD, 1.0)


def with_ones(v: Tensor) -> Tensor:
    """v [B, H, N, D] with a column of ones, [B, H, N, D+1]: the normaliser is the sum for a value of one."""
    return F.pad(v, (0, 1), value=1.0)


def dense_products(
    phi_q: Tensor, phi_k: Tensor, values: Tensor, *, factor: Tensor | None = None, blocked: Tensor | None = None
) -> Tensor:
    """The kernel matrix written out: (phi_q phi_k^T x factor, zero where blocked) values.

    phi_q [B, H, rows, M], phi_k [B, H, N, M], values [B, H, N, D+1], factor [H, rows, N],
    blocked bool [1|B, 1|H, rows, N] -> [B, H, rows, D+1].
    """
    kernel = phi_q @ phi_k.transpose(-1, -2)
    if factor is not None:
        kernel = kernel * factor
    if blocked is not None:
        kernel = kernel.masked_fill(blocked, 0.0)
    return kernel @ values


def kernel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    features: FeatureMap,
    *,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    relative_bias: Tensor | None = None,
    chunk_size: int = 128,
    block_size: int = 256,
    block_above: int = 2**26,
    dense: bool = False,
) -> Tensor:
    """Attention with the kernel phi(q).phi(k) exp(bias): q, k, v [B, H, N, D] -> [B, H, N, D].

    Masks and bias as in `Attention.forward`. Linear in N without attn_mask, with a causal one, and with
    relative_bias; any other attn_mask takes the dense kernel, exact, in blocks of `block_size` query rows above
    `block_above` entries. `dense` asks for that everywhere: it is the oracle of the other paths.
    Features and normaliser are fp32 (fp64 for fp64 input), outside autocast; the output has the dtype of v.
    """
    batch, heads, length, _ = q.shape
    attn_mask = check_attn_mask(attn_mask)
    if attn_mask is None and relative_bias is None and not dense:
        out = features.attend(q, k, v, key_padding_mask)
        if out is not None:
            return out
    dtype = full_dtype(q)
    with torch.autocast(q.device.type, enabled=False):
        q, k, values = (zero_padding(x, key_padding_mask).to(dtype) for x in (q, k, v))
        phi_q, phi_k, values = features.queries(q), features.keys(k, key_padding_mask), with_ones(values)
        factor = None  # exp(bias) up to a constant per head, which cancels
        if relative_bias is not None:
            factor = (relative_bias - relative_bias.detach().amax(dim=-1, keepdim=True)).to(dtype).exp()
        causal = attn_mask is not None and not dense and is_causal(attn_mask)

        def rows(block: Tensor, start: int) -> Tensor:
            size = block.shape[2]
            matrix = None if factor is None else distance_matrix(factor, rows=size, columns=length, offset=-start)
            mask = None if attn_mask is None else attn_mask[:, :, start : start + size]
            return dense_products(block, phi_k, values, factor=matrix, blocked=mask)

        if dense:
            products = rows(phi_q, 0)
        elif attn_mask is not None and not causal:
            whole = kept_whole(batch, heads, length, block_above)
            products = rows(phi_q, 0) if whole else by_query_blocks(rows, phi_q, block_size)
        elif causal or factor is not None:
            products = banded_products(phi_q, phi_k, values, factor=factor, causal=causal, chunk_size=chunk_size)
        else:
            products = phi_q @ (phi_k.transpose(-1, -2) @ values)
        return zero_padding(normalised(products), key_padding_mask).to(v.dtype)


class KernelAttention(Attention):
    """Attention through the features of `feature_map`, which subclasses give."""

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        layer: int,
        seed: int,
        chunk_size: int = 128,
        block_size: int = 256,
        block_above: int = 2**26,
    ) -> None:
        """chunk_size: tokens per chunk of the prefix sums; block_size, block_above: for a general attn_mask."""
        super().__init__(num_heads=num_heads, head_dim=head_dim, layer=layer, seed=seed)
        if min(chunk_size, block_size) < 1:
            raise ValueError(f"chunk_size and block_size must be at least 1, not {chunk_size}, {block_size}")
        self.chunk_size = chunk_size
        self.block_size = block_size
        self.block_above = block_above

    def feature_map(self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None) -> FeatureMap:
        """The map for these q, k [B, H, N, D], as they come: pads hold anything."""
        raise NotImplementedError

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
        return self._attend(q, k, v, key_padding_mask, attn_mask, relative_bias, dense=False)

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
        """phi(Q) phi(K)^T written out, whatever the mask: [B, H, N, D] -> [B, H, N, D]."""
        return self._attend(q, k, v, key_padding_mask, attn_mask, relative_bias, dense=True)

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
        return kernel_attention(
            q,
            k,
            v,
            self.feature_map(q, k, key_padding_mask),
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            relative_bias=relative_bias,
            chunk_size=self.chunk_size,
            block_size=self.block_size,
            block_above=self.block_above,
            dense=dense,
        )

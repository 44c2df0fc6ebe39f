"""Sorting and unit keys of LSH attention on a CPU, with small buffers that stay in the cache.

The readable versions are `sorted_positions` and `unit_keys` of xcls/attention/lsh.py.
Letters: B batch, H heads, N tokens, D head dimension, R hash rounds, rows = B N H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xcls.attention.base import full_dtype
from xcls.attention.kernels.sorted_chunks_layout import as_rows

PART = 2**14  # rows of unit keys computed at a time


def sorted_on_cpu(keys: Tensor) -> Tensor:
    """`lsh.sorted_positions` by one stable radix sort over all sequences: keys [B, H, R, N] -> the same shape."""
    length = keys.shape[-1]
    buckets = (keys // length).flatten(0, 2)  # [sequences, N]
    sequence = torch.arange(len(buckets))[:, None]
    order = (buckets + sequence * (buckets.amax() + 1)).flatten().argsort(stable=True)
    return (order % length).view_as(keys)


def unit_on_cpu(x: Tensor) -> Tensor:
    """x / |x|: [B, H, N, D] -> same shape and dtype."""
    batch, heads, length, width = x.shape
    return UnitKeys.apply(as_rows(x)).view(batch, length, heads, width).transpose(1, 2)


class UnitKeys(torch.autograd.Function):
    """x / |x|, computed in fp32 at least: [rows, D] -> same shape and dtype. Finite at zero, gradients too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
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
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The part of the gradient across the key, over |x|: [rows, D] -> [rows, D]."""
        keys, scale = ctx.saved_tensors
        out = torch.empty_like(keys)
        for g, key, factor, part in zip(*(x.split(PART) for x in (grad, keys, scale, out))):
            g, key = g.to(scale.dtype), key.to(scale.dtype)
            along = torch.linalg.vecdot(g, key)[:, None]
            part.copy_(torch.addcmul(g, key, along, value=-1).mul_(factor))
        return out

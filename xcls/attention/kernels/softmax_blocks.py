"""Softmax attention in blocks of query rows, computed again in the backward pass: O(N) memory, any mask and bias.

The readable version is `Sdpa` in `softmax.py`. Letters: B batch, H heads, N tokens, D head dimension, W window of the
relative bias, rows = query rows of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xcls.attention import base
from xcls.attention.base import HEADROOM, Masks, distance_matrix, full_dtype

LARGEST_BLOCK = 2**22  # scores of a block on a CPU: 16 MiB in fp32
LARGEST_BLOCK_GPU = 2**27


def in_blocks(q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
    """Softmax attention for all rows, a block at a time: q, k, v [B, H, N, D] -> [B, H, N, D].

    A block has `BLOCK_ROWS` rows, or fewer where its scores would be too large: the C library returns large buffers to
    the system each time, and the page faults then cost more than the products.
    """
    most = LARGEST_BLOCK if q.device.type == "cpu" else LARGEST_BLOCK_GPU
    block_size = min(base.BLOCK_ROWS, max(16, most // (q.shape[0] * q.shape[1] * q.shape[2])))
    scale = HEADROOM if q.dtype == torch.float16 else 1.0
    rows = Rows(masks, scale, block_size)
    return AttendRows.apply(q * (q.shape[-1] ** -0.5 / scale), k, v, masks.bias, rows)


@dataclass(frozen=True)
class Rows:
    """The inputs of a block of rows that have no gradient."""

    masks: Masks
    scale: float
    block_size: int

    def weights(self, q: Tensor, k: Tensor, bias: Tensor | None, start: int) -> Tensor:
        """softmax(scale q k^T + bias) in fp32 at least: q [B, H, rows, D], k [B, H, N, D] -> [B, H, rows, N].

        Rows that may attend to nothing are zero.
        """
        scores = (q @ k.transpose(-1, -2)).to(full_dtype(q))
        if self.scale != 1.0:
            scores.mul_(self.scale)
        if bias is not None:
            scores += distance_matrix(bias, rows=scores.shape[2], columns=scores.shape[3], offset=-start)
        blocked = self.masks.blocked(slice(start, start + q.shape[2]))
        if blocked is None:
            return torch.softmax(scores, dim=-1)
        nothing = blocked.all(dim=-1, keepdim=True)
        scores.masked_fill_(blocked & ~nothing, -torch.inf)
        return torch.softmax(scores, dim=-1).masked_fill_(nothing, 0.0)


def _bias_gradient(change: Tensor, bias: Tensor, start: int) -> Tensor:
    """The part of the gradient of the bias, [H, 2W+1], that comes from a block: `change` [B, H, rows, N], of scores."""
    with torch.enable_grad():
        leaf = bias.detach().to(change.dtype).requires_grad_()
        matrix = distance_matrix(leaf, rows=change.shape[2], columns=change.shape[3], offset=-start)
    return torch.autograd.grad(matrix, leaf, change.sum(dim=0))[0]


class AttendRows(torch.autograd.Function):
    """softmax(scale q k^T + bias) v: q, k, v [B, H, N, D] of one dtype, bias [H, 2W+1] or None -> [B, H, N, D]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rows: Rows) -> Tensor:
        """Block after block; nothing of size N x N outlives its block."""
        out = torch.empty_like(q)
        with torch.autocast(q.device.type, enabled=False):
            for start in range(0, q.shape[2], rows.block_size):
                block = slice(start, start + rows.block_size)
                out[:, :, block] = rows.weights(q[:, :, block], k, bias, start).to(v.dtype) @ v
        ctx.save_for_backward(q, k, v, bias, out)
        ctx.rows = rows
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """[B, H, N, D] -> the gradients of q, k, v and bias."""
        q, k, v, bias, out = ctx.saved_tensors
        rows, dtype = ctx.rows, full_dtype(q)
        with torch.autocast(q.device.type, enabled=False):
            along = (grad.to(dtype) * out.to(dtype)).sum(dim=-1, keepdim=True)  # [B, H, N, 1]
            grad = grad.to(q.dtype)
            q_grad = torch.empty_like(q)
            k_grad, v_grad = (torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (k, v))
            bias_grad: Any = None if bias is None else torch.zeros(bias.shape, dtype=dtype, device=q.device)
            for start in range(0, q.shape[2], rows.block_size):
                block = slice(start, start + rows.block_size)
                weights = rows.weights(q[:, :, block], k, bias, start)
                v_grad += weights.to(q.dtype).transpose(-1, -2) @ grad[:, :, block]
                change = (grad[:, :, block] @ v.transpose(-1, -2)).to(dtype)
                change.sub_(along[:, :, block]).mul_(weights)  # the gradient of the scores
                if bias is not None:
                    bias_grad += _bias_gradient(change, bias, start)
                if rows.scale != 1.0:
                    change.mul_(rows.scale)
                change = change.to(q.dtype)
                q_grad[:, :, block] = change @ k
                k_grad += change.transpose(-1, -2) @ q[:, :, block]
        return q_grad, k_grad.to(k.dtype), v_grad.to(v.dtype), None if bias is None else bias_grad.to(bias.dtype), None

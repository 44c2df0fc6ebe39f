"""The band of `favor_masked.chunked_sums`, some chunks at a time; nothing is kept, the backward pass computes it again.

Letters: B batch, H heads, C tokens of a chunk, n chunks, M features, F columns of the values, R chunks of a band.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CACHED = 2**20  # kernel entries of a group of chunks on a CPU, so that they stay in the cache that cores share
LARGE = 2**26  # on a GPU, where launches cost more than memory


class AddBand(torch.autograd.Function):
    """`favor_masked.add_band` in few passes."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, q: Tensor, k: Tensor, values: Tensor, near: Tensor, step: int) -> Tensor:
        """As `favor_masked.add_band`, where the arguments are described."""
        for own in groups(len(q), near):
            for number, factor in enumerate(near):
                other = slice(own.start + number * step, own.stop + number * step)
                kernel = torch.bmm(q[own], k[other].transpose(1, 2))
                kernel.unflatten(0, (-1, len(factor))).mul_(factor)
                out[own].baddbmm_(kernel, values[other])
        ctx.mark_dirty(out)
        ctx.save_for_backward(q, k, values, near)
        ctx.step = step
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of out, q, k, values and near."""
        q, k, values, near = ctx.saved_tensors
        q_grad, k_grad, v_grad = (torch.zeros_like(x) for x in (q, k, values))
        near_grad = torch.zeros_like(near) if ctx.needs_input_grad[4] else None
        with torch.autocast(q.device.type, enabled=False):
            for own in groups(len(q), near):
                for number, factor in enumerate(near):
                    other = slice(own.start + number * ctx.step, own.stop + number * ctx.step)
                    kernel = torch.bmm(q[own], k[other].transpose(1, 2))
                    change = torch.bmm(grad[own], values[other].transpose(1, 2))  # of kernel x factor
                    by_head = kernel.unflatten(0, (-1, len(factor))), change.unflatten(0, (-1, len(factor)))
                    if near_grad is not None:
                        near_grad[number] += (by_head[0] * by_head[1]).sum(dim=0)
                    by_head[0].mul_(factor)
                    by_head[1].mul_(factor)
                    v_grad[other].baddbmm_(kernel.transpose(1, 2), grad[own])
                    q_grad[own].baddbmm_(change, k[other])
                    k_grad[other].baddbmm_(change.transpose(1, 2), q[own])
        return grad, q_grad, k_grad, v_grad, near_grad, None


def groups(chunks: int, near: Tensor) -> list[slice]:
    """Groups of chunks whose kernel entries fit into the cache, each with all heads of `near` [R, 1|H, C, C]."""
    entries = CACHED if near.device.type == "cpu" else LARGE
    most = near.shape[1] * max(1, entries // near[0].numel())
    return [slice(start, min(start + most, chunks)) for start in range(0, chunks, most)]

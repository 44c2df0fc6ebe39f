"""Kernel attention with a causal mask or a clipped relative bias, in time and memory linear in the tokens.

Beyond distance W the factor exp(bias) is one constant per side. So the tokens are cut into chunks of at least W:
a query meets its own chunk and the two beside it pair by pair (the band), and all the others through sums of
phi(k) v^T over whole chunks, running from the left and from the right (the far field). The sums exist once per
chunk, never per token. The dense kernel x factor in `kernel.py` is the oracle.
Letters: B batch, H heads, N tokens, D head width, M random features, C tokens of a chunk, W window of the bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xcls.attention.base import distance_matrix
from xcls.attention.chunks import from_chunks, running_sum, to_chunks, windows

CACHED = 2**20  # kernel entries of a group of chunks on a CPU: what stays in the cache that cores share
LARGE = 2**26  # elsewhere, where launches cost more than memory does


def banded_products(
    phi_q: Tensor, phi_k: Tensor, values: Tensor, *, factor: Tensor | None, causal: bool, chunk_size: int
) -> Tensor:
    """sum over j of phi_q[i].phi_k[j] factor[clip(j - i)] values[j], over j <= i only if causal.

    phi_q, phi_k [B, H, N, M] (phi_k zero in pads), values [B, H, N, D+1], factor [H, 2W+1] or None (all ones)
    -> [B, H, N, D+1].
    """
    batch, heads, length, _ = phi_q.shape
    reach = 0 if factor is None else 1  # neighbouring chunks in the band, on either side
    chunk = chunk_size if factor is None else max(chunk_size, factor.shape[-1] // 2)
    columns = (2 * reach + 1) * chunk
    near = phi_q.new_ones(1, chunk, columns)
    if factor is not None:
        near = distance_matrix(factor, rows=chunk, columns=columns, offset=-reach * chunk)  # [H, C, 3C]
    if causal:
        near = near.tril(reach * chunk)

    q, k, values = (to_chunks(x, chunk, reach) for x in (phi_q, phi_k, values))
    shape = (batch, heads, q.shape[0] // (batch * heads))
    products = q @ far_field(k, values, shape, factor=factor, causal=causal, reach=reach)
    return from_chunks(products + NearField.apply(q, k, values, near, shape, reach), batch, heads, length)


class NearField(torch.autograd.Function):
    """The band pair by pair, a cacheful of chunks at a time, and again in the backward pass: nothing of it is kept."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        q: Tensor,
        k: Tensor,
        values: Tensor,
        near: Tensor,
        shape: tuple[int, int, int],
        reach: int,
    ) -> Tensor:
        """q, k [B*H*chunks, C, M], values [B*H*chunks, C, F], near [H|1, C, K], K = (2 reach + 1) C slots that a chunk
        sees, shape (B, H, chunks) -> [B*H*chunks, C, F].
        """
        out = torch.empty_like(values)
        for group in groups(shape, near, q.device):
            kernel = q[group.own] @ group.windows(k, reach).transpose(1, 2)
            group.by_head(kernel).mul_(near[group.heads, None])
            torch.bmm(kernel, group.windows(values, reach), out=out[group.own])
        ctx.save_for_backward(q, k, values, near)
        ctx.shape, ctx.reach = shape, reach
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """[B*H*chunks, C, F] -> the gradients of q, k, values and near."""
        q, k, values, near = ctx.saved_tensors
        q_grad, k_grad, v_grad = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(values)
        near_grad = torch.zeros_like(near) if ctx.needs_input_grad[3] else None
        with torch.autocast(q.device.type, enabled=False):
            for group in groups(ctx.shape, near, q.device):
                keys, factor = group.windows(k, ctx.reach), near[group.heads, None]
                kernel = q[group.own] @ keys.transpose(1, 2)
                change = grad[group.own] @ group.windows(values, ctx.reach).transpose(1, 2)  # of kernel x factor
                if near_grad is not None:
                    part = group.by_head(change * kernel).sum(dim=(0, 2))
                    near_grad[group.heads] += part.sum_to_size(factor[:, 0].shape)
                group.by_head(kernel).mul_(factor)
                group.add_windows(v_grad, kernel.transpose(1, 2) @ grad[group.own], ctx.reach)
                group.by_head(change).mul_(factor)
                torch.bmm(change, keys, out=q_grad[group.own])
                group.add_windows(k_grad, change.transpose(1, 2) @ q[group.own], ctx.reach)
        return q_grad, k_grad, v_grad, near_grad, None, None


@dataclass(frozen=True)
class Group:
    """Consecutive chunks: `own`, of the list of all; `shape` (b, h, n): whole examples, or n chunks of one head;
    `heads` of the relative factor.
    """

    own: slice
    shape: tuple[int, int, int]
    heads: slice

    def by_head(self, x: Tensor) -> Tensor:
        """[b*h*n, C, K] -> [b, h, n, C, K], a view."""
        return x.view(*self.shape, *x.shape[1:])

    def windows(self, x: Tensor, reach: int) -> Tensor:
        """What these chunks see of x [all chunks, C, F]: [b*h*n, K, F]."""
        first = max(0, self.own.start - reach)
        seen = windows(x[first : self.own.stop + reach], reach)
        return seen[self.own.start - first :][: self.own.stop - self.own.start]

    def add_windows(self, x: Tensor, grads: Tensor, reach: int) -> None:
        """Add gradients of windows [b*h*n, K, F] to the chunks they show, x [all chunks, C, F]."""
        for number, part in enumerate(grads.split(x.shape[1], dim=1)):
            first = self.own.start + number - reach
            skip, last = max(0, -first), min(len(x), first + len(part))
            x[first + skip : last] += part[skip : last - first]


def groups(shape: tuple[int, int, int], near: Tensor, device: torch.device) -> Iterator[Group]:
    """All chunks, as many at a time as a cache holds the kernel of: whole examples where they are short, else pieces
    of a head. near: [H|1, C, K].
    """
    batch, heads, chunks = shape
    most = max(1, (CACHED if device.type == "cpu" else LARGE) // near[0].numel())
    if heads * chunks <= most:
        step = most // (heads * chunks)
        for b in range(0, batch, step):
            stop = min(b + step, batch)
            yield Group(slice(b * heads * chunks, stop * heads * chunks), (stop - b, heads, chunks), slice(None))
        return
    for row in range(batch * heads):
        head = row % heads if near.shape[0] > 1 else 0
        for n in range(0, chunks, most):
            stop = min(n + most, chunks)
            yield Group(slice(row * chunks + n, row * chunks + stop), (1, 1, stop - n), slice(head, head + 1))


def far_field(
    k: Tensor, values: Tensor, shape: tuple[int, int, int], *, factor: Tensor | None, causal: bool, reach: int
) -> Tensor:
    """For each chunk the sum of phi(k) values^T over all keys outside its band, times their constant factor.

    k [B*H*chunks, C, M], values [B*H*chunks, C, F], shape (B, H, chunks), factor [H, 2W+1] -> [B*H*chunks, M, F].
    """
    summed = (k.transpose(1, 2) @ values).view(*shape, k.shape[-1], values.shape[-1])  # [B, H, chunks, M, F]
    left, right = 1.0, 1.0
    if factor is not None:
        left, right = factor[:, 0, None, None, None], factor[:, -1, None, None, None]  # [H, 1, 1, 1]
    far = running_sum(summed, reach) * left
    if not causal:
        far = far + running_sum(summed.flip(2), reach).flip(2) * right
    return far.flatten(0, 2)

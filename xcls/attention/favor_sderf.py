"""FAVOR#: dense-exponential random features, shaped by the second moments of the data, per example and head.

Likhosherstov et al. 2023, "FAVOR#", theorem 4: f(x) = D exp(w^T A w + w^T B x - |x|^2 / 2) with symmetric matrices,
B = (I - 4A)^(1/2) and D = det(I - 4A)^(1/4), is unbiased for every A < I/8. The best A has the eigenvectors of
S = mean (q + k)(q + k)^T, and a = (1 - 2l - sqrt((1 + 2l)^2 + 8l)) / 16 for its eigenvalue l: FAVOR++ per axis.
Letters: B batch, H heads, N tokens, D head dimension, M random features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xcls.attention.base import Masks, full_dtype, zero_padding
from xcls.attention.favor import Performer
from xcls.attention.favor_oprf import real_counts
from xcls.attention.operations import Shape, Work


def moments(q: Tensor, k: Tensor, padding: Tensor | None) -> Tensor:
    """S: the mean of (q_i + k_j)(q_i + k_j)^T over all pairs of real tokens, of scaled q and k [B, H, N, D]:
    [B, H, D, D].
    """
    dtype, count = full_dtype(q), real_counts(q, padding)
    q, k = (zero_padding(x, padding).to(dtype) for x in (q, k))
    mean_q, mean_k = (x.sum(dim=2) / count for x in (q, k))
    count = count if isinstance(count, int) else count[..., None]
    squares = (q.transpose(-1, -2) @ q + k.transpose(-1, -2) @ k) / count
    crossed = mean_q[..., :, None] * mean_k[..., None, :]
    return (squares + crossed + crossed.transpose(-1, -2)) * q.shape[-1] ** -0.5


class Optimum(torch.autograd.Function):
    """A, B and log D as functions of the symmetric matrix S.

    As functions of the matrix they are smooth, with the derivatives of Daleckii and Krein. Plain autograd would
    differentiate the eigenvectors, which have no derivative where eigenvalues coincide. The divided differences are
    written so that no small difference of large numbers occurs.
    """

    @staticmethod
    def forward(ctx: Any, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """S [..., D, D] -> A [..., D, D], B [..., D, D], log D [..., 1, 1]; NaN where S is not finite.

        Without that, `eigh` would raise for the whole batch.
        """
        broken = ~second.isfinite().flatten(-2).all(dim=-1)[..., None, None]
        values, vectors = torch.linalg.eigh(second.masked_fill(broken, 0.0))
        values = values.clamp(min=0.0)
        root = ((1 + 2 * values).square() + 8 * values).sqrt()
        a = (1 - 2 * values - root) / 16
        b = (1 - 4 * a).sqrt()
        ctx.save_for_backward(values, vectors, root, b)
        matrices = [(vectors * x[..., None, :]) @ vectors.transpose(-1, -2) for x in (a, b)]
        found = *matrices, b.log().sum(dim=-1)[..., None, None] / 2
        return tuple(x.masked_fill_(broken, torch.nan) for x in found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """The gradient of S, symmetric."""
        values, vectors, root, b = ctx.saved_tensors
        grad_a, grad_b = (vectors.transpose(-1, -2) @ (x + x.transpose(-1, -2)) @ vectors / 2 for x in grads[:2])
        both = [x[..., :, None] + x[..., None, :] for x in (values, root, b)]
        slope_a = -(2 + (4 * both[0] + 12) / both[1]) / 16
        slope_b = -4 * slope_a / both[2]
        inner = grad_a * slope_a + grad_b * slope_b
        diagonal = slope_b.diagonal(dim1=-2, dim2=-1) / (2 * b) * grads[2][..., 0]
        return vectors @ (inner + torch.diag_embed(diagonal)) @ vectors.transpose(-1, -2)


def sderf_directions(projection: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """w and c of f, [B, H, M, D] and [B, H, 1, M], for directions [M, D] and S [B, H, D, D]. c includes log D."""
    projection = projection.to(second.dtype)
    a, b, log_d = Optimum.apply(second)
    offset = ((projection @ a) * projection).sum(dim=-1).unsqueeze(-2) + log_d
    return projection @ b * projection.shape[-1] ** -0.25, offset


class PerformerSderf(Performer):
    """FAVOR#. S is not detached, and sees all tokens under a causal mask: see `favor_oprf.best_directions`."""

    def directions(self, q: Tensor, k: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """The directions with the best A for these q, k."""
        return sderf_directions(self.projection, moments(q, k, masks.padding))

    def operations(self, shape: Shape) -> tuple[Work, Work]:
        """As in FAVOR++, and Q^T Q and K^T K with their gradients. For each head, whatever the length: A, B and the
        directions times both, with their gradients. The eigenvectors of S are not counted.
        """
        inference, training = super().operations(shape)
        heads, width = shape.batch * shape.heads, shape.head_dim
        training += Work(4.0 * shape.vectors * self.num_features, 0)
        squares = Work(4.0 * shape.vectors * width, 0)
        cubes, rotated = Work(4.0 * heads * width**3, 0), Work(4.0 * heads * self.num_features * width**2, 0)
        return inference + squares + cubes + rotated, training + squares * 3 + cubes * 4 + rotated * 2

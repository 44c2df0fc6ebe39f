"""FAVOR++: positive random features with the variance-optimal scalar A, one per example and head.

Likhosherstov et al. 2022, "Chefs' Random Tables", section 3: exp(q.k) is also the mean over w ~ N(0, I) of f(q) f(k)
with f(x) = D exp(A |w|^2 + B w.x - |x|^2 / 2), B = sqrt(1 - 4A), D = (1 - 4A)^(d/4), for every A < 1/8. With A < 0 the
features are bounded; A = 0 is FAVOR+. The best A depends on phi, the mean of |q + k|^2 over pairs.
Letters: B batch, H heads, N tokens, D head dimension (d in formulas), M random features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xcls.attention.base import Masks, full_dtype, zero_padding
from xcls.attention.favor import Performer
from xcls.attention.operations import Shape, Work


def real_counts(x: Tensor, padding: Tensor | None) -> Tensor | int:
    """The number of real tokens of each example, at least one: x [B, H, N, D] -> [B, 1, 1]; N without padding."""
    if padding is None:
        return x.shape[2]
    return (~padding).sum(dim=1)[:, None, None].clamp(min=1)


def mean_square_sum(q: Tensor, k: Tensor, padding: Tensor | None) -> Tensor:
    """phi: the mean of |q_i + k_j|^2 over all pairs of real tokens, of scaled q and k [B, H, N, D]: [B, H, 1].

    Computed from sums and norms, without the pairs.
    """
    dtype, count = full_dtype(q), real_counts(q, padding)
    q, k = (zero_padding(x, padding) for x in (q, k))
    norms = sum(torch.linalg.vector_norm(x, dim=(2, 3), dtype=dtype).square()[..., None] for x in (q, k)) / count
    means = (q.sum(dim=2, dtype=dtype) / count) * (k.sum(dim=2, dtype=dtype) / count)
    return (norms + 2 * means.sum(dim=-1, keepdim=True)) * q.shape[-1] ** -0.5


def optimal_scalar(phi: Tensor, width: int) -> Tensor:
    """A* = (d - 2 phi - sqrt((d + 2 phi)^2 + 8 d phi)) / (16 d), which minimises the second moment of the estimate."""
    return (width - 2 * phi - ((width + 2 * phi).square() + 8 * width * phi).sqrt()) / (16 * width)


def oprf_directions(projection: Tensor, scalar: Tensor) -> tuple[Tensor, Tensor]:
    """w and c of f, [B, H, M, D] and [B, H, 1, M], for directions [M, D] and A [B, H, 1]. c includes log D."""
    width = projection.shape[-1]
    projection, stretch = projection.to(scalar.dtype), 1 - 4 * scalar[..., None]  # [B, H, 1, 1]
    directions = stretch.sqrt() * (projection * width**-0.25)
    return directions, scalar[..., None] * projection.square().sum(dim=-1) + width / 4 * stretch.log()


def best_directions(projection: Tensor, q: Tensor, k: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
    """`oprf_directions` with the best A for q, k [B, H, N, D], from the real tokens of each example.

    A is not detached: its estimate of the kernel depends on it (the mean of the estimate does not), and the gradient
    should be exact. That costs one more product each for q and k. A sees all tokens, also under a causal mask.
    """
    return oprf_directions(projection, optimal_scalar(mean_square_sum(q, k, padding), q.shape[-1]))


class PerformerOprf(Performer):
    """FAVOR++; see `best_directions`."""

    def directions(self, q: Tensor, k: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """The directions with the best A for these q, k."""
        return best_directions(self.projection, q, k, masks.padding)

    def operations(self, shape: Shape) -> tuple[Work, Work]:
        """As in FAVOR+, and backward the gradient of the directions, from which A gets its gradient."""
        inference, training = super().operations(shape)
        return inference, training + Work(4.0 * shape.vectors * self.num_features, 0)

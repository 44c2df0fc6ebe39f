"""FAVOR+ with hyperbolic features: each direction is used with both signs, an antithetic pair.

Choromanski et al. 2021, lemma 1: exp(q.k) is the mean of cosh(w.(q + k)) exp(-(|q|^2 + |k|^2) / 2). At M / 2
directions the error is that of M independent ones less the part that the two signs cancel.
Letters: D head width, M random features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xcls.attention.performer import favor_map
from xcls.attention.performer_features import Exponential, RandomFeatures, draw_projection


class PerformerHyperbolic(RandomFeatures):
    """FAVOR+ with the directions w and -w; num_features counts both and is even."""

    def draw(self, generator: torch.Generator) -> Tensor:
        """Directions [M, D], the second half minus the first. Raises ValueError on an odd number."""
        if self.num_features % 2:
            raise ValueError(f"num_features={self.num_features} must be even: every direction comes with its opposite")
        half = draw_projection(
            self.num_features // 2, self.head_dim, orthogonal=self.orthogonal, generator=generator
        )
        return torch.cat((half, -half))

    def feature_map(self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None) -> Exponential:
        """The same for all q, k."""
        return favor_map(self.projection, epsilon=self.epsilon)

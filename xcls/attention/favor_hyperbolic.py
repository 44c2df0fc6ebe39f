"""FAVOR+ with hyperbolic features: each direction is used with both signs, an antithetic pair.

Choromanski et al. 2021, lemma 1: exp(q.k) is the mean of cosh(w.(q + k)) exp(-(|q|^2 + |k|^2) / 2). M / 2 directions
have a smaller error than M independent ones, because errors of the two signs cancel in part.
Letters: D head dimension, M random features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xcls.attention.favor import Performer, draw_projection


class PerformerHyperbolic(Performer):
    """FAVOR+ with the directions w and -w; num_features counts both and is even."""

    def draw(self, generator: torch.Generator) -> Tensor:
        """Directions [M, D], the second half being the negative of the first. Raises ValueError where M is odd."""
        if self.num_features % 2:
            raise ValueError(f"num_features={self.num_features} must be even: every direction comes with its opposite")
        half = draw_projection(self.num_features // 2, self.head_dim, orthogonal=self.orthogonal, generator=generator)
        return torch.cat((half, -half))

"""FAVOR+ with hyperbolic features: each direction is used with both signs, an antithetic pair.

Choromanski et al. 2021, lemma 1: exp(q.k) is the mean of cosh(w.(q + k)) exp(-(|q|^2 + |k|^2) / 2). At M / 2
directions the error is that of M independent ones less the part that the two signs cancel.
Letters: D head width, M random features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xcls.attention.favor import Performer, draw_projection


class PerformerHyperbolic(Performer):
    """FAVOR+ with the directions w and -w; num_features counts both and is even."""

    def draw(self, generator: torch.Generator) -> Tensor:
        """Directions [M, D], the second half minus the first. Raises ValueError on an odd number."""
        if self.num_features % 2:
            raise ValueError(f"num_features={self.num_features} must be even: every direction comes with its opposite")
        half = draw_projection(self.num_features // 2, self.head_dim, orthogonal=self.orthogonal, generator=generator)
        return torch.cat((half, -half))

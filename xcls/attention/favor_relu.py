"""Generalised kernel attention with ReLU features: phi(x) = ReLU(w.x) + epsilon, which estimates no softmax.

Choromanski et al. 2021, section 4: the kernel that served them best on proteins.
Letters: B batch, H heads, N tokens, D head width, M random features.
"""

from __future__ import annotations

from torch import Tensor

from xcls.attention.base import Masks
from xcls.attention.favor import RandomFeatures


class PerformerRelu(RandomFeatures):
    """ReLU features. epsilon weighs every key a little: without it a query may meet none."""

    def features(self, q: Tensor, k: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """[B, H, N, D] -> [B, H, N, M]; the scale D^(-1/4) keeps features at the size of epsilon's default."""
        directions = (self.projection * self.head_dim**-0.25).to(q.dtype)
        return (q @ directions.T).relu() + self.epsilon, (k @ directions.T).relu() + self.epsilon

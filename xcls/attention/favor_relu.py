"""Generalised kernel attention with ReLU features: phi(x) = ReLU(w.x) + epsilon, which estimates no softmax.

Choromanski et al. 2021, section 4: the kernel that served them best on proteins.
Letters: B batch, H heads, N tokens, D head width, M random features.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from xcls.attention.base import Masks
from xcls.attention.favor import RandomFeatures


class PerformerRelu(RandomFeatures):
    """ReLU features. epsilon weighs every key a little: without it a query may meet none."""

    def features(self, q: Tensor, k: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """[B, H, N, D] -> [B, H, N, M]; the scale D^(-1/4) keeps features at the size of epsilon's default."""
        directions = (self.projection * self.head_dim**-0.25).to(q.dtype)
        return (q @ directions.T).relu() + self.epsilon, (k @ directions.T).relu() + self.epsilon

    def operations(self, shape: Any) -> tuple[tuple[float, float], tuple[float, float]]:
        """As in `RandomFeatures`, with the normaliser as a column of the values."""
        product, moved = 2.0 * shape.vectors * self.num_features, 4.0 * shape.itemsize * shape.vectors
        wider = product * (1 + 1 / shape.head_dim)
        return (2 * product + 2 * wider, moved), (4 * product + 6 * wider, 3 * moved)

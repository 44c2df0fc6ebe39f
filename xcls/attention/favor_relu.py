"""Generalised kernel attention with ReLU features: phi(x) = ReLU(w.x) + epsilon. It does not estimate softmax.

Choromanski et al. 2021, section 4: the kernel that was best on their protein data.
Letters: B batch, H heads, N tokens, D head dimension, M random features.
"""

from __future__ import annotations

from torch import Tensor

from xcls.attention.base import Masks
from xcls.attention.favor import RandomFeatures


class PerformerRelu(RandomFeatures):
    """ReLU features. epsilon gives every key some weight; without it, all weights of a query may be zero."""

    def features(self, q: Tensor, k: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """[B, H, N, D] -> [B, H, N, M]; scaled by D^(-1/4), so that the default epsilon fits their size."""
        directions = (self.projection * self.head_dim**-0.25).to(q.dtype)
        return (q @ directions.T).relu() + self.epsilon, (k @ directions.T).relu() + self.epsilon

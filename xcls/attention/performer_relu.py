"""Generalised kernel attention with ReLU features: phi(x) = ReLU(w.x) + epsilon, which estimates no softmax.

Choromanski et al. 2021, section 4: the kernel that served them best on proteins.
Letters: B batch, H heads, N tokens, D head width, M random features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from xcls.attention.base import zero_padding
from xcls.attention.kernel import FeatureMap
from xcls.attention.performer_features import RandomFeatures


@dataclass(frozen=True)
class Relu(FeatureMap):
    """ReLU(w.x) + epsilon for directions w [M, D]."""

    directions: Tensor
    epsilon: float

    def queries(self, q: Tensor) -> Tensor:
        """[B, H, N, D] -> [B, H, N, M]."""
        return (q @ self.directions.to(q.dtype).T).relu() + self.epsilon

    def keys(self, k: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        """[B, H, N, D] -> [B, H, N, M], zero in pads."""
        return zero_padding(self.queries(k), key_padding_mask)


class PerformerRelu(RandomFeatures):
    """Attention with `Relu` features. epsilon weighs every key a little: without it a query may meet none."""

    def feature_map(self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None) -> Relu:
        """The same for all q, k; the scale D^(-1/4) keeps features at the size of epsilon's default."""
        return Relu(self.projection * self.head_dim**-0.25, self.epsilon)

    def operations(self, shape: Any) -> tuple[tuple[float, float], tuple[float, float]]:
        """As in `RandomFeatures`, with the normaliser as a column of the values."""
        product, moved = 2.0 * shape.vectors * self.num_features, 4.0 * shape.itemsize * shape.vectors
        wider = product * (1 + 1 / shape.head_dim)
        return (2 * product + 2 * wider, moved), (4 * product + 6 * wider, 3 * moved)

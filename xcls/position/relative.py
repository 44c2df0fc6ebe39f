"""Relative positions as a bias on the logits, with distances clipped at a window.

T5 (Raffel et al. 2020, section 2.1) adds a scalar per head and bucket of distances. Here each distance up to W has its
own scalar, and all larger ones share one per side (clipping as in Shaw et al. 2018). Letters: H heads, L layers, W
window.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xcls.position.base import Position


class Relative(Position):
    """A trained bias per layer, head and clipped distance; the attention mechanism adds it to its logits."""

    def __init__(self, *, window: int = 128, init_std: float = 0.02, **shape: int) -> None:
        """window: W, the last distance with a bias of its own; init_std: standard deviation of the initial biases."""
        super().__init__(**shape)
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        # [L, H, 2W+1]
        self.table = nn.Parameter(torch.randn(self.num_layers, self.num_heads, 2 * window + 1) * init_std)

    def bias(self, layer: int) -> Tensor:
        """bias[h, clip(j - i, -W, W) + W] for query i and key j: [H, 2W+1]."""
        return self.table[layer]

"""LSH attention that hashes and sorts in one layer and uses the order again in the next ones.

Our ablation; Kitaev et al. 2020 hash in every layer. Letters: B batch, H heads, N tokens, D head dimension, R rounds.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from xcls.attention.base import Masks
from xcls.attention.lsh import Reformer

ORDER = "lsh_shared.order"  # key of the order in `masks.context`


class ReformerShared(Reformer):
    """`Reformer` that hashes in every `share_layers`-th layer; the layers between use the same order."""

    def __init__(self, *, share_layers: int = 2, **shape: Any) -> None:
        """share_layers: layers that use one order (1: each layer hashes); the others as in `Reformer`."""
        if share_layers < 1:
            raise ValueError(f"share_layers must be at least 1, not {share_layers}")
        super().__init__(**shape)
        self.share_layers = share_layers

    def order(self, x: Tensor, masks: Masks) -> Tensor:
        """x [B, H, N, D] -> [B, H, R, N]: from `masks.context`, unless this layer hashes or no layer has hashed yet."""
        if self.layer % self.share_layers == 0 or ORDER not in masks.context:
            masks.context[ORDER] = super().order(x, masks)
        return masks.context[ORDER]

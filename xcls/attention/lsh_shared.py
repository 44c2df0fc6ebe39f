"""LSH attention whose hashes serve several layers: hashed and sorted once, used again by the layers above.

Our ablation; Kitaev et al. 2020 hash in every layer. Letters: B batch, H heads, N tokens, D head width, R rounds.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from xcls.attention.base import Masks
from xcls.attention.lsh import Reformer

ORDER = "lsh_shared.order"  # where the forward pass's context holds it


class ReformerShared(Reformer):
    """`Reformer` that hashes in every `share_layers`-th layer; the layers between take over its order."""

    def __init__(self, *, share_layers: int = 2, **shape: Any) -> None:
        """share_layers: layers per hashing, 1 for all of their own; the others as in `Reformer`."""
        if share_layers < 1:
            raise ValueError(f"share_layers must be at least 1, not {share_layers}")
        super().__init__(**shape)
        self.share_layers = share_layers

    def order(self, x: Tensor, masks: Masks) -> Tensor:
        """x [B, H, N, D] -> [B, H, R, N], from the context unless this layer hashes, or nobody did before it."""
        if self.layer % self.share_layers == 0 or ORDER not in masks.context:
            masks.context[ORDER] = super().order(x, masks)
        return masks.context[ORDER]

"""LSH attention with one local round: nearby tokens always meet, whatever their hashes.

Kitaev et al. 2020 alternate layers of local attention and of hashing; here one round of each layer is local, and the
result is the softmax over the union of all rounds.
Letters: B batch, H heads, N tokens, D head dimension, R hash rounds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xcls.attention.base import Masks
from xcls.attention.lsh import Reformer, sort_keys


class ReformerLocal(Reformer):
    """`Reformer` whose last round sorts by position alone: its chunks are consecutive real tokens."""

    unhashed_rounds = 1

    def __init__(self, *, num_hashes: int = 2, **shape: Any) -> None:
        """num_hashes: all rounds, the local one included, so at least 2; the others as in `Reformer`."""
        if num_hashes < 2:
            raise ValueError(f"num_hashes counts the local round, so it must be at least 2, not {num_hashes}")
        super().__init__(num_hashes=num_hashes - 1, **shape)

    def sort_keys(self, x: Tensor, masks: Masks) -> Tensor:
        """x [B, H, N, D] -> [B, H, R, N]. The local round has one bucket for all tokens, so it sorts by position."""
        hashed = super().sort_keys(x, masks)
        local = sort_keys(torch.zeros_like(hashed[:, :, :1]), masks)
        return torch.cat((hashed, local), dim=2)

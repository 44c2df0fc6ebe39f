"""LSH attention with one local round: nearby tokens always meet, whatever their hashes.

Local attention beside hashing is how Kitaev et al. 2020 build their models, layer by layer; here it is one of the
rounds of each layer, and the result is the softmax over the union of all. Letters: B batch, H heads, N tokens, D head
width, R rounds.
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

    def keys(self, x: Tensor, masks: Masks) -> Tensor:
        """x [B, H, N, D] -> [B, H, R, N]. With one bucket for all, sorting by (bucket, position) is by position."""
        hashed = super().keys(x, masks)
        local = sort_keys(torch.zeros_like(hashed[:, :, :1]), masks)
        return torch.cat((hashed, local), dim=2)

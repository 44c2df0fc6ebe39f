"""Learned absolute positions, added to the embeddings (as in BERT, Devlin et al. 2019).

Letters: B batch, N tokens, E model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xcls.position.base import Position


class Learned(Position):
    """One trained vector per position, for positions below seq_len."""

    def __init__(self, *, init_std: float = 0.02, **shape: int) -> None:
        """init_std: standard deviation of the initial table."""
        super().__init__(**shape)
        self.table = nn.Parameter(torch.randn(self.seq_len, self.embed_dim) * init_std)

    def embed(self, x: Tensor) -> Tensor:
        """x [B, N, E] -> [B, N, E]. Raises ValueError where N is above seq_len."""
        self.check_length(x.shape[1])
        return x + self.table[: x.shape[1]].to(x.dtype)

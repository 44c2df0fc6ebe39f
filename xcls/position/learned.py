"""Learned absolute positions, added to the embeddings (as in BERT, Devlin et al. 2019).

Letters: B batch, N tokens, E model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xcls.position.base import Position


class Learned(Position):
    """One trained vector per position, up to seq_len and no further."""

    def __init__(
        self, *, embed_dim: int, num_heads: int, head_dim: int, num_layers: int, seq_len: int, init_std: float = 0.02
    ) -> None:
        """init_std: standard deviation of the initial table."""
        super().__init__(
            embed_dim=embed_dim, num_heads=num_heads, head_dim=head_dim, num_layers=num_layers, seq_len=seq_len
        )
        self.table = nn.Parameter(torch.randn(seq_len, embed_dim) * init_std)

    def embed(self, x: Tensor) -> Tensor:
        """x [B, N, E] -> [B, N, E]. Raises ValueError where N is above seq_len."""
        self.check_length(x.shape[1])
        return x + self.table[: x.shape[1]].to(x.dtype)

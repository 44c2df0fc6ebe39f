"""The base of every position encoding: three hooks, of which each encoding overrides one.

Letters: B batch, H heads, N tokens, D head dimension, E model width, W window of the relative bias.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Position(nn.Module):
    """One position encoding for a whole model. This class does nothing: subclasses override one hook."""

    def __init__(self, *, embed_dim: int, num_heads: int, head_dim: int, num_layers: int, seq_len: int) -> None:
        """Stores the shape; subclasses add their hyperparameters, tables and weights."""
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.num_layers = num_layers
        self.seq_len = seq_len

    def embed(self, x: Tensor) -> Tensor:
        """Token embeddings with their positions: x [B, N, E] -> [B, N, E]. Unchanged by default."""
        return x

    def rotation(self, length: int, device: torch.device) -> Callable[[Tensor], Tensor] | None:
        """The rotation of queries and keys, [B, H, N, D] -> [B, H, N, D], for N = `length`; None by default."""
        return None

    def bias(self, layer: int) -> Tensor | None:
        """The clipped relative bias [H, 2W+1] of one layer (0-based); None by default."""
        return None

    def check_length(self, length: int) -> None:
        """Raises ValueError if `length` is above `seq_len`, the length of the tables."""
        if length > self.seq_len:
            raise ValueError(f"{length} tokens are more than seq_len={self.seq_len}: raise seq_len or cut the text")

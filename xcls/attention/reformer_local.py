"""LSH attention with one local round: nearby tokens always meet, whatever their hashes.

Local attention beside hashing is how Kitaev et al. 2020 build their models, layer by layer; here it is one of the
rounds of each layer, and the result is the softmax over the union of all. Letters: B batch, H heads, N tokens,
R rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xcls.attention.reformer import Reformer


class ReformerLocal(Reformer):
    """`Reformer` whose last round sorts by position alone: its chunks are consecutive real tokens."""

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        layer: int,
        seed: int,
        num_hashes: int = 2,
        bucket_size: int = 64,
        chunks_before: int = 1,
        chunks_after: int = 0,
        max_buckets: int = 256,
        hash_rotated: bool = False,
    ) -> None:
        """num_hashes: all rounds, the local one included, so at least 2; the others as in `Reformer`."""
        if num_hashes < 2:
            raise ValueError(f"num_hashes counts the local round, so it must be at least 2, not {num_hashes}")
        super().__init__(
            num_heads=num_heads,
            head_dim=head_dim,
            layer=layer,
            seed=seed,
            num_hashes=num_hashes - 1,
            bucket_size=bucket_size,
            chunks_before=chunks_before,
            chunks_after=chunks_after,
            max_buckets=max_buckets,
            hash_rotated=hash_rotated,
        )

    def buckets(self, x: Tensor, key_padding_mask: Tensor | None, context: dict | None) -> Tensor:
        """x [B, H, N, D] -> [B, H, R, N]. With one bucket for all, sorting by (bucket, position) is by position."""
        hashed = super().buckets(x, key_padding_mask, context)
        return torch.cat((hashed, torch.zeros_like(hashed[:, :, :1])), dim=2)

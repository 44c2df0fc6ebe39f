"""LSH attention whose buckets serve several layers: hashed once, used again by the layers above.

Our ablation; Kitaev et al. 2020 hash in every layer. Letters: B batch, H heads, N tokens, D head width, R rounds.
"""

from __future__ import annotations

from torch import Tensor

from xcls.attention.reformer import Reformer

BUCKETS = "reformer_shared.buckets"  # where the forward pass's context holds them


class ReformerShared(Reformer):
    """`Reformer` that hashes in every `share_layers`-th layer; the layers between take over its buckets."""

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        layer: int,
        seed: int,
        num_hashes: int = 1,
        bucket_size: int = 64,
        chunks_before: int = 1,
        chunks_after: int = 0,
        max_buckets: int = 256,
        hash_rotated: bool = False,
        share_layers: int = 2,
    ) -> None:
        """share_layers: layers per hashing, 1 for all of their own; the others as in `Reformer`."""
        if share_layers < 1:
            raise ValueError(f"share_layers must be at least 1, not {share_layers}")
        super().__init__(
            num_heads=num_heads,
            head_dim=head_dim,
            layer=layer,
            seed=seed,
            num_hashes=num_hashes,
            bucket_size=bucket_size,
            chunks_before=chunks_before,
            chunks_after=chunks_after,
            max_buckets=max_buckets,
            hash_rotated=hash_rotated,
        )
        self.share_layers = share_layers

    def buckets(self, x: Tensor, key_padding_mask: Tensor | None, context: dict | None) -> Tensor:
        """x [B, H, N, D] -> [B, H, R, N], from the context unless this layer hashes, or nobody did before it."""
        context = {} if context is None else context
        if self.layer % self.share_layers == 0 or BUCKETS not in context:
            context[BUCKETS] = super().buckets(x, key_padding_mask, context)
        return context[BUCKETS]

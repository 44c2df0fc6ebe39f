"""LSH attention with trained rotations: an ablation of the random ones.

The choice of a bucket has no gradient. So a term is added to the logits that measures how well the hashes of two tokens
agree before the argmax: with codes c = xR / |xR|, concatenated over rounds, the logit of a pair is
q.k / |k| + agreement x mean over rounds of c_i.c_j. It gives the rotations a gradient: tokens that should attend to
each other learn similar hashes. The term is used in training and afterwards; there is no auxiliary loss and no
straight-through estimator. (Learned hashing for attention: Sun et al. 2022, "Sparse Attention with Learning-to-Hash",
which trains hash functions by a loss of their own.)
Letters: B batch, H heads, N tokens, D head dimension, R hash rounds, F = R x columns in use.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcls.attention.base import Masks, full_dtype
from xcls.attention.lsh import Reformer, columns_in_use


class ReformerLearned(Reformer):
    """`Reformer` whose rotations are parameters, with the agreement of the hashes in the logits."""

    def __init__(self, *, max_buckets: int = 64, agreement: float = 1.0, **shape: Any) -> None:
        """agreement: weight of the codes' agreement in the logits, not 0; the others as in `Reformer`.

        Each column in use makes q and k longer by one number per round; so max_buckets is smaller here.
        """
        if agreement == 0.0:
            raise ValueError("agreement=0 leaves the rotations without a gradient: take attention=reformer instead")
        super().__init__(max_buckets=max_buckets, **shape)
        start: Tensor = self.rotations.clone()
        del self.rotations
        self.rotations = nn.Parameter(start)
        self.agreement = agreement / len(start)

    def redraw(self, generator: torch.Generator) -> None:
        """Does nothing once the rotations are parameters: trained weights are not drawn again."""
        if not isinstance(self.rotations, nn.Parameter):
            super().redraw(generator)

    def codes(self, x: Tensor, masks: Masks) -> Tensor:
        """x [B, H, N, D] -> unit vectors xR / |xR| of all rounds side by side, [B, H, N, F]."""
        width, spare = columns_in_use(x, self.rotations, self.bucket_size, masks)
        dtype = full_dtype(x)
        rotated = x.to(dtype)[:, :, None] @ self.rotations[..., :width].to(dtype).transpose(0, 1)  # [B, H, R, N, width]
        if spare is not None:
            rotated = rotated.masked_fill(spare[:, :, None], 0.0)
        codes = F.normalize(rotated, dim=-1, eps=1e-6)
        return codes.transpose(2, 3).flatten(3)  # [B, H, N, R x width]

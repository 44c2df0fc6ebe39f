"""LSH attention with trained rotations: an ablation of the random ones.

Which bucket a token falls into has no gradient. The rotations get one through an added term of the logits that says
how well two tokens' hashes agree before they are cut to a bucket: with codes c = xR / |xR|, concatenated over rounds,
the logit of a pair is q.k / |k| + agreement x mean over rounds of c_i.c_j. Pairs that should attend to each other
thereby turn the rotations so that they are hashed alike. The term is part of the kernel in training and afterwards:
there is no auxiliary loss and nothing straight-through. (Learned hashing for attention: Sun et al. 2022, "Sparse
Attention with Learning-to-Hash", which trains hash functions by a loss of their own.)
Letters: B batch, H heads, N tokens, D head width, R rounds, F = R x columns in use.
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

        Every column of the rotations in use widens q and k: max_buckets is smaller here.
        """
        if agreement == 0.0:
            raise ValueError("agreement=0 leaves the rotations without a gradient: take attention=reformer instead")
        super().__init__(max_buckets=max_buckets, **shape)
        start: Tensor = self.rotations.clone()
        del self.rotations
        self.rotations = nn.Parameter(start)
        self.agreement = agreement / len(start)

    def redraw(self, generator: torch.Generator) -> None:
        """Nothing: what is trained is not drawn again."""
        if not isinstance(self.rotations, nn.Parameter):
            super().redraw(generator)

    def codes(self, x: Tensor, masks: Masks) -> Tensor:
        """x [B, H, N, D] -> unit vectors xR / |xR| of all rounds side by side, [B, H, N, F]."""
        width, spare = columns_in_use(x, self.rotations, self.bucket_size, masks)
        dtype = full_dtype(x)
        turned = x.to(dtype)[:, :, None] @ self.rotations[..., :width].to(dtype).transpose(0, 1)  # [B, H, R, N, width]
        if spare is not None:
            turned = turned.masked_fill(spare[:, :, None], 0.0)
        codes = F.normalize(turned, dim=-1, eps=1e-6)
        return codes.transpose(2, 3).flatten(3)  # [B, H, N, R x width]

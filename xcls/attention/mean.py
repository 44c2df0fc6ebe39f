"""The mean of the values over all allowed tokens, whatever they are. A control.

What a mechanism gains over this mean is what attention gains over a bag of words. It is kernel attention with one
feature that is always 1; so it is linear in N with the same masks, and a relative bias acts as weights.
Letters: B batch, H heads, N tokens, D head dimension.
"""

from __future__ import annotations

from torch import Tensor

from xcls.attention.base import Masks
from xcls.attention.favor import KernelAttention
from xcls.attention.operations import Shape, Work


class Mean(KernelAttention):
    """The mean of the values; the caller builds no projections for q and k, which are not read."""

    reads_qk = False

    def features(self, q: Tensor, k: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """phi(x) = 1: [B, H, N, D] -> [B, H, N, 1]."""
        one = q.new_ones(*q.shape[:3], 1)
        return one, one

    def operations(self, shape: Shape) -> tuple[Work, Work]:
        """Two products: the sum of the values and its copy to all tokens; as many backward. Moves v and the output."""
        once = Work(4.0 * shape.vectors, shape.moved / 2)
        return once, once * 2

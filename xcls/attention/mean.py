"""The mean of the values over all allowed tokens: attention that looks at nothing. A control.

What a mechanism gains over it is what attending gains over a bag of words. As kernel attention with one feature that is
always 1, it takes masks in linear time where others do, and a relative bias as weights.
Letters: B batch, H heads, N tokens, D head width.
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
        """The sum of the values, and as much to hand it out, each with one product backward; v and the output move."""
        once = Work(4.0 * shape.vectors, shape.moved / 2)
        return once, once * 2

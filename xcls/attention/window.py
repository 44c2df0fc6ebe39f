"""Sliding-window attention: exact softmax over the tokens at most `window` away, and nothing beyond. A control.

Approximations of all pairs should beat it: much of text is local, and this mechanism is exact there, in linear time and
memory. Letters: B batch, H heads, N tokens, D head dimension, T chunks of a sequence, C tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xcls.attention.base import HEADROOM, Attention, Masks, distance_matrix
from xcls.attention.operations import Shape, Work


class Window(Attention):
    """Softmax attention within |i - j| <= window: a chunk of `window` tokens meets itself and the two beside it."""

    def __init__(self, *, window: int = 64, **shape: Any) -> None:
        """window: tokens that a query sees on each side."""
        super().__init__(**shape)
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self.window = window

    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        """q, k, v [B, H, N, D] -> [B, H, N, D]."""
        length, size = q.shape[2], min(self.window, q.shape[2])
        fill = -length % size
        queries = F.pad(q, (0, 0, 0, fill)).unflatten(2, (-1, size))  # [B, H, T, C, D]
        keys, values = (_windows(x, 2, size, fill).transpose(3, 4) for x in (k, v))  # [B, H, T, 3C, D]
        scale = HEADROOM if q.dtype == torch.float16 else 1.0
        scores = (queries * (q.shape[-1] ** -0.5 / scale)) @ keys.transpose(3, 4)  # [B, H, T, C, 3C]
        if scale != 1.0:
            scores = scores.float() * scale
        if masks.bias is not None:
            scores = scores + distance_matrix(masks.bias, rows=size, columns=3 * size, offset=-size)[:, None]
        blocked = self._blocked(q, masks, size, fill)
        nothing = blocked.all(dim=-1, keepdim=True)  # softmax over all slots here: finite, and set to zero below
        wall = torch.zeros(blocked.shape, dtype=scores.dtype, device=q.device).masked_fill_(
            blocked & ~nothing, -torch.inf
        )
        weights = torch.softmax(scores + wall, dim=-1)  # a sum, because the mask is smaller than the scores
        out = weights.to(v.dtype) @ values
        if masks.pairs is not None:  # without it, such rows are padding
            out = out.masked_fill(nothing, 0.0)
        return out.flatten(2, 3)[:, :, :length]

    def _blocked(self, q: Tensor, masks: Masks, size: int, fill: int) -> Tensor:
        """Which slots of its chunk's window a query may not see: bool [B|1, 1|H, T, C, 3C]."""
        apart = torch.arange(-size, 2 * size, device=q.device) - torch.arange(size, device=q.device)[:, None]
        outside = q.new_zeros(1, q.shape[2], dtype=torch.bool) if masks.padding is None else masks.padding
        outside = _windows(outside, 1, size, fill, value=True)[:, None, :, None]  # [B|1, 1, T, 1, 3C]
        blocked = (apart.abs() > self.window) | outside
        if masks.pairs is None:
            return blocked
        pairs = F.pad(masks.pairs, (size, size + fill, 0, fill), value=True)  # [1|B, 1|H, T C, (T + 2) C]
        batch, heads, row, column = pairs.stride()
        shape = (*pairs.shape[:2], blocked.shape[2], size, 3 * size)
        return blocked | pairs.as_strided(shape, (batch, heads, size * (row + column), row, column))

    def operations(self, shape: Shape) -> tuple[Work, Work]:
        """q k^T and p v over three chunks, on whole chunks; twice that backward."""
        chunk = min(self.window, shape.length)
        once = Work(12.0 * shape.slots(chunk) * chunk * shape.head_dim, shape.moved)
        return once, once * 3


def _windows(x: Tensor, dim: int, size: int, fill: int, value: bool = False) -> Tensor:
    """Each chunk of dimension `dim` with the two beside it, laid out as by Tensor.unfold; `value` beyond the ends."""
    further = [0, 0] * (x.dim() - 1 - dim)
    return F.pad(x, (*further, size, size + fill), value=value).unfold(dim, 3 * size, size)

"""Sinusoidal positions, added to the embeddings (Vaswani et al. 2017, section 3.5).

Letters: B batch, N tokens, E model width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xcls.position.base import Position


def sinusoids(length: int, width: int, base: float) -> Tensor:
    """sin in the even and cos in the odd channels, wavelengths 2 pi to 2 pi x base: [length, width], fp32.

    An odd width ends with a sine. Angles are computed in float64: in fp32 they are off by 1e-3 at position 16,384.
    """
    position = torch.arange(length, dtype=torch.float64)[:, None]
    even = torch.arange(0, width, 2, dtype=torch.float64)
    angle = position * base ** (-even / width)  # [length, ceil(width / 2)]
    table = torch.stack((angle.sin(), angle.cos()), dim=-1)  # [length, ceil(width / 2), 2]
    return table.reshape(length, -1)[:, :width].float()


class Sinusoidal(Position):
    """Adds fixed sinusoids to the token embeddings."""

    table: Tensor

    def __init__(self, *, base: float = 10000.0, scale: float = 0.02, **shape: int) -> None:
        """base: longest wavelength / 2 pi; scale: amplitude, to stand beside embeddings initialised with std 0.02."""
        super().__init__(**shape)
        self.register_buffer("table", sinusoids(self.seq_len, self.embed_dim, base) * scale, persistent=False)

    def embed(self, x: Tensor) -> Tensor:
        """x [B, N, E] -> [B, N, E]. Raises ValueError where N is above seq_len."""
        self.check_length(x.shape[1])
        return x + self.table[: x.shape[1]].to(x.dtype)

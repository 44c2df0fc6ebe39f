"""Rotary positions: queries and keys are turned by angles that grow with the position (RoFormer, Su et al. 2021).

Letters: B batch, H heads, N tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xcls.position.base import Position


def rotary_angles(length: int, head_dim: int, base: float) -> Tensor:
    """position x base^(-2i/D) for i < D // 2: [length, D // 2], float64 (fp32 is off by 1e-3 at position 16,384)."""
    position = torch.arange(length, dtype=torch.float64)[:, None]
    return position * base ** (-torch.arange(0, head_dim - 1, 2, dtype=torch.float64) / head_dim)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel i with channel i + D // 2: x [B, H, N, D], cos and sin [N, D // 2] -> [B, H, N, D], dtype kept.

    Computed in fp32 at least. With an odd D the last channel is not turned.
    """
    half = cos.shape[-1]
    first, second, rest = x.to(torch.promote_types(x.dtype, cos.dtype)).split((half, half, x.shape[-1] - 2 * half), -1)
    turned = (first * cos - second * sin, second * cos + first * sin, rest)
    return torch.cat(turned, dim=-1).to(x.dtype)


class Rotary(Position):
    """Rotary embedding of queries and keys; norms stay, and dot products depend on the distance j - i alone."""

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        head_dim: int,
        num_layers: int,
        seq_len: int,
        base: float = 10000.0,
    ) -> None:
        """base: longest wavelength / 2 pi. Tables for seq_len positions are made once, in fp32."""
        super().__init__(
            embed_dim=embed_dim, num_heads=num_heads, head_dim=head_dim, num_layers=num_layers, seq_len=seq_len
        )
        angles = rotary_angles(seq_len, head_dim, base)
        self.register_buffer("cos", angles.cos().float(), persistent=False)  # [seq_len, D // 2]
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def rotation(self, length: int, device: torch.device) -> Callable[[Tensor], Tensor]:
        """The map [B, H, N, D] -> [B, H, N, D] for N = length. Raises ValueError where it is above seq_len."""
        self.check_length(length)
        cos, sin = self.cos[:length].to(device), self.sin[:length].to(device)

        def rotate(x: Tensor) -> Tensor:
            """x [B, H, N, D] -> [B, H, N, D]."""
            return rotate_pairs(x, cos, sin)

        return rotate

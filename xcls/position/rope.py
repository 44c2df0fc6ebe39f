"""Rotary positions: queries and keys are rotated by angles that grow with the position (RoFormer, Su et al. 2021).

Letters: B batch, H heads, N tokens, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from xcls.attention.kernels import is_compiling
from xcls.position import rope_triton
from xcls.position.base import Position


def rotary_angles(length: int, head_dim: int, base: float) -> Tensor:
    """position x base^(-2i/D) for i < D // 2: [length, D // 2], float64 (fp32 is off by 1e-3 at position 16,384)."""
    position = torch.arange(length, dtype=torch.float64)[:, None]
    return position * base ** (-torch.arange(0, head_dim - 1, 2, dtype=torch.float64) / head_dim)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates channel i with channel i + D // 2: x [B, H, N, D], cos and sin [N, D // 2] -> [B, H, N, D], dtype kept.

    Computes x cos + swap(x) sin on whole rows, where swap exchanges their halves, in fp32 at least. With an odd D the
    last channel is not rotated.
    """
    rest = (0, x.shape[-1] - 2 * cos.shape[-1])
    wide = F.pad(torch.cat((cos, cos), -1), rest, value=1.0), F.pad(torch.cat((-sin, sin), -1), rest)  # [N, D] each
    return _rotated(x, *wide) if is_compiling() else _Rotate.apply(x, *wide)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x, half, dtype = x.contiguous(), x.shape[-1] // 2, torch.promote_types(x.dtype, cos.dtype)
    swapped = torch.cat((x[..., half : 2 * half], x[..., :half], x[..., 2 * half :]), dim=-1)
    return (x.to(dtype) * cos).addcmul_(swapped.to(dtype), sin).to(x.dtype)


class _Rotate(torch.autograd.Function):
    """Rotates the gradient back by the same angles. Plain autograd of the formula takes a tenth more memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, -sin), None, None


@dataclass(frozen=True, eq=False)
class Rotation:
    """`rotate_pairs` for one length, by a Triton kernel where that runs. cos, sin: [N, D // 2], fp32."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """x [B, H, N, D] -> [B, H, N, D] in the dtype of x."""
        rotate = rope_triton.rotate if rope_triton.available(x) else rotate_pairs
        return rotate(x, self.cos, self.sin)


class Rotary(Position):
    """Rotary embedding of queries and keys: it keeps norms, and positions enter dot products only through j - i."""

    cos: Tensor
    sin: Tensor

    def __init__(self, *, base: float = 10000.0, **shape: int) -> None:
        """base: longest wavelength / 2 pi. Tables for seq_len positions are made once, in fp32."""
        super().__init__(**shape)
        angles = rotary_angles(self.seq_len, self.head_dim, base)
        self.register_buffer("cos", angles.cos().float(), persistent=False)  # [seq_len, D // 2]
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def rotation(self, length: int, device: torch.device) -> Rotation:
        """The map [B, H, N, D] -> [B, H, N, D] for N = length. Raises ValueError where it is above seq_len."""
        self.check_length(length)
        return Rotation(self.cos[:length].to(device), self.sin[:length].to(device))

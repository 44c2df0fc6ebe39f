"""Rotary positions: queries and keys are turned by angles that grow with the position (RoFormer, Su et al. 2021).

Letters: B batch, H heads, N tokens, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xcls.position import rope_triton
from xcls.position.base import Position

is_compiling = getattr(torch.compiler, "is_compiling", lambda: False)  # torch >= 2.3


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


class _Turn(torch.autograd.Function):
    """`rotate_pairs` in few passes over whole rows: x cos + swap(x) sin, where swap exchanges the halves of a row.

    cos, sin [N, D]: for all channels, with the signs of the formula. The gradient is turned back by the same angles.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turn(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return turn(grad, cos, -sin), None, None


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + swap(x) sin: x [B, H, N, D], cos and sin [N, D] -> [B, H, N, D] in the dtype of x."""
    x = x.contiguous()
    dtype, half = torch.promote_types(x.dtype, cos.dtype), x.shape[-1] // 2
    swapped = torch.cat((x[..., half : 2 * half], x[..., :half], x[..., 2 * half :]), dim=-1)
    return (x.to(dtype) * cos).addcmul_(swapped.to(dtype), sin).to(x.dtype)


class Rotation:
    """The rotation of `rotate_pairs` for one length, by the quickest way there is for a tensor.

    cos, sin: [N, D // 2], fp32. rest: the channels that are not turned, 0 or 1.
    """

    def __init__(self, cos: Tensor, sin: Tensor, rest: int) -> None:
        self.cos, self.sin = cos, sin
        if cos.device.type == "cpu":
            ones = cos.new_ones(len(cos), rest)
            self.wide = torch.cat((cos, cos, ones), -1), torch.cat((-sin, sin, 1 - ones), -1)

    def __call__(self, x: Tensor) -> Tensor:
        """x [B, H, N, D] -> [B, H, N, D] in the dtype of x."""
        if rope_triton.available(x):
            return rope_triton.rotate(x, self.cos, self.sin)
        if is_compiling() or x.device.type != "cpu":
            return rotate_pairs(x, self.cos, self.sin)
        return _Turn.apply(x, *self.wide)


class Rotary(Position):
    """Rotary embedding of queries and keys; norms stay, and dot products depend on the distance j - i alone."""

    def __init__(
        self, *, embed_dim: int, num_heads: int, head_dim: int, num_layers: int, seq_len: int, base: float = 10000.0
    ) -> None:
        """base: longest wavelength / 2 pi. Tables for seq_len positions are made once, in fp32."""
        super().__init__(
            embed_dim=embed_dim, num_heads=num_heads, head_dim=head_dim, num_layers=num_layers, seq_len=seq_len
        )
        angles = rotary_angles(seq_len, head_dim, base)
        self.register_buffer("cos", angles.cos().float(), persistent=False)  # [seq_len, D // 2]
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def rotation(self, length: int, device: torch.device) -> Rotation:
        """The map [B, H, N, D] -> [B, H, N, D] for N = length. Raises ValueError where it is above seq_len."""
        self.check_length(length)
        return Rotation(self.cos[:length].to(device), self.sin[:length].to(device), self.head_dim % 2)

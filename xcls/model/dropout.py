"""Dropout that is fast on a CPU too."""

from __future__ import annotations

import math
from typing import Any, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from xcls.attention.kernels import is_compiling

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers by the bytes of an element


def draw(x: Tensor, shape: Sequence[int], threshold: int) -> Tensor:
    """Draws which elements to keep, with probability 1 - threshold / 256: uint8 of `shape`, one = kept.

    x, the tensor to drop from, is not read. Without it, the compiler would merge two calls that have equal arguments.
    """
    size = math.prod(shape)
    words = torch.empty((size + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    drawn = words.view(torch.uint8)[:size].view(shape)
    return torch.ge(drawn, threshold, out=torch.empty_like(drawn))  # into bytes: operations on bool are slow


class _Drop(torch.autograd.Function):
    """x where `kept` (uint8 of its shape) is one, times `scale`; zero elsewhere. The gradient likewise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return keep(x, kept, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return keep(grad, kept, ctx.scale), None, None


def keep(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    """x times `scale` where `kept` is one, else zero. The `and` of bits takes a fifteenth of the time of `where`."""
    bits = kept.neg().view(torch.int8).to(BITS[x.element_size()])  # -1 has all bits set
    return (x.view(bits.dtype) & bits).view(x.dtype).mul_(scale)


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014), on a CPU with one random byte per element instead of one random float.

    On a CPU, PyTorch draws a Bernoulli number per element, which takes longer than the matrix products of a small
    model. Here eight elements share a 64-bit draw; so the rate is rounded to a multiple of 1/256, and the scale is
    exact for the rounded rate. On other devices it is PyTorch's own dropout. Draws from torch's global generator.
    """

    def __init__(self, *, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"rate={rate}: at least 0 and less than 1 is needed")
        self.rate = rate
        self.threshold = max(1, round(rate * 256)) if rate > 0 else 0
        self.scale = 256 / (256 - self.threshold)

    def forward(self, x: Tensor, rows: Tensor | None = None, whole: Tensor | None = None) -> Tensor:
        """x [...] -> the same shape; in evaluation x itself.

        rows [K]: x [K, E] holds these rows of a tensor with the shape of `whole` [..., E]; the draws are the same as if
        dropout were applied to that whole tensor.
        """
        if not self.training or self.rate == 0.0:
            return x
        if x.device.type != "cpu":
            return torch.native_dropout(x, self.rate, True)[0]  # what F.dropout calls on a GPU: one kernel
        if is_compiling() and drawn_whole is None:
            return F.dropout(x, self.rate)
        shape = x.shape if rows is None or whole is None else whole.shape
        kept = (drawn_whole if is_compiling() else draw)(x.detach(), shape, self.threshold)
        kept = kept if rows is None else kept.flatten(0, -2).index_select(0, rows)
        if is_compiling():
            return x * (kept.to(x.dtype) * self.scale)
        return _Drop.apply(x, kept, self.scale)

    def extra_repr(self) -> str:
        """The rate, for print(model)."""
        return f"rate={self.rate}"


# Compiled random numbers on a CPU would take a third of a training step; so `draw` is one operation for the compiler.
drawn_whole: Any = None
if hasattr(torch.library, "custom_op"):  # torch >= 2.4
    schema = "(Tensor x, SymInt[] shape, int threshold) -> Tensor"
    drawn_whole = torch.library.custom_op("xcls::draw", draw, mutates_args=(), schema=schema)
    drawn_whole.register_fake(lambda x, shape, threshold: x.new_empty(shape, dtype=torch.uint8))

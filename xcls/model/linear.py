"""Linear layers whose weights are all cast to the dtype of autocast at once.

Autocast launches one kernel per weight, and one per gradient: a sixth of all launches of a training step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Linear(nn.Linear):
    """nn.Linear that uses `cast`, its weight and bias in another dtype, where `cast_weights` has set it."""

    cast: tuple[Tensor, Tensor] | None = None

    @property
    def operands(self) -> tuple[Tensor, Tensor]:
        """Weight [out, in] and bias [out] to compute with."""
        return (self.weight, self.bias) if self.cast is None else self.cast

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return F.linear(x, *self.operands)


class _Cast(torch.autograd.Function):
    """Casts tensors to another dtype with one launch for all, and their gradients back with another."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        out = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
        torch._foreach_copy_(out, list(tensors))
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        out = [torch.empty_like(grad, dtype=dtype) for grad, dtype in zip(grads, ctx.dtypes)]
        torch._foreach_copy_(out, list(grads))
        return (None, *out)


@contextmanager
def cast_weights(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Lets every `Linear` within `module` compute in `dtype`; gradients have the dtype of the weights."""
    layers = [layer for layer in module.modules() if isinstance(layer, Linear) and layer.weight.dtype != dtype]
    cast = _Cast.apply(dtype, *[tensor for layer in layers for tensor in (layer.weight, layer.bias)]) if layers else ()
    for layer, weight, bias in zip(layers, cast[::2], cast[1::2]):
        layer.cast = weight, bias
    try:
        yield
    finally:
        for layer in layers:
            layer.cast = None

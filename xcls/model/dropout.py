"""Dropout that does not cost more than the layer it follows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

is_compiling = getattr(torch.compiler, "is_compiling", lambda: False)  # torch >= 2.3


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014), on CPU with one random byte per element instead of one random float.

    PyTorch draws a Bernoulli number per element on CPU, which takes longer than the matrix products of a small model.
    Eight elements share a 64-bit draw here, so the rate is rounded to a multiple of 1/256, and the scale is exact for
    the rounded rate. Everywhere else it is PyTorch's own dropout. Draws from torch's global generator.
    """

    def __init__(self, *, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"rate={rate}: at least 0 and less than 1 is needed")
        self.rate = rate
        self.threshold = max(1, round(rate * 256)) if rate > 0 else 0

    def forward(self, x: Tensor) -> Tensor:
        """x [...] -> the same shape; in evaluation x itself."""
        if not self.training or self.rate == 0.0:
            return x
        if x.device.type != "cpu" or is_compiling():
            return F.dropout(x, self.rate)
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.threshold
        return x * kept.to(x.dtype).mul_(256 / (256 - self.threshold))

    def extra_repr(self) -> str:
        """The rate, for print(model)."""
        return f"rate={self.rate}"

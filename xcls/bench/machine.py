"""What the machine can do at most, measured on the spot, and PyTorch's count of operations."""

from __future__ import annotations

import time
from typing import Any, Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from xcls.train.amp import DTYPES

SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices
COPIED = {"cpu": 2**26, "cuda": 2**30}  # bytes: far above any cache


def synchronizer(device: str) -> Callable[[], None]:
    """What waits until the device is done with everything asked of it."""
    return torch.cuda.synchronize if device == "cuda" else _nothing


def marker(device: str) -> Callable[[], torch.cuda.Event] | None:
    """What marks a moment in the device's work; None on a CPU, which does what it is told at once."""
    if device != "cuda":
        return None

    def mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    return mark


def _nothing() -> None:
    return None


def _quickest(call: Callable[[], Any], device: str, seconds: float) -> float:
    """The shortest of the times of `call` within so many seconds, after two calls to warm up."""
    wait, best, began = synchronizer(device), float("inf"), time.perf_counter()
    for number in range(1000):
        wait()
        start = time.perf_counter()
        call()
        wait()
        if number >= 2:
            best = min(best, time.perf_counter() - start)
        if number >= 4 and time.perf_counter() - began > seconds:
            break
    return best


@torch.no_grad()
def matmul_rate(dtype: str, device: str, *, seconds: float = 0.5, side: int | None = None) -> float:
    """Operations a second in a product of large square matrices of the dtype: the arithmetic peak in practice."""
    side = side or SIDE[device]
    a, b = (torch.randn(side, side, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    return 2.0 * side**3 / _quickest(lambda: a @ b, device, seconds)


@torch.no_grad()
def copy_rate(device: str, *, seconds: float = 0.3, size: int | None = None) -> float:
    """Bytes a second, read and written, in a copy of a large buffer."""
    source = torch.ones((size or COPIED[device]) // 4, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.numel() * 4 / _quickest(lambda: target.copy_(source), device, seconds)


def _product(query: tuple[int, ...], key: tuple[int, ...]) -> int:
    """Operations of Q K^T, from the shapes [B, H, N, D] and [B, H, S, D]."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[-2] * width


def _fused_forward(
    query: Any,
    key: Any,
    value: Any,
    dropout: Any = 0.0,
    causal: Any = False,
    *,
    attn_mask: Any = None,
    scale: Any = None,
    out_shape: Any = None,
) -> int:
    """Q K^T and P V."""
    return 2 * _product(query, key)


def _fused_backward(
    grad: Any,
    query: Any,
    key: Any,
    value: Any,
    out: Any,
    logsumexp: Any,
    dropout: Any = 0.0,
    causal: Any = False,
    *,
    attn_mask: Any = None,
    scale: Any = None,
    out_shape: Any = None,
) -> int:
    """The scores once more, and four products for the gradients."""
    return 5 * _product(query, key)


def counter() -> FlopCounterMode:
    """PyTorch's counter, with the fused CPU kernel, which it leaves out."""
    aten, mapping = torch.ops.aten, {}
    for name, formula in (("", _fused_forward), ("_backward", _fused_backward)):
        kernel = getattr(aten, f"_scaled_dot_product_flash_attention_for_cpu{name}", None)
        if kernel is not None:
            mapping[kernel] = formula
    return FlopCounterMode(display=False, custom_mapping=mapping)


def counted(call: Callable[[], Tensor | None]) -> int | None:
    """Operations of matrix products in one call, by PyTorch's counter; None where it fails or sees none."""
    try:
        with counter() as mode:
            call()
        return mode.get_total_flops() or None
    except Exception:  # the counter is a guest: what it cannot follow must not cost the row
        return None

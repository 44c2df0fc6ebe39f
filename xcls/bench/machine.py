"""The peak rates of the machine, measured and by data sheet, and PyTorch's count of operations."""

from __future__ import annotations

import re
import time
from typing import Any, Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from xcls.train.amp import DTYPES
from xcls.train.cost import MemoryGauge

SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices
COPIED = {"cpu": 2**26, "cuda": 2**30}  # bytes: much larger than any cache
# TFLOP/s of dense products (no sparsity) in fp16 or bf16 with fp32 sums, from NVIDIA's data sheets. The first
# pattern that matches the name counts.
TFLOPS = (
    (r"\bT4\b", 65.0),
    (r"\bV100-(SXM|DGX)", 125.0),
    (r"\bV100", 112.0),  # PCIe
    (r"\bA100\b", 312.0),  # PCIe and SXM
    (r"\bL4\b", 121.0),  # 242 with sparsity
    (r"\bRTX 4090$", 165.2),  # Ada architecture paper, appendix A: twice as fast with fp16 sums
    (r"\bH100 PCIe\b", 756.0),  # 1,513 with sparsity
    (r"\bH100 NVL\b", 835.0),  # 1,671
    (r"\bH100\b", 989.0),  # SXM: 1,979
    (r"\bH200 NVL\b", 836.0),  # 1,671
    (r"\bH200\b", 989.0),  # SXM: 1,979
)
NO_BF16 = r"\bT4\b|\bV100"


def card_peak(name: str | None, dtype: str) -> float | None:
    """Operations per second by data sheet, for the card with this name in torch.

    None for a CPU, a part of a card (MIG), an unknown card, fp32, and bf16 on a card without it.
    """
    if name is None or dtype not in ("bf16", "fp16") or "MIG" in name:
        return None
    if dtype == "bf16" and re.search(NO_BF16, name):
        return None
    return next((tflops * 1e12 for pattern, tflops in TFLOPS if re.search(pattern, name)), None)


def synchronizer(device: str) -> Callable[[], None]:
    """A function that waits until the device has finished all its work."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def peak_memory(gauge: MemoryGauge) -> float | None:
    """Peak memory, MiB: of the allocator on a GPU; the growth of resident memory on a CPU."""
    on_gpu = gauge.peaks["max_gpu_mem_MiB"]
    return gauge.peaks["rss_growth_MiB"] if on_gpu is None else on_gpu


def _quickest(call: Callable[[], Any], device: str, seconds: float) -> float:
    """The shortest time of a `call` (seconds), repeated for `seconds`, after two calls to warm up."""
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
def measure_rates(connection: Any, *, dtype: str, device: str) -> dict[str, float]:
    """A task of worker.py: the rates that the machine reaches in practice.

    flops_per_s: a product of large square matrices of the dtype. bytes_per_s: a copy of a large buffer, read and
    written bytes.
    """
    side = SIDE[device]
    a, b = (torch.randn(side, side, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    source = torch.ones(COPIED[device] // 4, device=device)
    target = torch.empty_like(source)
    return {
        "flops_per_s": 2.0 * side**3 / _quickest(lambda: a @ b, device, 0.5),
        "bytes_per_s": 2.0 * source.numel() * 4 / _quickest(lambda: target.copy_(source), device, 0.3),
    }


def counter() -> FlopCounterMode:
    """PyTorch's counter of operations, extended by the fused CPU kernel, which it does not count."""

    def products(query: tuple[int, ...], key: tuple[int, ...], count: int) -> int:
        return count * 2 * query[0] * query[1] * query[2] * key[-2] * query[3]  # [B, H, N, D] and [B, H, S, D]

    def forward(query: Any, key: Any, value: Any, *_: Any, **changes: Any) -> int:
        return products(query, key, 2)  # Q K^T and P V

    def backward(grad: Any, query: Any, key: Any, *_: Any, **changes: Any) -> int:
        return products(query, key, 5)  # the scores again, and four products for the gradients

    mapping = {}
    for name, formula in (("", forward), ("_backward", backward)):
        kernel = getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{name}", None)
        if kernel is not None:
            mapping[kernel] = formula
    return FlopCounterMode(display=False, custom_mapping=mapping)


def counted(call: Callable[[], Tensor | None]) -> int | None:
    """Operations of matrix products in one call, by PyTorch's counter; None if it fails or finds none."""
    try:
        with counter() as mode:
            call()
        return mode.get_total_flops() or None
    except Exception:  # the counter cannot trace it: the row stays without a count
        return None

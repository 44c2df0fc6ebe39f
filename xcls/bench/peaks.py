"""What known GPUs can do at most in matrix products of 16-bit numbers: what model FLOP utilisation (MFU) is a share of."""

from __future__ import annotations

import re

HALF = ("bf16", "fp16")
# TFLOP/s of dense products (no sparsity) at full rate with fp32 sums, by NVIDIA's data sheets. The first that fits the name counts.
TFLOPS = (
    (r"\bT4\b", 65.0),  # Tesla T4 data sheet: mixed precision fp16/fp32
    (r"\bV100-(SXM|DGX)", 125.0),  # Tesla V100 data sheet
    (r"\bV100", 112.0),  # the same, PCIe
    (r"\bA100\b", 312.0),  # A100 data sheet, PCIe and SXM alike
    (r"\bL4\b", 121.0),  # L4 data sheet: 242 with sparsity
    (
        r"\bRTX 4090$",
        165.2,
    ),  # Ada architecture paper, appendix A: FP16 with FP32 accumulate; without, it is twice as quick
    (r"\bH100 PCIe\b", 756.0),  # H100 data sheet: 1,513 with sparsity
    (r"\bH100 NVL\b", 835.0),  # the same: 1,671
    (r"\bH100\b", 989.0),  # the same, SXM: 1,979
    (r"\bH200 NVL\b", 836.0),  # H200 data sheet: 1,671
    (r"\bH200\b", 989.0),  # the same, SXM: 1,979
)
NO_BF16 = (r"\bT4\b", r"\bV100")


def card_peak(name: str | None, dtype: str) -> float | None:
    """Operations a second of the card that torch calls `name`; None of a CPU, a part of a card (MIG), an unknown card and fp32."""
    if name is None or dtype not in HALF or "MIG" in name:
        return None
    if dtype == "bf16" and any(re.search(pattern, name) for pattern in NO_BF16):
        return None
    found = (tflops for pattern, tflops in TFLOPS if re.search(pattern, name))
    peak = next(found, None)
    return None if peak is None else peak * 1e12

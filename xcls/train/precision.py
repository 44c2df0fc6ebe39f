"""Which device and which dtype: decided without importing torch, because the run's hash needs it in a light process."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from xcls.schema import Hardware, UserError

BF16_CAPABILITY = 8.0  # Ampere; older GPUs emulate bf16 slowly
CPU_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


@dataclass(frozen=True)
class Precision:
    """The resolved device ('cpu', 'cuda') and dtype of the matrix products ('fp32', 'bf16', 'fp16')."""

    device: str
    dtype: str


def resolve(hardware: Hardware) -> Precision:
    """Settles `auto`. Nothing is probed that the configuration names, so a login node may resolve for a GPU node.

    Device: cuda where a GPU can be used, else cpu. Dtype: on cuda bf16 from Ampere on, else fp16; on cpu bf16 where the
    processor has instructions for it, else fp32. Raises UserError for cuda with an automatic dtype and no GPU.
    """
    device = hardware.device
    if device == "auto":
        device = "cpu" if gpu_capability() is None else "cuda"
    if hardware.dtype != "auto":
        return Precision(device=device, dtype=hardware.dtype)
    if device == "cpu":
        return Precision(device=device, dtype="bf16" if CPU_BF16_FLAGS & cpu_flags() else "fp32")
    capability = gpu_capability()
    if capability is None:
        raise UserError(
            "hardware.device=cuda: no usable GPU was found (nvidia-smi, CUDA_VISIBLE_DEVICES, or a torch built for CPU "
            "only). Set hardware=cpu, or name hardware.dtype to resolve for another machine."
        )
    return Precision(device=device, dtype="bf16" if capability >= BF16_CAPABILITY else "fp16")


def cpu_flags() -> set[str]:
    """The flags of the first processor in /proc/cpuinfo; empty where there is no such file."""
    try:
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return set()
    return set(found.group(1).split()) if found else set()


@lru_cache(maxsize=1)
def gpu_capability() -> float | None:
    """The lowest compute capability of the GPUs, as nvidia-smi tells; None where torch could not use one."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "unset").strip() in ("", "-1"):
        return None
    try:
        if re.search(r"\+(cpu|rocm|xpu)", metadata.version("torch")):
            return None
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        return min(float(line) for line in answer.split())
    except (OSError, ValueError, subprocess.SubprocessError, metadata.PackageNotFoundError):
        return None

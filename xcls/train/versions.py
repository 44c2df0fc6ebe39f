"""What ran: versions and device. Best effort: a missing package gives None, never an error."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("numpy", "tokenizers", "datasets", "scikit-learn", "pandas", "xcls")


def versions(*more: str) -> dict[str, str | None]:
    """Versions of Python, torch, CUDA, packages that shape a result and `more` of them; None where one is missing."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a plain string: checkpoints load with weights_only
        "cuda": torch.version.cuda,
    }
    for package in (*PACKAGES, *more):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def cpu_name() -> str:
    """The processor's name as /proc/cpuinfo has it, else the platform's."""
    try:
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def describe_device(device: torch.device) -> dict[str, Any]:
    """Kind, name, memory (MiB) and threads of `device`."""
    described: dict[str, Any] = {"kind": device.type, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {**described, "name": properties.name, "memory_MiB": properties.total_memory // 2**20}
    return {**described, "name": cpu_name()}

"""What ran: versions, commit, device. Best effort: a missing tool or package gives None, never an error."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("numpy", "tokenizers", "datasets", "scikit-learn", "pandas", "xcls")


def versions() -> dict[str, str | None]:
    """Versions of Python, torch, CUDA and the packages that shape a result."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a plain string: checkpoints load with weights_only
        "cuda": torch.version.cuda,
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def commit() -> str | None:
    """The commit of the source tree, with `-dirty` where tracked files differ from it; None outside a repository."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, ["rev-parse", "HEAD"])
        return head + ("-dirty" if _git(root, ["status", "--porcelain", "--untracked-files=no"]) else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, words: list[str]) -> str:
    """The output of one git command."""
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()


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

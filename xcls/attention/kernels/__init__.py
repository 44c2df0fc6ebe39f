"""What is faster than the readable formula: one file for each mechanism and device, equal to the formula by test."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

is_compiling = getattr(torch.compiler, "is_compiling", lambda: False)  # torch >= 2.3
INTERPRETED = triton is not None and os.environ.get("TRITON_INTERPRET") == "1"  # kernels run on the CPU, for tests
assumed_capability = (0, 0)  # of the card that PyTorch's meta device stands for: the cost model of tests/gpu sets it


def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability for which Triton makes kernels there; (0, 0) where it makes none.

    Triton 3 and NVIDIA GPUs alone. Below 8.0 it uses no tensor cores (since 3.3), so that kernels with products ask
    for 8.0.
    """
    if device.type == "meta":
        return assumed_capability
    if device.type == "cpu":
        return (9, 0) if INTERPRETED else (0, 0)
    if device.type != "cuda" or torch.version.hip or triton is None or int(triton.__version__.split(".")[0]) < 3:
        return (0, 0)
    if not is_compiling() and not starts():  # torch.compile needs the same compiler anyway
        return (0, 0)
    return torch.cuda.get_device_capability(device)


@functools.lru_cache(maxsize=1)
def starts() -> bool:
    """Whether Triton can start kernels in this process: at its first one it compiles a file with a C compiler and
    Python's headers.

    Warns where it cannot; all that it would do is then computed by PyTorch's operations.
    """
    try:
        return triton.runtime.driver.active.utils is not None
    except Exception as error:
        warnings.warn(
            f"Triton cannot start kernels here, so attention takes PyTorch's operations, which are slower: {error} "
            "It needs a C compiler and Python's headers (on Debian: apt-get install gcc python3-dev).",
            stacklevel=2,
        )
        return False


_LIBRARY = torch.library.Library("xcls", "FRAGMENT")


def register(name: str, schema: str, shapes: Callable[..., Any], run: Callable[..., Any]) -> None:
    """Makes `torch.ops.xcls.<name>`, which torch.compile and the meta device know by its `shapes`: results, not filled.

    schema: "(Tensor x) -> Tensor". `run` starts Triton's kernels, on a GPU or under the interpreter.
    """
    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, shapes, "Meta")
    if triton is not None:
        for device in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
            _LIBRARY.impl(name, run, device)


def empty_token_major(like: Tensor) -> Tensor:
    """An empty [B, H, N, D] with the memory of [B, N, H, D], so that heads are merged without a copy."""
    batch, heads, length, width = like.shape
    return like.new_empty(batch, length, heads, width).transpose(1, 2)


def as_token_major(x: Tensor) -> Tensor:
    """x [B, H, N, D] with the memory of [B, N, H, D]: itself where it has it."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)

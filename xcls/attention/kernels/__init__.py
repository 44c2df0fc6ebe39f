"""Faster versions of the readable formulas: one file for each mechanism and device; tests compare both."""

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
assumed_capability = (0, 0)  # of the GPU that the meta device stands for; the cost model of tests/gpu sets it


def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a device on which Triton kernels run; (0, 0) where they do not.

    Only Triton 3 on NVIDIA GPUs. Since 3.3 it uses tensor cores only from 8.0 on; so kernels with matrix products need
    8.0.
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
    """Whether Triton can start kernels in this process: the first one needs a C compiler and Python's headers.

    Warns where it cannot; PyTorch's operations are then used instead.
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
    """Makes the operation `torch.ops.xcls.<name>` with a `schema` such as "(Tensor x) -> Tensor".

    `run` starts the Triton kernels, on a GPU or under the interpreter. `shapes` returns results of the right shape
    without values, for torch.compile and the meta device.
    """
    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, shapes, "Meta")
    if triton is not None:
        for device in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
            _LIBRARY.impl(name, run, device)


def empty_token_major(like: Tensor) -> Tensor:
    """An empty [B, H, N, D] with the memory layout of [B, N, H, D], so that heads are merged without a copy."""
    batch, heads, length, width = like.shape
    return like.new_empty(batch, length, heads, width).transpose(1, 2)


def as_token_major(x: Tensor) -> Tensor:
    """x [B, H, N, D] with the memory layout of [B, N, H, D]; x itself if it has that layout."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)

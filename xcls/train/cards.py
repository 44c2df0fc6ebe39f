"""The GPUs that torch can use, or the reason why it can use none. torch is imported only when it is asked.

A launcher asks in a separate process (`of_jobs`), because a process that has asked torch may hold memory on a GPU.
That memory is for the jobs.
"""

from __future__ import annotations

import os
import re
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

from xcls.config.schema import UserError

BF16_CAPABILITY = (8, 0)  # Ampere; older GPUs emulate bf16 slowly
OLD_WHEELS = "https://download.pytorch.org/whl/cu126"  # CUDA 12.6: the last with code for Maxwell, Pascal and Volta
PYPI_CAPABILITY = (7, 5)  # Turing: the oldest that the CUDA 13 wheels of PyPI have code for
NONE_VISIBLE = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that hide every GPU


@dataclass(frozen=True)
class Card:
    """One GPU: its name and its compute capability (major, minor)."""

    name: str
    capability: tuple[int, int]

    @property
    def bf16(self) -> bool:
        """Whether it computes in bf16 without emulation."""
        return self.capability >= BF16_CAPABILITY

    def __str__(self) -> str:
        return f"{self.name}, capability {self.capability[0]}.{self.capability[1]}"


@dataclass(frozen=True)
class Cards:
    """The GPUs that torch finds. `code`: the architectures it has code for; `why`: why there is none, and a remedy."""

    torch: str
    cards: tuple[Card, ...] = ()
    code: tuple[str, ...] = ()
    why: str = ""
    warn: bool = False  # the machine has a GPU that torch cannot use, and the user has not hidden it


@lru_cache(maxsize=1)
def here() -> Cards:
    """The card that this process trains on: the first that CUDA_VISIBLE_DEVICES allows."""
    found = look()
    return replace(found, cards=found.cards[:1])


def look() -> Cards:
    """All cards that CUDA_VISIBLE_DEVICES allows."""
    import torch

    version = str(torch.__version__)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `_torch_says` reports why the GPU is missing
        usable = torch.cuda.is_available()
    if not usable:
        why, warn = _why_none(version, torch.version.cuda)
        return Cards(version, why=why, warn=warn)
    places = range(torch.cuda.device_count())
    found = [Card(torch.cuda.get_device_name(place), torch.cuda.get_device_capability(place)) for place in places]
    code = torch.cuda.get_arch_list() if torch.version.cuda else []  # ROCm uses other names
    return Cards(version, tuple(found), tuple(code))


@lru_cache(maxsize=1)
def of_jobs() -> Cards:
    """Every card that a job of the sweep may get. A separate process finds them, so that this one uses no GPU memory.

    Raises UserError if that process fails.
    """
    import torch

    if not torch.backends.cuda.is_built():
        return look()  # torch without CUDA uses no GPU
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(look).result()
    except Exception as error:  # any failure of that process
        raise UserError(
            f"hardware=auto: torch could not be asked which GPUs are here: {type(error).__name__}: {error}. "
            "Name it: hardware=cpu, a100, …."
        ) from error


def runs_on(capability: tuple[int, int], code: tuple[str, ...]) -> bool:
    """Whether a card of this capability runs one of the architectures `code` (`sm_80`, `sm_90a`, `compute_120`).

    Machine code (sm) runs on the same or a later card of the same major version, with suffix `a` on that card only.
    PTX (compute) is translated for every later card. Source: CUDA C++ Programming Guide, Binary and PTX Compatibility.
    True if `code` is empty, since nothing is known then.
    """
    for kind, digits, special in (
        found.groups() for name in code if (found := re.fullmatch(r"(sm|compute)_(\d+)([a-z]?)", name))
    ):
        made_for = divmod(int(digits), 10)
        if special == "a" or (kind == "sm" and made_for[0] != capability[0]):
            if made_for == capability:
                return True
        elif made_for <= capability:
            return True
    return not code


def remedy(capability: tuple[int, int] | None) -> str:
    """Which torch to install for a card, as a command."""
    command = "pip install --force-reinstall torch"
    if capability is not None and capability < PYPI_CAPABILITY:
        return f"the wheels for CUDA 12.6, which have it: {command} --index-url {OLD_WHEELS}"
    return f"the newest torch with CUDA: {command}"


def signs() -> str:
    """Signs of an NVIDIA GPU that do not need torch, as text; '' if there are none."""
    if seen := driver_cards():
        return f"its driver names {', '.join(str(card) for card in seen)}"
    return "/proc/driver/nvidia is there" if Path("/proc/driver/nvidia").exists() else ""


def _why_none(version: str, cuda: str | None) -> tuple[str, bool]:
    """Why torch finds no card and what to do about it, and whether to warn."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in NONE_VISIBLE:
        return f"CUDA_VISIBLE_DEVICES={hidden.strip()!r} hides every GPU", False
    built = f"this torch ({version}) was built without CUDA"
    seen = signs()
    if not seen:
        return built if cuda is None else "torch finds no GPU", False
    if cuda is None:
        oldest = min((card.capability for card in driver_cards()), default=None)
        return f"{built}, but a GPU is here ({seen}). Install {remedy(oldest)}", True
    return (
        f"torch {version} (CUDA {cuda}) cannot use the GPU that is here ({seen}): {_torch_says()}. Update the driver, "
        f"or install a torch for an older CUDA: pip install --force-reinstall torch --index-url {OLD_WHEELS}. "
        "In a container, start it with its GPUs (--gpus all)"
    ), True


def _torch_says() -> str:
    """The first sentence of the error that torch gives."""
    import torch

    try:
        torch.cuda.init()
    except Exception as error:
        return " ".join(str(error).split()).split(". ")[0].rstrip(".") or type(error).__name__
    return "it finds no device"


@lru_cache(maxsize=1)
def driver_cards() -> tuple[Card, ...]:
    """The GPUs that the NVIDIA driver names (NVML), without torch, also those hidden from this process."""
    try:
        import pynvml

        pynvml.nvmlInit()
        found = [pynvml.nvmlDeviceGetHandleByIndex(place) for place in range(pynvml.nvmlDeviceGetCount())]
        ask = (pynvml.nvmlDeviceGetName, pynvml.nvmlDeviceGetCudaComputeCapability)
        return tuple(Card(ask[0](one), tuple(ask[1](one))) for one in found)
    except Exception:  # no package, no driver, an old one
        return ()

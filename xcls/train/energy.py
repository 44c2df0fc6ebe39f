"""The energy counter of an NVIDIA GPU, read from the driver's own library (NVML), which is there where a GPU is."""

from __future__ import annotations

import ctypes
import os
from typing import Any, Callable, Mapping

import torch

LIBRARY = "libnvidia-ml.so.1"  # comes with the driver, not with torch
DONE = 0  # NVML_SUCCESS


class Unreadable(Exception):
    """NVML refused a call: an old or a divided GPU has no counter."""


class Meter:
    """Reads the millijoules that a GPU has drawn since its driver was loaded; all jobs on the device count."""

    def __init__(self, library: Any, handle: ctypes.c_void_p) -> None:
        self._library, self._handle = library, handle
        self._last = self._read()

    def __call__(self) -> int:
        """The counter; where the driver does not answer any more, what it said last."""
        try:
            self._last = self._read()
        except Unreadable:
            pass  # a training does not end because its energy cannot be counted on
        return self._last

    def _read(self) -> int:
        value = ctypes.c_ulonglong()
        _call(self._library.nvmlDeviceGetTotalEnergyConsumption, self._handle, ctypes.byref(value))
        return value.value


def energy_counter(
    device: torch.device, load: Callable[[str], Any] = ctypes.CDLL, environment: Mapping[str, str] = os.environ
) -> Callable[[], int] | None:
    """What reads the energy (mJ) of `device`; None where that is not to be had, and it is reckoned from watts."""
    if device.type != "cuda":
        return None
    try:
        library = load(LIBRARY)
        _call(library.nvmlInit_v2)
        return Meter(library, _handle(library, device, environment))
    except (OSError, AttributeError, Unreadable):  # no driver, an old driver, a GPU without a counter
        return None


def _handle(library: Any, device: torch.device, environment: Mapping[str, str]) -> ctypes.c_void_p:
    """NVML's handle of the GPU that torch calls `device`."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)  # torch 2.4 and newer
    if uuid is not None:
        return _by_uuid(library, f"GPU-{uuid}")
    index = device.index if device.index is not None else torch.cuda.current_device()
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    name = visible.split(",")[index].strip() if visible and index < len(visible.split(",")) else str(index)
    if name.startswith("GPU-"):
        return _by_uuid(library, name)
    count = ctypes.c_uint()
    _call(library.nvmlDeviceGetCount_v2, ctypes.byref(count))
    if not name.isdigit() or (count.value > 1 and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"):
        raise Unreadable(f"which GPU is {device}? CUDA and NVML count in different orders")
    handle = ctypes.c_void_p()
    _call(library.nvmlDeviceGetHandleByIndex_v2, ctypes.c_uint(int(name)), ctypes.byref(handle))
    return handle


def _by_uuid(library: Any, name: str) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    _call(library.nvmlDeviceGetHandleByUUID, ctypes.c_char_p(name.encode()), ctypes.byref(handle))
    return handle


def _call(function: Any, *arguments: Any) -> None:
    code = function(*arguments)
    if code != DONE:
        raise Unreadable(f"NVML error {code}")

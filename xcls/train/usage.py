"""What a run has used over all its processes: seconds, and the energy that an NVIDIA GPU counts."""

from __future__ import annotations

import contextlib
import time
from typing import Callable

import torch

WATT_HOUR = 3.6e6  # millijoules


class ResourceUsage:
    """Goes on from the `costs` of the run's earlier processes; the time between two processes does not count.

    A process that is killed loses what came after the record was last written.
    """

    def __init__(self, earlier: dict[str, float | None]) -> None:
        self.seconds, self.energy = earlier.get("wall_seconds") or 0.0, earlier.get("energy_wh")
        self._began = time.monotonic()
        self._counter: Callable[[], int] | None = None
        self._first = self._last = 0  # readings of the counter, mJ

    def watch(self, device: torch.device) -> None:
        """Reads the device's energy counter from now on, where it has one (NVIDIA from Volta on).

        It counts what all jobs on the device draw.
        """
        self._counter = energy_counter(device)
        if self._counter is not None:
            self._first = self._last = self._counter()

    def costs(self) -> dict[str, float | None]:
        """wall_seconds, and energy_wh (None where nothing counts it)."""
        energy = self.energy
        if self._counter is not None:
            with contextlib.suppress(Exception):  # a driver that does not answer any more: its last reading stands
                self._last = self._counter()
            energy = (energy or 0.0) + (self._last - self._first) / WATT_HOUR
        return {"wall_seconds": self.seconds + time.monotonic() - self._began, "energy_wh": energy}


def energy_counter(device: torch.device) -> Callable[[], int] | None:
    """Reads the millijoules that the GPU `device` has drawn since its driver was loaded; None where it cannot be read.

    That is so without an NVIDIA GPU, on one that is old or divided (MIG), and with torch before 2.4 (no UUIDs).
    """
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # no package, no driver, no counter, another UUID
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)

"""Resource usage of a run over all its processes: seconds, and the energy counted by an NVIDIA GPU."""

from __future__ import annotations

import contextlib
import time
from typing import Callable

import torch

WATT_HOUR = 3.6e6  # millijoules


class ResourceUsage:
    """Adds to the `costs` of the run's earlier processes; the time between two processes does not count.

    A killed process loses the usage since the record was last written.
    """

    def __init__(self, earlier: dict[str, float | None]) -> None:
        self.seconds, self.energy = earlier.get("wall_seconds") or 0.0, earlier.get("energy_wh")
        self._began = time.monotonic()
        self._counter: Callable[[], int] | None = None
        self._first = self._last = 0  # readings of the counter, mJ

    def watch(self, device: torch.device) -> None:
        """Reads the device's energy counter from now on, if it has one (NVIDIA from Volta on).

        The counter includes the energy of all jobs on the device.
        """
        self._counter = energy_counter(device)
        if self._counter is not None:
            self._first = self._last = self._counter()

    def costs(self) -> dict[str, float | None]:
        """wall_seconds, and energy_wh (None without a counter)."""
        energy = self.energy
        if self._counter is not None:
            with contextlib.suppress(Exception):  # if the driver no longer answers, the last reading is kept
                self._last = self._counter()
            energy = (energy or 0.0) + (self._last - self._first) / WATT_HOUR
        return {"wall_seconds": self.seconds + time.monotonic() - self._began, "energy_wh": energy}


def energy_counter(device: torch.device) -> Callable[[], int] | None:
    """A function that reads the energy used by the GPU `device` since its driver was loaded, in mJ.

    None without an NVIDIA GPU, on an old or divided one (MIG), and with torch before 2.4 (no UUIDs).
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

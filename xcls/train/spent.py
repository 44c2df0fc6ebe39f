"""What a run has spent over all its lives: seconds its processes were at it, and energy where the GPU counts it."""

from __future__ import annotations

import time
from typing import Callable

import torch

from xcls.train.energy import energy_counter

WATT_HOUR = 3.6e6  # millijoules


class Spent:
    """Goes on from the `costs` of the run's earlier lives; time between two lives does not count.

    A process that is killed loses what came after the record was last written.
    """

    def __init__(self, earlier: dict[str, float | None]) -> None:
        self.seconds, self.energy = earlier.get("wall_seconds") or 0.0, earlier.get("energy_wh")
        self._began = time.monotonic()
        self._counter: Callable[[], int] | None = None
        self._start = 0

    def watch(self, device: torch.device) -> None:
        """Reads the device's energy counter from now on, where it has one (NVIDIA from Volta on).

        It counts what all jobs on the device draw.
        """
        self._counter = energy_counter(device)
        self._start = self._counter() if self._counter else 0

    def costs(self) -> dict[str, float | None]:
        """wall_seconds, and energy_wh (None where nothing counts it)."""
        energy = self.energy
        if self._counter is not None:
            energy = (energy or 0.0) + (self._counter() - self._start) / WATT_HOUR
        return {"wall_seconds": self.seconds + time.monotonic() - self._began, "energy_wh": energy}

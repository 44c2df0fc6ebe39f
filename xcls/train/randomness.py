"""The state of every random number generator, as tensors and plain types that a checkpoint can hold."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from xcls.attention.base import mix

FIRST_LAYERS = 1_000_000  # smaller numbers are layers: they draw their first random features from mix(seed, layer)


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def derived_generator(seed: int, step: int) -> torch.Generator:
    """A CPU generator that depends on (seed, step) only, so that a resumed run draws the same numbers."""
    return torch.Generator().manual_seed(mix(seed, FIRST_LAYERS + step))


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of Python's, numpy's and torch's generators; those of the GPUs only if `device` is a GPU."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if device.type == "cuda" else [],
    }


def restore_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Restores the states of `random_states`; those of GPUs only if `device` is a GPU, and only for GPUs that exist."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda":
        for index, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, index)

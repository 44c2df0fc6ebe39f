"""What the tests of several mechanisms share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.allocations import LargestTensor


@pytest.fixture
def largest() -> Callable[[Callable[[], torch.Tensor]], int]:
    """largest(run): entries of the largest tensor made by run() and by the backward pass of its sum."""

    def measure(run: Callable[[], torch.Tensor]) -> int:
        with LargestTensor() as mode:
            run().sum().backward()
        return mode.entries

    return measure

"""What the tests of several mechanisms share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """Notes the number of entries of the largest tensor that any operation, backward ones too, puts out."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        old = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}  # a view makes nothing
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in old:
                self.entries = max(self.entries, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.fixture
def largest() -> Callable[[Callable[[], torch.Tensor]], int]:
    """largest(run): entries of the largest tensor made by run() and by the backward pass of its sum."""

    def measure(run: Callable[[], torch.Tensor]) -> int:
        with LargestTensor() as mode:
            run().sum().backward()
        return mode.entries

    return measure

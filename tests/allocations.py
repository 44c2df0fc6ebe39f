"""What a computation allocates, counted and not timed: the same on every machine."""

from __future__ import annotations

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


class KeptTensors(torch.autograd.graph.saved_tensors_hooks):
    """Counts the entries that forward passes keep for their backward passes, whatever they are views of once each."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            self._sizes[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
            return tensor

        super().__init__(pack, lambda tensor: tensor)

    def __enter__(self) -> KeptTensors:
        super().__enter__()
        return self

    @property
    def entries(self) -> int:
        """All of them together."""
        return sum(self._sizes.values())

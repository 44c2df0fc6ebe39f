"""Takes a training off its GPU while others have their turn there, so that none holds memory which another one needs."""

from __future__ import annotations

import gc
from typing import Iterator

import torch
from torch import Tensor, nn


class Parking:
    """Weights, buffers, gradients and the optimizer's state of one training: the same objects before and after."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, away: str = "cpu") -> None:
        """away: the device that they wait on."""
        self.model, self.optimizer, self.away = model, optimizer, torch.device(away)
        self.parked: list[tuple[Tensor, torch.device]] = []  # each with the device that it came from

    def leave(self) -> None:
        """Moves everything away from its device and gives back what the allocator keeps."""
        held = {id(tensor): tensor for tensor in self._held() if tensor.device.type != self.away.type}
        for tensor in held.values():
            self.parked.append((tensor, tensor.device))
            self._move(tensor, self.away)
        gc.collect()
        torch.cuda.empty_cache()

    def come_back(self) -> None:
        """Moves everything to where it was."""
        for tensor, device in self.parked:
            self._move(tensor, device)
        self.parked.clear()

    def _move(self, tensor: Tensor, device: torch.device) -> None:
        tensor.data = tensor.data.to(device)  # the object stays: the optimizer and the model's modules know it

    def _held(self) -> Iterator[Tensor]:
        for parameter in self.model.parameters():
            yield from (parameter,) if parameter.grad is None else (parameter, parameter.grad)
        yield from self.model.buffers()
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))

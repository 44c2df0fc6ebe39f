"""Faults that end a run: numbers that are not finite, and memory that ran out. Both with what to know about them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Iterator

import torch
from torch import nn

CPU_OUT_OF_MEMORY = ("DefaultCPUAllocator", "not enough memory", "out of memory")
SHOWN = 8  # rows named in a message; all of them are in the event


class BadNumbers(Exception):
    """A loss or a gradient is NaN or infinite. `details` has the step, the batch's rows and the layer."""

    def __init__(self, message: str, details: dict[str, Any]) -> None:
        super().__init__(message)
        self.details = details


class OutOfMemory(Exception):
    """Memory ran out. The message has the sizes that led to it and the settings to change."""


def bad_numbers(*, step: int, loss: float, norm: float, rows: list[Any], layer: str) -> BadNumbers:
    """The exception for a step whose loss or gradient norm is not finite."""
    named = ", ".join(map(str, rows[:SHOWN])) + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")
    numbers = f"loss {loss}, gradient norm {norm}; first in {layer}"
    message = f"not finite at step {step}: {numbers}; rows of the batch: {named}"
    return BadNumbers(message, {"step": step, "loss": str(loss), "norm": str(norm), "layer": layer, "rows": rows})


def first_bad_layer(model: nn.Module, forward: Callable[[], Any]) -> str:
    """The first module whose output is not finite when `forward` runs again, else the first such gradient."""
    found: list[str] = []

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, (tuple, list)) else [output]
            if not found and any(_bad(tensor) for tensor in tensors):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(hook_for(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"the output of {found[0]}"
    bad = [name for name, parameter in model.named_parameters() if _bad(parameter.grad)]
    return f"the gradient of {bad[0]}" if bad else "the loss"


def _bad(value: Any) -> bool:
    """Is this a floating tensor with a NaN or an infinity in it?"""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all())


@contextmanager
def memory_errors(describe: Callable[[], str]) -> Iterator[None]:
    """Turns running out of memory, on GPU or CPU, into OutOfMemory with `describe()`: the sizes and the remedy."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(f"out of memory: {describe()}") from error
    except RuntimeError as error:  # torch.cuda.OutOfMemoryError is one
        if isinstance(error, torch.cuda.OutOfMemoryError) or any(text in str(error) for text in CPU_OUT_OF_MEMORY):
            raise OutOfMemory(f"out of memory: {describe()}") from error
        raise

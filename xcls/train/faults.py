"""Faults that end a run: NaN or infinite numbers, and lack of memory. Each error says what to change."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import Any, Callable, Iterator

import torch
from torch import nn

OUT_OF_MEMORY = ("DefaultCPUAllocator", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class BadNumbers(Exception):
    """A loss or a gradient is NaN or infinite. `details` has the step, the batch's rows and the layer."""

    def __init__(self, message: str, details: dict[str, Any]) -> None:
        super().__init__(message)
        self.details = details


class OutOfMemory(Exception):
    """Memory ran out. The message has the sizes that led to it and the settings to change."""


def first_bad_layer(model: nn.Module, attempt: Callable[[], Any]) -> str:
    """The first place with a non-finite number when `attempt` (a forward, perhaps a backward pass) runs again: the
    output of a module, the gradient of a parameter, else the loss."""
    found: list[str] = []

    def note(what: str, values: Any) -> None:
        if not found and any(_bad(value) for value in (values if isinstance(values, (tuple, list)) else [values])):
            found.append(what)

    handles = []
    for name, module in model.named_modules():
        if name:
            what = f"the output of {name}"
            handles.append(module.register_forward_hook(lambda module, given, out, what=what: note(what, out)))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:  # a backward pass visits the parameters from the loss to the input
            what = f"the gradient of {name}"
            handles.append(parameter.register_hook(lambda gradient, what=what: note(what, gradient)))
    try:
        attempt()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "the loss"


def _bad(value: Any) -> bool:
    """Is this a floating tensor with a NaN or an infinity in it?"""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all())


def is_out_of_memory(error: BaseException) -> bool:
    """Did memory run out, on GPU or CPU?"""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


def free_memory() -> None:
    """Frees the memory that a failed attempt has left behind."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def memory_errors(describe: Callable[[], str]) -> Iterator[None]:
    """Turns torch's out-of-memory errors into OutOfMemory with `describe()`: the sizes and the remedy."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory: {describe()}") from error

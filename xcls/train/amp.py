"""Mixed precision with torch: the device, autocast and loss scaling of a resolved `Precision`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch

from xcls.config.schema import Hardware, UserError
from xcls.model.encoder import Encoder
from xcls.train.precision import Precision

GRAPHS = 1024  # compiled graphs of one function before torch.compile gives up
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Amp:
    """Device and dtype of the computation. Weights and optimizer state stay in fp32; matrix products use the dtype."""

    def __init__(self, *, precision: Precision, hardware: Hardware) -> None:
        """Sets the number of threads that `hardware` names. `check_cards` has already checked the device."""
        if hardware.threads is not None:
            torch.set_num_threads(hardware.threads)
        set_products()
        self.precision, self.hardware = precision, hardware
        self.device = torch.device(precision.device)
        self.scaler = _scaler(precision)

    def autocast(self) -> AbstractContextManager[None]:
        """The autocast context of the dtype; nothing for fp32."""
        if self.precision.dtype == "fp32":
            return nullcontext()
        return torch.autocast(self.precision.device, dtype=DTYPES[self.precision.dtype])


def set_products() -> None:
    """Sets how this process computes matrix products on CUDA: fp32 without TF32, and 16-bit products with fp32 sums.

    TF32 has 10 bits of mantissa. That is too few for the fp32 reference, and for hashes and feature maps, which bf16
    and fp16 runs compute in fp32 too.
    """
    products = torch.backends.cuda.matmul
    products.allow_tf32 = False
    products.allow_bf16_reduced_precision_reduction = False
    products.allow_fp16_reduced_precision_reduction = False


def _scaler(precision: Precision) -> torch.cuda.amp.GradScaler | None:
    """Loss scaling for fp16 (Micikevicius et al. 2018); None where the dtype needs none."""
    if precision.dtype != "fp16":
        return None
    modern = getattr(torch.amp, "GradScaler", None)  # torch >= 2.3; before, only for CUDA
    if modern is not None:
        return modern(precision.device)
    if precision.device == "cuda":
        return torch.cuda.amp.GradScaler()
    wanted = f"needs torch 2.3 or newer (this is {torch.__version__})"
    raise UserError(f"hardware.dtype=fp16 on a CPU {wanted}. Set hardware.dtype=bf16 or fp32.")


def to_device(tensor: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """`tensor` on `device`, without waiting for the copy (which needs pinned memory on CUDA); None stays None."""
    if tensor is not None and device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return None if tensor is None else tensor.to(device, non_blocking=True)


class Arriving:
    """A few numbers being copied from the device. `read` waits for the work that made them, not for later work."""

    def __init__(self, values: torch.Tensor) -> None:
        """values [K]; the copy starts now."""
        self._values = values.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if values.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> list[float]:
        """The numbers."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()


def compile_blocks(model: torch.nn.Module) -> None:
    """Compiles each block of `model.encoder` in place (parameters keep their names), once for every batch shape.

    Dynamic shapes work for explicit softmax only: mechanisms that sort or split sequences are compiled again for every
    length, until the compiler gives up. So all mechanisms use fixed shapes; `width_multiple` keeps their number small.
    """
    allow_graphs()
    for block in cast(Encoder, model.encoder).blocks:
        block.compile(dynamic=False)


def allow_graphs() -> None:
    """Lets one function have GRAPHS compiled graphs: by default torch stops compiling after 8, without an error."""
    import torch._dynamo as dynamo

    for limit in ("recompile_limit", "cache_size_limit"):  # the new name and the old one
        for name in (limit, f"accumulated_{limit}"):
            if hasattr(dynamo.config, name):
                setattr(dynamo.config, name, GRAPHS)

"""One update of the weights with the effective batch, in micro-batches; and the messages when it fails."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor, nn

from xcls.data.batching import count_terms
from xcls.model.multihead import MultiHeadAttention
from xcls.train.amp import Arriving
from xcls.train.faults import BadNumbers, OutOfMemory, first_bad_layer, free_memory, memory_errors
from xcls.train.optim import make_optimizer
from xcls.train.progress import Progress
from xcls.train.randomness import random_states, restore_random_states
from xcls.train.session import Session
from xcls.train.stream import Batch, Stream, on_device, rows_at_once

SHOWN = 8  # rows named in a message; all of them are in the event
SMALLEST_SCALE = 1.0  # below this loss scale, an overflow means a bad step and not a scale that is too large


@dataclass
class Update:
    """One launched update. The device may still compute it; the loop has not read its result yet."""

    number: int  # of its step, from 0
    batch: Batch
    lr: float
    redrew: bool  # it drew new random features
    terms: int
    numbers: Arriving  # sum of the losses, norm of the gradient, 1 if the update is bad, else 0
    random: dict[str, Any] | None  # the random states before it, if it may have to be undone
    scaling: list[Tensor]  # the loss scale and its counter before it


class Updater:
    """Gradients, clipping, the optimizer's step, with the learning rate that the loop gives.

    A bad update (its loss or gradient is not finite) never changes the weights. On a CPU this is checked at once. With
    `deferred`, the default on a GPU, the device checks it, so that the CPU does not wait at each step: a bad update and
    all later ones leave weights, moments and counters unchanged until `reopen`. The CPU asks `is_bad` later.
    """

    def __init__(
        self,
        session: Session,
        model: nn.Module,
        *,
        loss: Callable[[nn.Module, Batch], Tensor],
        stream: Stream,
        deferred: bool | None = None,
    ) -> None:
        """`deferred=None`: on a GPU if the optimizer reads `found_inf` (Adafactor waits for the device in any case)."""
        self.model, self.loss, self.stream, self.amp, self.logger = model, loss, stream, session.amp, session.logger
        self.hardware, self.clip_norm = session.hardware, session.training.clip_norm or math.inf
        self.optimizer = make_optimizer(model, session.training)
        able = getattr(self.optimizer, "_step_supports_amp_scaling", False)
        self.deferred = able and (self.amp.device.type == "cuda" if deferred is None else deferred)
        self._closed = torch.zeros((), device=self.amp.device)  # 1 after a bad update: later ones are blocked
        self.attentions = [module.attention for module in model.modules() if isinstance(module, MultiHeadAttention)]
        self.paths: set[str] = set()  # how attention was computed so far: `whole`, `blocks`, …

    def micro_batch(self, batch: Batch, progress: Progress) -> int | None:
        """Rows of `batch` that are computed at once; None for the whole effective batch."""
        hardware = self.hardware
        return rows_at_once(batch, hardware.micro_batch, progress.micro_batch, tokens=hardware.micro_tokens)

    def show_paths(self, device: dict[str, Any]) -> None:
        """Adds how attention was computed to the record's `device`: the report compares costs only at equal paths."""
        paths = self.paths.union(filter(None, str(device.get("attention_path") or "").split(",")))
        if paths:
            device["attention_path"] = ",".join(sorted(paths))

    def apply(self, batch: Batch, progress: Progress, lr: float, redrew: bool) -> Update:
        """Launches the update of `progress.step`. A bad one does not change the weights. Raises OutOfMemory."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        random = random_states(self.amp.device) if self.deferred else None
        scaling = [tensor.clone() for tensor in self._scaling()] if self.deferred else []
        with memory_errors(lambda: self._sizes(batch, progress)):
            loss_sum, terms = self._gradients_that_fit(batch, progress)
            numbers = self._step(loss_sum)
        return Update(progress.step, batch, lr, redrew, terms, numbers, random, scaling)

    def _step(self, loss_sum: Tensor) -> Arriving:
        """Clips the gradient and steps the optimizer unless the update is bad. Returns the numbers of an `Update`."""
        optimizer: Any = self.optimizer
        scaler = self.amp.scaler
        if scaler is not None:
            scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        overflow = ~torch.isfinite(norm)
        bad = overflow if scaler is None else overflow & (self._scaling()[0] < SMALLEST_SCALE)
        bad = bad | ~torch.isfinite(loss_sum)
        numbers = Arriving(torch.stack([value.to(loss_sum) for value in (loss_sum, norm, bad)]))
        if self.deferred:
            torch.maximum(self._closed, bad.to(self._closed), out=self._closed)
            optimizer.found_inf = torch.maximum(self._closed, overflow.to(self._closed))
            optimizer.step()
            del optimizer.found_inf
        elif not numbers.read()[2]:
            optimizer.step() if scaler is None else scaler.step(optimizer)  # skipped after an overflow
        if scaler is not None:
            scaler.update()  # lowers the scale after an overflow, and forgets this gradient
        return numbers

    def _scaling(self) -> list[Tensor]:
        """The loss scale and its step counter, on the device; empty before the first step and without loss scaling."""
        scaler = self.amp.scaler
        if scaler is None or scaler._scale is None or scaler._growth_tracker is None:
            return []
        return [scaler._scale, scaler._growth_tracker]

    def is_bad(self, update: Update) -> bool:
        """Whether the update was bad. Waits until the device has finished it."""
        return bool(update.numbers.read()[2])

    def finish(self, update: Update, progress: Progress) -> tuple[float, float]:
        """Counts a good update. Returns its mean loss per term, and the norm of the gradient."""
        loss, norm, _ = update.numbers.read()
        progress.loss_sum += loss
        progress.loss_terms += update.terms
        return loss / max(1, update.terms), norm

    def undo(self, update: Update) -> None:
        """Restores random states and loss scale from before `update`, which was blocked after a bad one."""
        assert update.random is not None
        restore_random_states(update.random, self.amp.device)
        for tensor, before in zip(self._scaling(), update.scaling):
            tensor.copy_(before)

    def reopen(self) -> None:
        """Lets updates change the weights again, after a bad update was handled or a checkpoint was loaded."""
        self._closed.zero_()

    def _gradients_that_fit(self, batch: Batch, progress: Progress) -> tuple[Tensor, int]:
        """`_gradients`; with on_oom=halve it halves the micro-batch until it fits into memory."""
        while True:
            states = random_states(self.amp.device) if self.hardware.on_oom == "halve" else None
            try:
                with memory_errors(lambda: self._sizes(batch, progress)):
                    return self._gradients(batch, self.micro_batch(batch, progress))
            except OutOfMemory as error:
                rows = min(self.micro_batch(batch, progress) or len(batch["labels"]), len(batch["labels"]))
                if states is None or rows == 1:
                    raise
                progress.micro_batch = (rows + 1) // 2
                self.logger.record.device["micro_batch"] = progress.micro_batch
                cause = f"{error} The run continues with micro-batch {progress.micro_batch}"
                self.logger.fault("halved", progress.step, cause, {"micro_batch": progress.micro_batch})
            self.optimizer.zero_grad(set_to_none=True)  # undo the attempt: its gradients and its random draws
            restore_random_states(states, self.amp.device)
            free_memory()  # only after `except`: the error keeps the tensors of the attempt alive

    def _gradients(self, batch: Batch, size: int | None) -> tuple[Tensor, int]:
        """Gradients of the effective batch, `size` rows at once. Returns the sum of its losses and the number of terms.

        Each term has weight 1 / (terms of the whole effective batch): the split into micro-batches changes nothing.
        """
        scaler = self.amp.scaler
        terms = count_terms(batch["labels"])
        total = torch.zeros((), device=self.amp.device)
        self.optimizer.zero_grad(set_to_none=True)
        for micro in on_device(batch, size, self.amp):
            with self.amp.autocast():
                loss_sum = self.loss(self.model, micro)
            self.paths.update(path for layer in self.attentions if (path := getattr(layer, "path", None)))
            mean = loss_sum / max(1, terms)
            (mean if scaler is None else scaler.scale(mean)).backward()
            total += loss_sum.detach()
        return total, terms

    def fault(self, update: Update, progress: Progress) -> BadNumbers:
        """The exception for the bad update of step `progress.step`, with the ids of its rows and the first bad layer,
        which is found by running the step again. Raises OutOfMemory."""
        batch = update.batch
        loss, norm, _ = update.numbers.read()
        size = self.micro_batch(batch, progress)

        def attempt() -> None:
            """Repeats the forward pass, and the backward pass if the loss was finite."""
            if math.isfinite(loss):
                self._gradients(batch, size)
                return
            with torch.no_grad(), self.amp.autocast():
                for micro in on_device(batch, size, self.amp):
                    self.loss(self.model, micro)

        with memory_errors(lambda: self._sizes(batch, progress)):
            layer = first_bad_layer(self.model, attempt)
        rows, step = self.stream.names(batch["index"].tolist()), progress.step
        named = ", ".join(rows[:SHOWN]) + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")
        numbers = f"loss {loss}, gradient norm {norm}; first in {layer}"
        details = {"step": step, "loss": str(loss), "norm": str(norm), "layer": layer, "rows": rows}
        return BadNumbers(f"not finite at step {step}: {numbers}; rows of the batch: {named}", details)

    def _sizes(self, batch: Batch, progress: Progress) -> str:
        """The sizes of a step that ran out of memory, and the remedy."""
        rows, longest = batch["input_ids"].shape
        micro = min(self.micro_batch(batch, progress) or rows, rows)
        ways = [f"hardware.micro_batch={(micro + 1) // 2} (same results)"] if micro > 1 else []
        ways += [] if self.hardware.gradient_checkpointing else ["hardware.gradient_checkpointing=true"]
        return (
            f"step {progress.step}, effective batch {rows}, micro-batch {micro}, longest sequence {longest} "
            f"tokens, {self.amp.precision.dtype} on {self.amp.precision.device}. "
            f"Set {', '.join([*ways, 'or a smaller seq_len' if ways else 'a smaller seq_len or size'])}."
        )

"""One update of the weights with the effective batch, in micro-batches; and what there is to say where it fails."""

from __future__ import annotations

import math
from typing import Callable

import torch
from torch import Tensor, nn

from xcls.data.masking import IGNORED
from xcls.schema import Hardware, Training
from xcls.train.amp import Amp
from xcls.train.faults import BadNumbers, OutOfMemory, bad_numbers, first_bad_layer, free_memory, memory_errors
from xcls.train.progress import Progress
from xcls.train.randomness import random_states, restore_random_states
from xcls.train.recovery import Recovery
from xcls.train.stream import Batch, Stream, on_device, rows_at_once

SMALLEST_SCALE = 1.0  # a loss scale below it: the gradient overflows whatever the scale


class Updater:
    """Gradients, clipping, the optimizer's step. The learning rate is set by the loop."""

    def __init__(
        self,
        *,
        model: nn.Module,
        loss: Callable[[nn.Module, Batch], Tensor],
        optimizer: torch.optim.Optimizer,
        stream: Stream,
        training: Training,
        hardware: Hardware,
        amp: Amp,
        recovery: Recovery,
    ) -> None:
        self.model, self.loss, self.optimizer, self.stream = model, loss, optimizer, stream
        self.training, self.hardware, self.amp, self.recovery = training, hardware, amp, recovery

    def micro_batch(self, batch: Batch, progress: Progress) -> int | None:
        """Rows of `batch` that go through at once; None for the whole effective batch."""
        hardware = self.hardware
        return rows_at_once(batch, hardware.micro_batch, progress.micro_batch, tokens=hardware.micro_tokens)

    def apply(self, batch: Batch, progress: Progress) -> tuple[float, float]:
        """One update. Returns the mean loss over the terms of the effective batch, and the gradient's norm.

        Raises BadNumbers, with the weights as they were, and OutOfMemory.
        """
        with memory_errors(lambda: self._sizes(batch, progress)):
            loss_sum, terms = self._gradients_that_fit(batch, progress)
            return self._step(batch, progress, loss_sum, terms)

    def _step(self, batch: Batch, progress: Progress, loss_sum: Tensor, terms: int) -> tuple[float, float]:
        """Clipping and the optimizer's step, with the gradients of a loss of `terms` terms."""
        scaler = self.amp.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        limit = self.training.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        loss, norm_value = torch.stack((loss_sum, norm.to(loss_sum))).tolist()  # the only wait for the device
        overflow = scaler is not None and math.isfinite(loss) and scaler.get_scale() >= SMALLEST_SCALE
        if not math.isfinite(loss) or not (math.isfinite(norm_value) or overflow):
            if scaler is not None:
                scaler.update()  # it forgets this gradient, should the run go on without it
            raise self._bad(batch, progress, loss, norm_value)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)  # skipped after an overflow, which lowers the scale
            scaler.update()
        progress.loss_sum += loss
        progress.loss_terms += terms
        return loss / max(1, terms), norm_value

    def _gradients_that_fit(self, batch: Batch, progress: Progress) -> tuple[Tensor, int]:
        """`_gradients`; with on_oom=halve in ever smaller micro-batches, until they fit into the memory."""
        while True:
            states = random_states() if self.recovery.halves else None
            try:
                with memory_errors(lambda: self._sizes(batch, progress)):
                    return self._gradients(batch, self.micro_batch(batch, progress))
            except OutOfMemory as error:
                rows = min(self.micro_batch(batch, progress) or len(batch["labels"]), len(batch["labels"]))
                if states is None or rows == 1:
                    raise
                self.recovery.halve(progress, rows, error)
            self.optimizer.zero_grad(set_to_none=True)  # the attempt is undone: it leaves no gradient and no draws
            restore_random_states(states)
            free_memory()  # only here, after `except`: the error has kept the attempt's tensors alive

    def _gradients(self, batch: Batch, size: int | None) -> tuple[Tensor, int]:
        """Gradients of the effective batch, `size` rows at once. Returns the sum of its losses, and the number of terms.

        Each term weighs 1 / (terms of the whole effective batch), so that the split into micro-batches has no meaning.
        """
        scaler = self.amp.scaler
        terms = int((batch["labels"] != IGNORED).sum())
        total = torch.zeros((), device=self.amp.device)
        self.optimizer.zero_grad(set_to_none=True)
        for micro in on_device(batch, size, self.amp):
            with self.amp.autocast():
                loss_sum = self.loss(self.model, micro)
            mean = loss_sum / max(1, terms)
            (mean if scaler is None else scaler.scale(mean)).backward()
            total += loss_sum.detach()
        return total, terms

    def _bad(self, batch: Batch, progress: Progress, loss: float, norm: float) -> BadNumbers:
        """The exception for this batch: its rows' ids, and the layer found by running it again."""
        size = self.micro_batch(batch, progress)

        def attempt() -> None:
            """The step's forward pass (and its backward pass, where the loss was finite) once more."""
            if math.isfinite(loss):
                self._gradients(batch, size)
                return
            with torch.no_grad(), self.amp.autocast():
                for micro in on_device(batch, size, self.amp):
                    self.loss(self.model, micro)

        layer = first_bad_layer(self.model, attempt)
        names = self.stream.names(batch["index"].tolist())
        return bad_numbers(step=progress.step, loss=loss, norm=norm, rows=names, layer=layer)

    def _sizes(self, batch: Batch, progress: Progress) -> str:
        """The sizes behind an exhausted memory, and the way out."""
        rows, longest = batch["input_ids"].shape
        micro = min(self.micro_batch(batch, progress) or rows, rows)
        ways = [f"hardware.micro_batch={(micro + 1) // 2} (same results)"] if micro > 1 else []
        ways += [] if self.hardware.gradient_checkpointing else ["hardware.gradient_checkpointing=true"]
        return (
            f"step {progress.step}, effective batch {rows}, micro-batch {micro}, longest sequence {longest} "
            f"tokens, {self.amp.precision.dtype} on {self.amp.precision.device}. "
            f"Set {', '.join([*ways, 'or a smaller seq_len' if ways else 'a smaller seq_len or size'])}."
        )

"""The training loop: one for both stages.

A step is one update with the effective batch. What the loop saves is all it needs: a resumed run continues as if it had
never stopped, to the bit on a CPU.
"""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from xcls.data.masking import IGNORED
from xcls.schema import Hardware, Training
from xcls.train.amp import Amp
from xcls.train.checkpoint import Checkpoints
from xcls.train.cost import MemoryGauge, StepClock
from xcls.train.faults import BadNumbers, bad_numbers, first_bad_layer, memory_errors
from xcls.train.journal import Journal
from xcls.train.optim import make_optimizer, rate
from xcls.train.randomness import derived_generator, random_states, restore_random_states
from xcls.train.signals import Interrupted, StopSignals
from xcls.train.stream import Batch, Stream, batches_from, on_device, real_and_padded

SMALLEST_SCALE = 1.0  # a loss scale below it: the gradient overflows whatever the scale
Scores = dict[str, "float | None"]


@dataclass
class Progress:
    """Where the run stands: plain numbers, saved with every checkpoint."""

    step: int = 0  # updates done
    loss_sum: float = 0.0  # since the last evaluation
    loss_terms: int = 0
    evaluated_at: int = 0
    best: float | None = None
    best_step: int | None = None
    since_best: int = 0  # evaluations
    validation: Scores | None = None  # the scores of the best step


class Loop:
    """Trains `model` by `training` and leaves checkpoints, metrics and costs behind.

    loss(model, micro-batch on the device) -> sum of the losses of its terms (labels other than -100).
    evaluate(poll) -> scores with `val_loss`; it calls poll() between batches, which raises Interrupted.
    extras: plain values that every checkpoint carries along (tokenizer, config, classes, …).
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        loss: Callable[[nn.Module, Batch], Tensor],
        stream: Stream,
        evaluate: Callable[[Callable[[], None]], Scores],
        training: Training,
        seed: int,
        amp: Amp,
        hardware: Hardware,
        journal: Journal,
        extras: dict[str, Any],
    ) -> None:
        self.model, self.loss, self.stream, self.evaluate = model, loss, stream, evaluate
        self.training, self.seed, self.amp, self.hardware = training, seed, amp, hardware
        self.journal, self.extras = journal, extras
        self.checkpoints = Checkpoints(folder=journal.folder, keep=training.keep)
        self.optimizer = make_optimizer(model, training)
        self.steps_per_epoch = stream.steps_per_epoch
        self.total = training.max_steps or max(1, round(training.epochs * self.steps_per_epoch))
        self.progress = Progress()
        self.clock = StepClock()
        self.memory = MemoryGauge(amp.device)
        self.saved_at = -1
        self.saved_time = time.monotonic()

    def run(self, payload: dict[str, Any] | None) -> Progress:
        """Trains to the end, from the beginning or from the checkpoint `payload`.

        Raises Interrupted (saved), BadNumbers, OutOfMemory; whatever it raises, the last checkpoint stays whole.
        """
        if payload is not None:
            self._restore(payload)
        record = self.journal.record
        record.steps, record.step = self.total, self.progress.step
        self.journal.save()
        with StopSignals() as stop, self._bar() as bar:
            if self.progress.step:
                self._after_step(stop)  # an evaluation that the interruption cut short
            workers = self.hardware.workers
            batches = batches_from(self.stream, step=self.progress.step, total=self.total, workers=workers)
            self.model.train()
            while not self.finished():
                self.clock.start()
                batch = next(batches)
                loss, norm = self._step(batch)
                tokens, padded = real_and_padded(batch, self.hardware.micro_batch)
                self.clock.stop(tokens=tokens, padded_tokens=padded)
                self._show(bar, loss, norm)
                self._after_step(stop)
        return self.progress

    def finished(self) -> bool:
        """All steps are done, or `patience` evaluations brought nothing better."""
        progress, patience = self.progress, self.training.patience
        return progress.step >= self.total or (patience is not None and progress.since_best >= patience)

    def _step(self, batch: Batch) -> tuple[float, float]:
        """One update. Returns the mean loss over the terms of the effective batch, and the gradient's norm."""
        step, training = self.progress.step, self.training
        if training.redraw_every_steps and step and step % training.redraw_every_steps == 0:
            self.model.encoder.redraw(derived_generator(self.seed, step))
        for group in self.optimizer.param_groups:
            group["lr"] = rate(step, self.total, training)
        with memory_errors(lambda: self._sizes(batch)):
            loss, norm = self._update(batch)
        self.progress.step += 1
        return loss, norm

    def _update(self, batch: Batch) -> tuple[float, float]:
        """Gradients of the effective batch in micro-batches, clipping, the optimizer's step.

        Each term weighs 1 / (terms of the whole effective batch), so that the split into micro-batches has no meaning.
        """
        scaler = self.amp.scaler
        terms = int((batch["labels"] != IGNORED).sum())
        total = torch.zeros((), device=self.amp.device)
        self.optimizer.zero_grad(set_to_none=True)
        for micro in on_device(batch, self.hardware.micro_batch, self.amp):
            with self.amp.autocast():
                loss_sum = self.loss(self.model, micro)
            mean = loss_sum / max(1, terms)
            (mean if scaler is None else scaler.scale(mean)).backward()
            total += loss_sum.detach()
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        limit = self.training.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        loss_value, norm_value = torch.stack((total, norm.to(total))).tolist()  # the step's only wait for the device
        overflow = scaler is not None and math.isfinite(loss_value) and scaler.get_scale() >= SMALLEST_SCALE
        if not math.isfinite(loss_value) or not (math.isfinite(norm_value) or overflow):
            raise self._bad(batch, loss_value, norm_value)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)  # skipped after an overflow, which lowers the scale
            scaler.update()
        self.progress.loss_sum += loss_value
        self.progress.loss_terms += terms
        return loss_value / max(1, terms), norm_value

    def _after_step(self, stop: StopSignals) -> None:
        """Evaluates and saves where it is time, and leaves where a signal has come. May be run twice for one step."""
        step, training = self.progress.step, self.training
        improved = False
        try:
            due = self._due(training.eval_every_steps, training.eval_every_epochs) or step == self.total
            if due and self.progress.evaluated_at != step:
                improved = self._evaluate(stop)
            minutes = training.checkpoint_every_minutes
            late = minutes is not None and time.monotonic() - self.saved_time >= 60 * minutes
            due = self._due(training.checkpoint_every_steps, training.checkpoint_every_epochs)
            if improved or late or due or self.finished():
                self._save(best=improved)
            stop.check()
        except Interrupted:
            self._save(best=improved)
            raise

    def _due(self, steps: int | None, epochs: float | None) -> bool:
        """Has the step just done completed `steps` steps or `epochs` epochs?"""
        step = self.progress.step
        if steps is not None and step % steps == 0:
            return True
        if epochs is None:
            return False
        interval = epochs * self.steps_per_epoch
        return math.floor(step / interval + 1e-9) > math.floor((step - 1) / interval + 1e-9)

    def _evaluate(self, stop: StopSignals) -> bool:
        """Evaluates on validation and writes it down. Is it the best so far?"""
        self.memory.pause()
        self.model.eval()
        scores = self.evaluate(stop.check)
        self.model.train()
        self.memory.resume()
        progress = self.progress
        if scores["val_loss"] is None or not math.isfinite(scores["val_loss"]):
            details = {"step": progress.step, "scores": scores}
            raise BadNumbers(f"not finite at step {progress.step}: the validation loss", details)
        value = scores[self.training.select_by]
        if value is not None and self.training.select_by == "val_loss":
            value = -value
        better = value is not None and (progress.best is None or value > progress.best)
        improved = better or progress.best_step is None
        if improved:
            progress.best, progress.best_step, progress.validation = value, progress.step, dict(scores)
        progress.since_best = 0 if improved else progress.since_best + 1
        progress.evaluated_at = progress.step
        self._write_row(scores)
        progress.loss_sum, progress.loss_terms = 0.0, 0
        return improved

    def _write_row(self, scores: Scores) -> None:
        """A row of metrics.csv, and the record."""
        progress, record = self.progress, self.journal.record
        costs = {**self.clock.costs(self.steps_per_epoch), **self.memory.peaks}
        record.costs.update(costs)
        record.step, record.best_step = progress.step, progress.best_step
        record.epoch = round(progress.step / self.steps_per_epoch, 4)
        record.metrics["validation"] = dict(progress.validation or {})
        train_loss = progress.loss_sum / progress.loss_terms if progress.loss_terms else None
        learning_rate = rate(max(0, progress.step - 1), self.total, self.training)
        position = {"step": progress.step, "epoch": record.epoch, "train_loss": train_loss, "lr": learning_rate}
        self.journal.add_row({**position, **scores, **costs})

    def _save(self, *, best: bool) -> None:
        """Writes the checkpoint of this step, unless it is there already."""
        step = self.progress.step
        if self.saved_at == step and not best:
            return
        self.memory.pause()
        path = self.checkpoints.save(step, self._payload(), best=best)
        self.journal.event("checkpoint", {"step": step, "file": path.name, "best": best})
        self.memory.resume()
        self.saved_at, self.saved_time = step, time.monotonic()

    def _payload(self) -> dict[str, Any]:
        """Everything a resumed run needs, as tensors and plain types."""
        step = self.progress.step
        epoch, within = divmod(step, self.steps_per_epoch)
        scaler = self.amp.scaler
        return {
            **self.extras,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {"step": step, "total": self.total},
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": random_states(),
            "data": {"epoch": epoch, "step_in_epoch": within, "seed": self.seed},
            "progress": asdict(self.progress),
            "clock": self.clock.state(),
            "peaks": dict(self.memory.peaks),
            "rows": [dict(row) for row in self.journal.rows],
            "wandb_id": self.journal.record.wandb_id,
        }

    def _restore(self, payload: dict[str, Any]) -> None:
        """Puts everything back as `_payload` found it."""
        self.model.load_state_dict(payload["model"])
        self.optimizer.load_state_dict(payload["optimizer"])
        if self.amp.scaler is not None and payload["scaler"] is not None:
            self.amp.scaler.load_state_dict(payload["scaler"])
        self.progress = Progress(**payload["progress"])
        self.clock = StepClock(**payload["clock"])
        self.memory.peaks.update(payload["peaks"])
        restore_random_states(payload["random"])
        self.saved_at = self.progress.step
        self.journal.event("resume", {"step": self.progress.step, "rows": len(payload["rows"])})
        if self.progress.best_step == self.progress.step:  # a kill may have come before it was named the best
            self._save(best=True)

    def _bad(self, batch: Batch, loss: float, norm: float) -> BadNumbers:
        """The exception for this batch: its rows' ids, and the layer found by running it again."""

        def forward() -> None:
            for micro in on_device(batch, self.hardware.micro_batch, self.amp):
                with self.amp.autocast():
                    self.loss(self.model, micro)

        layer = first_bad_layer(self.model, forward)
        names = self.stream.names(batch["index"].tolist())
        return bad_numbers(step=self.progress.step, loss=loss, norm=norm, rows=names, layer=layer)

    def _sizes(self, batch: Batch) -> str:
        """The sizes behind an exhausted memory, and the way out."""
        rows, longest = batch["input_ids"].shape
        micro = min(self.hardware.micro_batch or rows, rows)
        smaller = f"hardware.micro_batch={max(1, micro // 2)} (same results), " if micro > 1 else ""
        return (
            f"step {self.progress.step}, effective batch {rows}, micro-batch {micro}, longest sequence {longest} "
            f"tokens, {self.amp.precision.dtype} on {self.amp.precision.device}. "
            f"Set {smaller}hardware.gradient_checkpointing=true, or a smaller seq_len."
        )

    def _show(self, bar: tqdm, loss: float, norm: float) -> None:
        """The progress bar, and now and then a line of the events."""
        costs = self.clock.costs(self.steps_per_epoch)
        speed = "" if costs["tokens_per_s"] is None else f", {costs['tokens_per_s']:,.0f} tokens/s"
        bar.set_postfix_str(f"loss {loss:.3f}{speed}", refresh=False)
        bar.update()
        step = self.progress.step
        if step % max(1, self.total // 100) == 0:
            values = {"step": step, "step_loss": loss, "grad_norm": norm, "lr": self.optimizer.param_groups[0]["lr"]}
            self.journal.event("step", values)
            self.journal.tracker.log(values)

    def _bar(self) -> tqdm:
        """A bar on stderr, seldom drawn where nobody watches; none with XCLS_PROGRESS=0."""
        return tqdm(
            total=self.total,
            initial=self.progress.step,
            desc=self.journal.record.mode,
            unit="step",
            disable=os.environ.get("XCLS_PROGRESS") == "0",
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            leave=False,
        )

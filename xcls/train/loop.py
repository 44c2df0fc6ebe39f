"""The training loop: one for both stages.

A step is one update with the effective batch. What the loop saves is all it needs: a resumed run continues as if it had
never stopped, to the bit on a CPU.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import asdict
from typing import Any, Callable, Generator, Iterator, Sequence, cast

from torch import Tensor, nn

from xcls.config.rates import steps_between, total_steps
from xcls.data.batching import Batches
from xcls.model.encoder import Encoder
from xcls.train.checkpoint import Checkpoints, fit
from xcls.train.cost import MemoryGauge, StepClock
from xcls.train.faults import BadNumbers
from xcls.train.metrics import Scores
from xcls.train.optim import rate
from xcls.train.progress import Progress, StepDisplay
from xcls.train.randomness import derived_generator, random_states, restore_random_states
from xcls.train.session import Session
from xcls.train.signals import Interrupted, StopSignals
from xcls.train.stream import Batch, Stream, batches_from, real_and_padded, trimming
from xcls.train.update import Update, Updater


class Loop:
    """Trains `model` by `training` and leaves checkpoints, metrics and costs behind.

    loss(model, micro-batch on the device) -> sum of the losses of its terms (labels other than -100).
    maker: what makes batches of the training texts; ids: stable names of these, for messages.
    evaluate(poll) -> scores with `val_loss`; it calls poll() between batches, which raises Interrupted.
    classes: their names, for checkpoints; None in pretraining.

    Where the updates are deferred the host reads how a step went when the next is on its way, and all of them before it
    evaluates, saves or ends. Results are the same.
    """

    def __init__(
        self,
        session: Session,
        model: nn.Module,
        *,
        loss: Callable[[nn.Module, Batch], Tensor],
        maker: Batches,
        evaluate: Callable[[Callable[[], None]], Scores],
        ids: Sequence[str] | None = None,
        classes: list[str] | None = None,
    ) -> None:
        self.model, self.evaluate = model, evaluate
        self.training, self.amp, self.hardware = session.training, session.amp, session.hardware
        self.logger, self.extras = session.logger, session.metadata(classes)
        self.checkpoints = Checkpoints(folder=self.logger.folder, keep=self.training.keep)
        size, grouped = self.training.batch_size, self.training.group_by_length
        self.stream = Stream(maker=maker, batch_size=size, seed=session.seed, group_by_length=grouped, ids=ids)
        self.updater = Updater(session, model, loss=loss, stream=self.stream)
        self.optimizer = self.updater.optimizer
        self.lag = 1 if self.updater.deferred else 0  # steps that may be unread while the next is begun
        self.unread: list[Update] = []
        self.steps_per_epoch = self.stream.steps_per_epoch
        self.total = total_steps(self.training, self.steps_per_epoch)
        self.due_epoch = steps_between(self.training, self.steps_per_epoch)
        self.progress = Progress()
        self.clock = StepClock()
        self.memory = MemoryGauge(self.amp.device)
        self.saved: tuple[int, int] | None = None  # what of the progress the last checkpoint knew
        self.saved_time = time.monotonic()
        self.known_faults = 0  # of the record, when the clock was last read

    def run(self, payload: dict[str, Any] | None) -> Progress:
        """Trains to the end, from the beginning or from the checkpoint `payload`.

        Raises Interrupted (saved), BadNumbers, OutOfMemory; whatever it raises, the last checkpoint stays whole.
        """
        record = self.logger.record
        record.steps = self.total
        if payload is None:
            self.logger.save()  # whoever watches wants the total before the first evaluation, which may be hours away
        else:
            self._restore(payload)  # and saves
        display = StepDisplay(self.logger, total=self.total, initial=self.progress.step)
        with StopSignals() as stop, closing(display):
            self.model.train()
            with closing(self._batches()) as batches:  # ends its workers, whatever ends the training
                if self.progress.step > 0:  # the last step was done, but perhaps not evaluated
                    self._after_step(stop, display)
                while not self.finished():
                    if self._redraws():
                        self._read_steps(display, leave=0)  # a bad step is looked into with the features that it had
                    self._begin_step(batches)
                    self._read_steps(display, leave=self.lag)
                    self._after_step(stop, display)
            stop.check()
        return self.progress

    def finished(self) -> bool:
        """All steps are done, or `patience` evaluations brought nothing better."""
        progress, patience = self.progress, self.training.patience
        return progress.step >= self.total or (patience is not None and progress.since_best >= patience)

    def _batches(self) -> Generator[Batch, None, None]:
        """The batches from this step on."""
        workers, device = self.hardware.workers, self.amp.device.type
        return batches_from(self.stream, step=self.progress.step, total=self.total, workers=workers, device=device)

    def _begin_step(self, batches: Iterator[Batch]) -> None:
        """Begins the next step, with its batch on the clock."""
        if not self.unread:
            self.clock.start()
            self.known_faults = len(self.logger.record.faults)
        self._begin(next(batches))

    def _begin(self, batch: Batch) -> None:
        """Begins one update with `batch`."""
        step, redraws = self.progress.step, self._redraws()
        if redraws:
            cast(Encoder, self.model.encoder).redraw(derived_generator(self.stream.seed, step))
        lr = rate(step, self.total, self.training)
        self.unread.append(self.updater.apply(batch, self.progress, lr, redraws))
        self.progress.step += 1
        self.logger.record.step = self.progress.step

    def _read_steps(self, display: StepDisplay, *, leave: int) -> None:
        """Reads how the steps under way went, all but the last `leave`: they count, with their time, on bar and events.

        Where bad numbers are allowed a bad step counts too and leaves the weights as they are; those begun after it
        have changed nothing, and begin again. Raises BadNumbers where they are not allowed.
        """
        while len(self.unread) > leave:
            step = self.unread.pop(0)
            loss = norm = math.nan
            if self.updater.is_bad(step):
                self._leave_out(step)
            else:
                loss, norm = self.updater.finish(step, self.progress)
                self._stop_clock(step)
            display.show(step.number + 1, loss=loss, norm=norm, lr=step.lr, speed=self.clock.speed)

    def _leave_out(self, bad: Update) -> None:
        """Notes a bad step, or raises its BadNumbers, and begins those after it again."""
        after, self.unread = self.unread, []
        for step in reversed(after):
            self.updater.undo(step)
        self.updater.go_on()
        self.progress.step = self.logger.record.step = bad.number
        error = self.updater.fault(bad, self.progress)
        if sum(fault["kind"] == "bad_step" for fault in self.logger.record.faults) >= self.training.max_bad_steps:
            raise error
        self.logger.fault("bad_step", bad.number, f"{error}; the step is left out", error.details)
        self.progress.step = self.logger.record.step = bad.number + 1
        for step in after:
            self._begin(step.batch)

    def _stop_clock(self, step: Update) -> None:
        """Gives a step its time: since the one before was read, or since it began where there was none."""
        faults = len(self.logger.record.faults)
        if faults == self.known_faults:  # else its time says nothing about the others
            batch = step.batch
            size = self.updater.micro_batch(batch, self.progress)
            tokens, padded = real_and_padded(batch, size, trimming(batch, self.hardware))
            self.clock.stop(tokens=tokens, padded_tokens=padded, redrew=step.redrew)
        self.clock.start()
        self.known_faults = faults

    def _redraws(self) -> bool:
        """Whether the step to come begins with new random features."""
        step, every = self.progress.step, self.training.redraw_every_steps
        return bool(every and step and step % every == 0)

    def _after_step(self, stop: StopSignals, display: StepDisplay) -> None:
        """Evaluates and saves where it is time, and leaves where a signal has come. May be run twice for one step."""
        step, training = self.progress.step, self.training
        evaluates = self._due(training.eval_every_steps, training.eval_every_epochs) or step == self.total
        scheduled = self._due(training.checkpoint_every_steps, training.checkpoint_every_epochs)
        if self.unread and not (evaluates or scheduled or self._late() or stop.requested):
            return
        self._read_steps(display, leave=0)
        improved = False
        try:
            if evaluates:
                improved = self.progress.evaluated_at != step and self._evaluate(stop)
            if scheduled or improved or self.finished() or self._late():
                self._save(best=improved)
                improved = False  # and saved as such
            stop.check()
        except Interrupted:
            self._save(best=improved)
            raise

    def _late(self) -> bool:
        """Is the last checkpoint older than the clock allows?"""
        minutes = self.training.checkpoint_every_minutes
        return minutes is not None and time.monotonic() - self.saved_time >= 60 * minutes

    def _due(self, steps: int | None, epochs: float | None) -> bool:
        """Has the step just done completed so many steps or epochs?"""
        step = self.progress.step
        if steps is not None and step % steps == 0:
            return True
        if epochs is None:
            return False
        interval = epochs * self.due_epoch
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
        progress = self.progress
        costs = self._note()
        train_loss = progress.loss_sum / progress.loss_terms if progress.loss_terms else None
        position = {"step": progress.step, "epoch": self.logger.record.epoch, "train_loss": train_loss}
        lr = rate(max(0, progress.step - 1), self.total, self.training)
        self.logger.add_row({**position, "lr": lr, **scores, **costs})

    def _note(self) -> dict[str, float | None]:
        """Puts into the record where the run stands, and gives the costs so far."""
        progress, record = self.progress, self.logger.record
        costs = {**self.clock.costs(self.steps_per_epoch), **self.memory.peaks}
        record.costs.update(costs)
        record.step, record.best_step = progress.step, progress.best_step
        record.epoch = round(progress.step / self.steps_per_epoch, 4)
        record.metrics["validation"] = dict(progress.validation or {})
        if progress.micro_batch is not None:  # costs are compared by it
            record.device["micro_batch"] = progress.micro_batch
        self.updater.show_paths(record.device)
        return costs

    def _save(self, *, best: bool) -> None:
        """Writes the checkpoint of this step, unless it is there already as it would be now."""
        progress = self.progress
        state = (progress.step, progress.evaluated_at)
        if self.saved == state and not best:
            return
        self.memory.pause()
        path = self.checkpoints.save(progress.step, self._payload(), best=best)
        self.logger.event("checkpoint", {"step": progress.step, "file": path.name, "best": best})
        self.memory.resume()
        self.saved, self.saved_time = state, time.monotonic()

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
            "random": random_states(self.amp.device),
            "data": {"epoch": epoch, "step_in_epoch": within, "seed": self.stream.seed},
            "progress": asdict(self.progress),
            "faults": [dict(fault) for fault in self.logger.record.faults],
            "clock": self.clock.state(),
            "peaks": dict(self.memory.peaks),
            "rows": [dict(row) for row in self.logger.rows],
            "wandb_id": self.logger.record.wandb_id,
        }

    def _restore(self, payload: dict[str, Any]) -> None:
        """Puts everything back as `_payload` found it. Raises UserError for a checkpoint that does not fit."""
        what = f"The checkpoint of step {payload['progress']['step']}"
        fit(lambda: self.model.load_state_dict(payload["model"]), what)
        fit(lambda: self.optimizer.load_state_dict(payload["optimizer"]), what)
        if self.amp.scaler is not None and payload["scaler"] is not None:
            self.amp.scaler.load_state_dict(payload["scaler"])
        self.progress = progress = Progress(**payload["progress"])
        self.logger.record.faults = [dict(fault) for fault in payload["faults"]]
        self.clock = StepClock.restored(payload["clock"])
        self.memory.peaks.update(payload["peaks"])
        restore_random_states(payload["random"], self.amp.device)
        self.updater.go_on()
        self.saved = (progress.step, progress.evaluated_at)
        self.checkpoints.name(progress.step, best=progress.best_step == progress.step)
        self._note()
        self.logger.save()

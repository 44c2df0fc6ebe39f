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
    collator: makes the batches of the training texts; ids: stable names of these texts, for messages.
    evaluate(poll) -> scores with `val_loss`; it calls poll() between batches, which raises Interrupted.
    classes: names of the classes, for checkpoints; None in pretraining.

    On a GPU the loop reads the result of step t after it has launched step t+1, so that the CPU does not wait:
        launch step t+1 -> read the result of step t -> was t good? go on
                                                     -> was t bad? undo t+1, report t, launch t+1 again
    Before it evaluates, saves or ends, it reads all pending results. On a CPU nothing is pending. Results are the same.
    """

    def __init__(
        self,
        session: Session,
        model: nn.Module,
        *,
        loss: Callable[[nn.Module, Batch], Tensor],
        collator: Batches,
        evaluate: Callable[[Callable[[], None]], Scores],
        ids: Sequence[str] | None = None,
        classes: list[str] | None = None,
    ) -> None:
        self.model, self.evaluate = model, evaluate
        self.training, self.amp, self.hardware = session.training, session.amp, session.hardware
        self.logger, self.extras = session.logger, session.metadata(classes)
        self.checkpoints = Checkpoints(folder=self.logger.folder, keep=self.training.keep)
        size, grouped = self.training.batch_size, self.training.group_by_length
        self.stream = Stream(collator=collator, batch_size=size, seed=session.seed, group_by_length=grouped, ids=ids)
        self.updater = Updater(session, model, loss=loss, stream=self.stream)
        self.optimizer = self.updater.optimizer
        self.max_pending = 1 if self.updater.deferred else 0  # launched steps whose results may be read later
        self.pending: list[Update] = []
        self.steps_per_epoch = self.stream.steps_per_epoch
        self.total = total_steps(self.training, self.steps_per_epoch)
        self.due_epoch = steps_between(self.training, self.steps_per_epoch)
        self.progress = Progress()
        self.clock = StepClock()
        self.memory = MemoryGauge(self.amp.device)
        self.saved: tuple[int, int] | None = None  # (step, evaluated_at) of the last checkpoint
        self.saved_time = time.monotonic()
        self.known_faults = 0  # number of faults in the record when the clock was last started

    def run(self, checkpoint: dict[str, Any] | None) -> Progress:
        """Trains to the end, from the beginning or from the checkpoint `checkpoint`.

        Raises Interrupted (saved), BadNumbers, OutOfMemory; whatever it raises, the last checkpoint stays whole.
        """
        record = self.logger.record
        record.steps = self.total
        if checkpoint is None:
            self.logger.save()  # `make status` shows the total before the first evaluation, which may be hours away
        else:
            self._restore(checkpoint)  # also saves the record
        display = StepDisplay(self.logger, total=self.total, initial=self.progress.step)
        with StopSignals() as stop, closing(display):
            self.model.train()
            with closing(self._batches()) as batches:  # ends its workers, whatever ends the training
                if self.progress.step > 0:  # the run may have stopped between the last step and its evaluation
                    self._after_step(stop, display)
                while not self.finished():
                    if self._redraws():  # a bad step must be diagnosed with the random features that it used
                        self._read_steps(display, leave=0)
                    self._begin_step(batches)
                    self._read_steps(display, leave=self.max_pending)
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
        """Begins the next step; the clock includes the time to get its batch."""
        if not self.pending:
            self.clock.start()
            self.known_faults = len(self.logger.record.faults)
        self._begin(next(batches))

    def _begin(self, batch: Batch) -> None:
        """Begins one update with `batch`."""
        step, redraws = self.progress.step, self._redraws()
        if redraws:
            cast(Encoder, self.model.encoder).redraw(derived_generator(self.stream.seed, step))
        lr = rate(step, self.total, self.training)
        self.pending.append(self.updater.apply(batch, self.progress, lr, redraws))
        self.progress.step += 1
        self.logger.record.step = self.progress.step

    def _read_steps(self, display: StepDisplay, *, leave: int) -> None:
        """Reads the results of the pending steps except the newest `leave`, and adds them to timing, bar and events.

        A non-finite step is counted, but does not change the weights; steps launched after it are launched again.
        Raises BadNumbers after more such steps than `max_bad_steps`.
        """
        while len(self.pending) > leave:
            step = self.pending.pop(0)
            loss = norm = math.nan
            if self.updater.is_bad(step):
                self._skip_bad_step(step)
            else:
                loss, norm = self.updater.finish(step, self.progress)
                self._stop_clock(step)
            display.show(step.number + 1, loss=loss, norm=norm, lr=step.lr, speed=self.clock.speed)

    def _skip_bad_step(self, bad: Update) -> None:
        """Records a bad step, or raises its BadNumbers, and launches the steps after it again."""
        after, self.pending = self.pending, []
        for step in reversed(after):
            self.updater.undo(step)
        self.updater.reopen()
        self.progress.step = self.logger.record.step = bad.number
        error = self.updater.fault(bad, self.progress)
        if sum(fault["kind"] == "bad_step" for fault in self.logger.record.faults) >= self.training.max_bad_steps:
            raise error
        self.logger.fault("bad_step", bad.number, f"{error}; the step is left out", error.details)
        self.progress.step = self.logger.record.step = bad.number + 1
        for step in after:
            self._begin(step.batch)

    def _stop_clock(self, step: Update) -> None:
        """Ends the time of a step: measured from the previous read, or from its own start if there was none."""
        faults = len(self.logger.record.faults)
        if faults == self.known_faults:  # else the fault has changed its time
            batch = step.batch
            size = self.updater.micro_batch(batch, self.progress)
            tokens, padded = real_and_padded(batch, size, trimming(batch, self.hardware))
            self.clock.stop(tokens=tokens, padded_tokens=padded, redrew=step.redrew)
        self.clock.start()
        self.known_faults = faults

    def _redraws(self) -> bool:
        """Whether the next step begins with new random features."""
        step, every = self.progress.step, self.training.redraw_every_steps
        return bool(every and step and step % every == 0)

    def _after_step(self, stop: StopSignals, display: StepDisplay) -> None:
        """Evaluates and saves if due, and raises Interrupted after a signal.

        May run twice for one step: `run` calls it again after a resume. `evaluated_at` and `saved` prevent repetition.
        """
        step, training = self.progress.step, self.training
        evaluates = self._due(training.eval_every_steps, training.eval_every_epochs) or step == self.total
        scheduled = self._due(training.checkpoint_every_steps, training.checkpoint_every_epochs)
        if self.pending and not (evaluates or scheduled or self._checkpoint_overdue() or stop.requested):
            return
        self._read_steps(display, leave=0)
        improved = False
        try:
            if evaluates:
                improved = self.progress.evaluated_at != step and self._evaluate(stop)
            if scheduled or improved or self.finished() or self._checkpoint_overdue():
                self._save(best=improved)
                improved = False  # the best checkpoint is saved now
            stop.check()
        except Interrupted:
            self._save(best=improved)
            raise

    def _checkpoint_overdue(self) -> bool:
        """Has `checkpoint_every_minutes` passed since the last checkpoint?"""
        minutes = self.training.checkpoint_every_minutes
        return minutes is not None and time.monotonic() - self.saved_time >= 60 * minutes

    def _due(self, steps: int | None, epochs: float | None) -> bool:
        """Is the current step a multiple of `steps`, or the first at or after a multiple of `epochs`?"""
        step = self.progress.step
        if steps is not None and step % steps == 0:
            return True
        if epochs is None:
            return False
        interval = epochs * self.due_epoch
        return math.floor(step / interval + 1e-9) > math.floor((step - 1) / interval + 1e-9)

    def _evaluate(self, stop: StopSignals) -> bool:
        """Evaluates on validation and writes the scores. Returns whether they are the best so far."""
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
        """Writes a row of metrics.csv, and the record."""
        progress = self.progress
        costs = self._update_record()
        train_loss = progress.loss_sum / progress.loss_terms if progress.loss_terms else None
        position = {"step": progress.step, "epoch": self.logger.record.epoch, "train_loss": train_loss}
        lr = rate(max(0, progress.step - 1), self.total, self.training)
        self.logger.add_row({**position, "lr": lr, **scores, **costs})

    def _update_record(self) -> dict[str, float | None]:
        """Updates the record with progress, scores and costs. Returns the costs so far."""
        progress, record = self.progress, self.logger.record
        costs = {**self.clock.costs(self.steps_per_epoch), **self.memory.peaks}
        record.costs.update(costs)
        record.step, record.best_step = progress.step, progress.best_step
        record.epoch = round(progress.step / self.steps_per_epoch, 4)
        record.metrics["validation"] = dict(progress.validation or {})
        if progress.micro_batch is not None:  # the report compares costs only at equal micro-batches
            record.device["micro_batch"] = progress.micro_batch
        self.updater.show_paths(record.device)
        return costs

    def _save(self, *, best: bool) -> None:
        """Writes the checkpoint of this step, unless the same content is saved already."""
        progress = self.progress
        state = (progress.step, progress.evaluated_at)
        if self.saved == state and not best:
            return
        self.memory.pause()
        path = self.checkpoints.save(progress.step, self._checkpoint(), best=best)
        self.logger.event("checkpoint", {"step": progress.step, "file": path.name, "best": best})
        self.memory.resume()
        self.saved, self.saved_time = state, time.monotonic()

    def _checkpoint(self) -> dict[str, Any]:
        """Everything a resumed run needs, as tensors and plain types.

        `scheduler` and `data` are for other readers: xcls computes both from the step.
        """
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

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        """Restores the state that `_checkpoint` saved. Raises UserError if the checkpoint does not fit this model."""
        what = f"The checkpoint of step {checkpoint['progress']['step']}"
        fit(lambda: self.model.load_state_dict(checkpoint["model"]), what)
        fit(lambda: self.optimizer.load_state_dict(checkpoint["optimizer"]), what)
        if self.amp.scaler is not None and checkpoint["scaler"] is not None:
            self.amp.scaler.load_state_dict(checkpoint["scaler"])
        self.progress = progress = Progress(**checkpoint["progress"])
        self.logger.record.faults = [dict(fault) for fault in checkpoint["faults"]]
        self.clock = StepClock.restored(checkpoint["clock"])
        self.memory.peaks.update(checkpoint["peaks"])
        restore_random_states(checkpoint["random"], self.amp.device)
        self.updater.reopen()
        self.saved = (progress.step, progress.evaluated_at)
        self.checkpoints.name(progress.step, best=progress.best_step == progress.step)
        self._update_record()
        self.logger.save()

"""Writes the folder of a run during the run: record, metrics, events, logs, tracking, final status."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import secrets
import socket
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from xcls.config.schema import UserError, Wandb
from xcls.runs.disk import remedy
from xcls.runs.record import PATCH, Events, Record, plain, sha256, without_secrets, write_atomic, write_record
from xcls.train.signals import Interrupted, StopSignals
from xcls.train.tracking import Tracker
from xcls.train.usage import ResourceUsage

SCORES = ("accuracy", "macro_f1", "weighted_f1", "auroc")
COSTS = ("time_per_step", "time_per_epoch", "tokens_per_s", "padded_tokens_per_s", "max_gpu_mem_MiB", "max_rss_MiB")
COLUMNS = ("step", "epoch", "train_loss", "val_loss", *SCORES, "lr", *COSTS)  # of metrics.csv
CHECKED = ("metrics.csv", "predictions.parquet", PATCH)
ROOM, ROOM_BYTES = ".room", 2**18  # deleted at the end, so that the record fits even on a full disk
PLACE = {"devices": "CUDA_VISIBLE_DEVICES", "slurm_job": "SLURM_JOB_ID", "slurm_restarts": "SLURM_RESTART_COUNT"}
Row = dict[str, Any]


class RunLogger:
    """Records one run. As a context manager it also sets the final status: completed, failed or interrupted.
    Entering it raises UserError if its folder cannot be written, for example on a full disk.

    `record` comes with what is known before the start (run, mode, hash, choices, config, command, …); the logger fills
    in the rest. Every change of it is on disk before the method returns.
    """

    def __init__(self, *, folder: Path, record: Record, wandb: Wandb) -> None:
        self.folder = Path(folder)
        self.record = record
        self.rows: list[Row] = []
        self.events = Events(self.folder)
        self.tracker = Tracker(settings=wandb, folder=self.folder, warn=self.warn)
        self.usage = ResourceUsage(record.costs)
        self.signals = StopSignals(at_once=True)  # the training loop installs its own, which finish the step first

    def __enter__(self) -> RunLogger:
        self.signals.at_once = False  # a signal that comes now takes effect when the folder is complete
        self.signals.__enter__()
        try:
            self._open()
        except BaseException as error:
            (self.folder / ROOM).unlink(missing_ok=True)
            self.signals.__exit__(type(error), error, error.__traceback__)
            if isinstance(error, OSError):
                place = error.filename or self.folder
                raise UserError(
                    f"{place}: {error.strerror or error}, at the start of the run. {remedy(error, place=self.folder)}; "
                    "then type the same command again."
                ) from error
            raise
        try:
            self.signals.at_once = True
            self.signals.check()
        except Interrupted as stop:
            self.__exit__(type(stop), stop, stop.__traceback__)
            raise
        return self

    def _open(self) -> None:
        """Writes what must be in the folder before the run starts. Raises OSError if that fails."""
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".*.tmp"):  # from a process that was killed while it wrote
            leftover.unlink(missing_ok=True)
        (self.folder / ROOM).write_bytes(os.urandom(ROOM_BYTES))  # a file system may store zeros without using space
        self.record.status, self.record.cause, self.record.ended = "running", None, None
        self.record.started = self.record.started or time.time()
        self.save()
        place = {name: os.environ[variable] for name, variable in PLACE.items() if variable in os.environ}
        process = {"host": socket.gethostname(), "pid": os.getpid(), **place}
        self.event("start", {"run": self.record.run, "hash": self.record.hash, **process})

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.signals.at_once = False  # the run ends already, which is what a signal asks for
        (self.folder / ROOM).unlink(missing_ok=True)
        status = "completed"
        if error is not None:
            stopped = isinstance(error, (Interrupted, KeyboardInterrupt, SystemExit, GeneratorExit))
            status = "interrupted" if stopped else "failed"
            self.record.cause = one_line(error)
            details = {"cause": self.record.cause, **getattr(error, "details", {})}
            self._quietly(lambda: self.event("failure" if status == "failed" else "interrupted", details))
            self._quietly(lambda: self._write_trace(error))
        self.record.status, self.record.ended = status, time.time()
        self._quietly(self.save)
        before = len(self.record.warnings)
        self._quietly(lambda: self.event("end", {"status": status, "step": self.record.step}))
        self._quietly(self.tracker.finish)
        if len(self.record.warnings) > before:
            self._quietly(self.save)
        self.signals.__exit__(kind, error, trace)

    def save(self) -> None:
        """Writes record.json, with the costs so far and the checksums of the files it names."""
        self.record.costs.update(self.usage.costs())
        present = [name for name in CHECKED if (self.folder / name).is_file()]
        self.record.files = {name: sha256(self.folder / name) for name in present}
        write_record(self.record, self.folder)

    def event(self, name: str, details: dict[str, Any] | None = None) -> None:
        """Appends one event to events.jsonl and a line to the log; its numbers go to W&B."""
        self.events.add(name, details)
        details = details or {}
        self._log("INFO", f"{name} " + " ".join(f"{key}={_short(value)}" for key, value in details.items()))
        self.tracker.log(name, details)

    def warn(self, message: str) -> None:
        """Writes a warning to stderr, log, events and record; the same text only once."""
        if message not in self.record.warnings:
            self.record.warnings.append(message)
            self.events.add("warning", {"message": message})
            self._log("WARNING", message)
            print(f"WARNING: {without_secrets(message)}", file=sys.stderr)

    def fault(self, kind: str, step: int, cause: str, details: dict[str, Any]) -> None:
        """Records a fault that the run survives (bad_step, halved): in the record, the events and as a warning."""
        fault = {"kind": kind, "step": step, "cause": cause}
        self.record.faults.append(fault)
        self.event("fault", {**details, **fault})
        self.warn(f"{cause}.")
        self.save()

    def begin(self, checkpoint: dict[str, Any] | None = None, *, resume: bool = False) -> None:
        """Starts tracking and metrics.csv, with the rows and the W&B id of `checkpoint`; without one, at step 0."""
        rows = checkpoint["rows"] if checkpoint else []
        self._set_rows(rows)
        record = self.record
        record.wandb_id = (checkpoint["wandb_id"] if checkpoint else None) or record.wandb_id
        if record.wandb_id is None and self.tracker.settings.mode != "disabled":
            record.wandb_id = secrets.token_hex(4)
        self.save()
        if resume:
            self.event("resume", {"step": checkpoint["progress"]["step"] if checkpoint else 0, "rows": len(rows)})
        self.tracker.start(self.record)

    def _set_rows(self, rows: list[Row]) -> None:
        """Keeps only these rows in metrics.csv. Other evaluations get a `withdrawn` event in events.jsonl."""
        known = {row["step"] for row in rows}
        for step in self.events.evaluated_steps():
            if step not in known:
                self.event("withdrawn", {"step": step})
        self.rows = [dict(row) for row in rows]
        self._write_rows()

    def add_row(self, row: Row) -> None:
        """Writes one evaluation: first its event, then its row of metrics.csv and the record."""
        self.rows.append(plain({name: row.get(name) for name in COLUMNS}))
        self.event("eval", self.rows[-1])
        self._write_rows()
        self.save()

    def _write_rows(self) -> None:
        """Writes all of metrics.csv: floats with all their digits, an empty cell for None."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.rows:
            writer.writerow(["" if row[name] is None else row[name] for name in COLUMNS])
        write_atomic(self.folder / "metrics.csv", text.getvalue())

    def _log(self, level: str, text: str) -> None:
        """Writes a line of logs/run.log. Ignores a full disk: writing the record or the events reports that."""
        with contextlib.suppress(OSError), open(self.folder / "logs" / "run.log", "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {level} {without_secrets(text)}\n")

    def _write_trace(self, error: BaseException) -> None:
        """Writes the whole traceback."""
        lines = traceback.format_exception(type(error), error, error.__traceback__)
        with open(self.folder / "logs" / "traceback.txt", "a", encoding="utf-8") as file:
            file.write(without_secrets("".join(lines)) + "\n")

    def _quietly(self, action: Any) -> None:
        """Runs `action`; a full disk must not hide the error that ended the run."""
        try:
            action()
        except OSError as error:
            print(f"WARNING: {self.folder}: {error}", file=sys.stderr)


def one_line(error: BaseException) -> str:
    """`Type: message` on one line, without secrets; for Interrupted the message alone."""
    message = without_secrets(" ".join(str(error).split()))
    name = type(error).__name__
    if isinstance(error, Interrupted) and message:
        return message
    return f"{name}: {message}" if message else name


def _short(value: Any) -> str:
    """A value as the log shows it."""
    if isinstance(value, float):
        return f"{value:.5g}"
    text = str(value)
    return text if len(text) <= 200 else text[:197] + "..."

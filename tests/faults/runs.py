"""Small trainings of every kind, and the comparison of one that was disturbed with one that was not."""

from __future__ import annotations

import csv
import json
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator
from unittest import mock

import torch

from tests.samples import (
    TinyTokenizer,
    make_classifier,
    make_data,
    make_language_data,
    make_logger,
    make_mlm,
    make_training,
)
from xcls.config.schema import Hardware, Masking
from xcls.runs.folder import DONE, decide
from xcls.runs.record import Events, carry_over, read_record
from xcls.stages.finetune import finetune
from xcls.stages.pretrain import pretrain
from xcls.train.checkpoint import Checkpoints, read_checkpoint
from xcls.train.precision import Precision
from xcls.train.update import Updater

TIMED = {"time_per_step", "time_per_epoch", "tokens_per_s", "padded_tokens_per_s", "max_gpu_mem_MiB", "max_rss_MiB"}
ROW = 7  # the row of the data that brings the faults of a run with `fault`


@dataclass(frozen=True)
class Case:
    """One kind of training. `fault`: bad (NaN with ROW), memory (with ROW no more than 4 rows fit)."""

    stage: str
    attention: str
    device: str = "cpu"
    dtype: str = "fp32"
    workers: int = 0
    micro_batch: int | None = None
    fault: str | None = None
    training: dict[str, Any] = field(default_factory=dict)


CASES = {
    "LSH, redrawn rotations": Case("finetune", "reformer", training={"redraw_every_steps": 3}),
    "FAVOR+, redrawn features, bf16, accumulation": Case(
        "finetune", "performer", dtype="bf16", micro_batch=3, training={"redraw_every_steps": 2}
    ),
    "MLM, LSH, bf16": Case("pretrain", "reformer", dtype="bf16", training={"redraw_every_steps": 3}),
    "MLM, FAVOR+, accumulation": Case("pretrain", "performer", micro_batch=5, training={"redraw_every_steps": 4}),
    "early stopping": Case("finetune", "sdpa", training={"patience": 1, "eval_every_steps": 2, "lr": 0.05}),
    "dataloader workers": Case("finetune", "sdpa", workers=2),
    "bad steps left out": Case("finetune", "sdpa", fault="bad", training={"max_bad_steps": 100}),
    "micro-batches halved": Case("finetune", "performer", fault="memory"),
}


@contextmanager
def injected(fault: str | None) -> Iterator[None]:
    """Faults that depend on nothing but the batch and the progress, so that every life of a run meets the same."""
    fitting, gradients = Updater._gradients_that_fit, Updater._gradients

    def bad(self: Updater, batch: Any, progress: Any) -> Any:
        loss, terms = fitting(self, batch, progress)
        return (loss * float("nan") if ROW in batch["index"] else loss), terms

    def narrow(self: Updater, batch: Any, size: int | None) -> Any:
        found = gradients(self, batch, size)
        if ROW in batch["index"] and (size or len(batch["index"])) > 4:
            torch.empty(2**60, dtype=torch.uint8, device=self.amp.device)
        return found

    with ExitStack() as stack:
        if fault == "bad":
            stack.enter_context(mock.patch.object(Updater, "_gradients_that_fit", bad))
        elif fault == "memory":
            stack.enter_context(mock.patch.object(Updater, "_gradients", narrow))
        yield


def live(folder: Path, case: Case, **changes: Any) -> None:
    """One life of a run in `folder`, as `resume=true` would begin it: fresh, or after its earlier lives, from the last
    checkpoint or without one."""
    logger = make_logger(folder, mode=case.stage)
    folder.mkdir(exist_ok=True)
    state, before = decide(folder, logger.record.hash, resume=True, sweep=False, retry_failed=False, code={})
    if state == DONE:
        return
    if before is not None:
        carry_over(logger.record, before)
    settings = {**case.training, **changes}
    common = {
        "tokenizer": TinyTokenizer(),
        "seed": 0,
        "logger": logger,
        "resume": before is not None,
        "precision": Precision(device=case.device, dtype=case.dtype),
        "hardware": Hardware(
            device=case.device,
            dtype=case.dtype,
            workers=case.workers,
            micro_batch=case.micro_batch,
            on_oom="halve" if case.fault == "memory" else "stop",
        ),
    }
    with injected(case.fault), logger:
        if case.stage == "finetune":
            model = make_classifier(case.attention, dropout=0.1)
            finetune(model=model, data=make_data(), training=make_training(**settings), **common)
        else:
            model, training = make_mlm(case.attention, dropout=0.1), make_training(select_by="val_loss", **settings)
            pretrain(model=model, data=make_language_data(), masking=Masking(), training=training, **common)


def rows(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without the columns of time, throughput and memory."""
    with open(folder / "metrics.csv", encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if key not in TIMED} for row in csv.DictReader(file)]


def history(folder: Path) -> bytes:
    """events.jsonl so far; empty before there is one."""
    path = folder / "events.jsonl"
    return path.read_bytes() if path.exists() else b""


def starts(told: bytes) -> list[float]:
    """When the lives that a history tells of began, in seconds since the epoch."""
    return [
        json.loads(line)["time"]
        for line in told.splitlines()
        if line.startswith(b'{"event": "start"') and line.endswith(b"}")
    ]


def forgotten(before: bytes, folder: Path) -> list[str]:
    """What the run in `folder` tells no more of the history that it had `before`; an empty list where it tells all."""
    now = history(folder)
    found = [] if now.startswith(before) else ["events.jsonl: what it said before is gone"]
    if len(starts(now)) < len(starts(before)):
        found.append(f"events.jsonl: {len(starts(before))} lives before, {len(starts(now))} now")
    if starts(before) and read_record(folder).started > starts(before)[0] + 0.01:  # the time of an event is rounded
        found.append("record: started is not when its first life began")
    return found


def differences(whole: Path, parts: Path, before: bytes = b"") -> list[str]:
    """In what the run in `parts` ended otherwise than the one in `whole`, and what is missing of the history that it had
    `before` it was resumed; an empty list where nothing."""
    left, right = read_record(whole), read_record(parts)
    found = [] if rows(whole) == rows(parts) else ["metrics.csv"]
    names = ("status", "step", "best_step", "epoch", "metrics", "faults")
    found += forgotten(before, parts)
    found += [f"record: {name}" for name in names if getattr(left, name) != getattr(right, name)]
    if left.files.get("predictions.parquet") != right.files.get("predictions.parquet"):
        found.append("predictions.parquet")
    for name in ("ckpt_last.pt", "ckpt_best.pt"):
        first, second = (read_checkpoint(folder / name) for folder in (whole, parts))
        parts_of = ("model", "optimizer", "progress", "random", "scheduler", "data")
        found += [f"{name}: {part}" for part in parts_of if not same(first[part], second[part])]
    if [str(step) for step in Events(parts).evaluated_steps()] != [row["step"] for row in rows(parts)]:
        found.append("events.jsonl: the evaluations that count are not those of metrics.csv")
    return found + [f"left behind: {path.name}" for path in parts.glob(".*")]


def same(left: Any, right: Any) -> bool:
    """Equal to the last bit, tensors included."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(same(*pair) for pair in zip(left, right))
    return left == right


def saved_step(folder: Path) -> int:
    """The step that a resume would go on from; 0 without a checkpoint. Every step file must be whole."""
    found = Checkpoints(folder=folder, keep=99).steps()
    return max((read_checkpoint(path)["progress"]["step"] for path in found), default=0)

"""Small trainings of every kind in forks that can be killed, and the comparison of a disturbed run with a whole one."""

from __future__ import annotations

import csv
import faulthandler
import json
import os
import signal
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import torch

from tests import samples
from xcls.config.schema import Hardware, Masking
from xcls.runs.folder import DONE, decide
from xcls.runs.record import Events, carry_over, read_record
from xcls.stages.finetune import finetune
from xcls.stages.pretrain import pretrain
from xcls.train.checkpoint import Checkpoints, read_checkpoint
from xcls.train.precision import Precision
from xcls.train.session import Session

MEASURED = ("time_per_step", "time_per_epoch", "tokens_per_s", "padded_tokens_per_s", "max_gpu_mem_MiB", "max_rss_MiB")
PATIENCE = 60.0  # seconds within which a run must end after a signal


@dataclass(frozen=True)
class Case:
    """One kind of training. `fault`, `fits`: what goes wrong in it, for tests/train/harness.py."""

    stage: str
    attention: str
    dtype: str = "fp32"
    workers: int = 0
    micro_batch: int | None = None
    training: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    fault: str | None = None
    fits: int | None = None


CASES = {
    "LSH, redrawn rotations": Case("finetune", "reformer", training={"redraw_every_steps": 3}),
    "FAVOR+, redrawn features, bf16, accumulation": Case(
        "finetune", "performer", dtype="bf16", micro_batch=3, training={"redraw_every_steps": 2}
    ),
    "MLM, LSH, bf16": Case("pretrain", "reformer", dtype="bf16", training={"redraw_every_steps": 3}),
    "MLM, FAVOR+, accumulation": Case("pretrain", "performer", micro_batch=5, training={"redraw_every_steps": 4}),
    "early stopping": Case("finetune", "sdpa", training={"patience": 1, "eval_every_steps": 2, "lr": 0.05}),
    "dataloader workers": Case("finetune", "sdpa", workers=2),
}


def live(folder: Path, case: Case) -> None:
    """One life of a run in `folder`, as `resume=true` begins it: fresh, or from its last checkpoint."""
    logger = samples.make_logger(folder, mode=case.stage)
    folder.mkdir(exist_ok=True)
    state, before = decide(folder, logger.record.hash, resume=True, sweep=False, retry_failed=False, code={})
    if state == DONE:
        return
    if before is not None:
        carry_over(logger.record, before)
    settings = {"workers": case.workers, "micro_batch": case.micro_batch}
    settings["on_oom"] = "halve" if case.fault == "memory" else "stop"
    hardware = Hardware(device=case.device, dtype=case.dtype, **settings)
    precision = Precision(device=case.device, dtype=case.dtype)
    selected = {} if case.stage == "finetune" else {"select_by": "val_loss"}
    training = samples.make_training(**selected, **case.training)
    with logger:
        session = Session(samples.TinyTokenizer(), training, hardware, precision, 0, logger, before is not None)
        if case.stage == "finetune":
            model = samples.make_classifier(case.attention, dropout=0.1)
            finetune(model=model, data=samples.make_data(), session=session)
        else:
            learner = samples.make_mlm(case.attention, dropout=0.1)
            pretrain(model=learner, data=samples.make_language_data(), masking=Masking(), session=session)


def spawn(action: Callable[[], Any], log: Path) -> int:
    """Runs `action` in a fork, its output in `log`; gives the process id.

    A fork is a fair stand-in for a fresh process: the parent has one thread and has opened none of the files.
    A thousand kills would else be a thousand imports of torch.
    """
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    if len(threads) > 1:
        raise RuntimeError(f"this process has threads, so that a fork of it is not a whole process: {threads}")
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        faulthandler.enable(descriptor)
        action()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(process: int) -> int:
    """Waits for a fork; gives its exit code, minus the signal's number where it died of one. Raises TimeoutError."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, signal.SIGABRT)  # where it stands is in the log then
    os.waitpid(process, 0)
    raise TimeoutError(f"it did not end within {PATIENCE:.0f} s")


def whole_run(folder: Path, case: Case) -> Path:
    """A run that nothing disturbs."""
    folder.mkdir(parents=True)
    if wait(spawn(lambda: live(folder, case), folder.parent / "log")):
        raise RuntimeError(f"it fails without any fault: {folder.parent / 'log'}")
    return folder


def history(folder: Path) -> bytes:
    """events.jsonl so far; empty before there is one."""
    path = folder / "events.jsonl"
    return path.read_bytes() if path.exists() else b""


def last_life(folder: Path) -> list[dict[str, Any]]:
    """The events since the last start."""
    found = [json.loads(line) for line in history(folder).splitlines()]
    starts = [place for place, event in enumerate(found) if event["event"] == "start"]
    return found[starts[-1] :] if starts else []


def saved_step(folder: Path) -> int:
    """The step that a resume would go on from; 0 without a checkpoint. Every step file must be whole."""
    found = Checkpoints(folder=folder, keep=99).steps()
    return max((read_checkpoint(path)["progress"]["step"] for path in found), default=0)


def resumed(whole: Path, parts: Path, case: Case) -> list[str]:
    """Resumes the run in `parts` to its end; in what it ended otherwise than the one in `whole`, or nothing."""
    before = history(parts)
    code = wait(spawn(lambda: live(parts, case), parts.parent / "log"))
    if code:
        said = (parts.parent / "log").read_text(encoding="utf-8").strip().rpartition("\n")[2]
        return [f"{parts.name}: it could not be resumed (exit {code}): {said}"]
    return [f"{parts.name}: {item}" for item in differences(whole, parts, before)]


def differences(whole: Path, parts: Path, before: bytes = b"") -> list[str]:
    """In what the run in `parts` ended otherwise than the one in `whole`, and what is gone of its history `before`."""
    left, right = read_record(whole), read_record(parts)
    found = [] if rows(whole) == rows(parts) else ["metrics.csv"]
    found += [] if history(parts).startswith(before) else ["events.jsonl: what it said before is gone"]
    names = ("status", "step", "best_step", "epoch", "metrics", "faults")
    found += [f"record: {name}" for name in names if getattr(left, name) != getattr(right, name)]
    if left.files.get("predictions.parquet") != right.files.get("predictions.parquet"):
        found.append("predictions.parquet")
    for name in ("ckpt_last.pt", "ckpt_best.pt"):
        first, second = read_checkpoint(whole / name), read_checkpoint(parts / name)
        states = ("model", "optimizer", "progress", "random", "scheduler", "data")
        found += [f"{name}: {state}" for state in states if not same(first[state], second[state])]
    if [str(step) for step in Events(parts).evaluated_steps()] != [row["step"] for row in rows(parts)]:
        found.append("events.jsonl: the evaluations that count are not those of metrics.csv")
    return found + [f"left behind: {path.name}" for path in parts.glob(".*")]


def rows(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without what is measured."""
    with open(folder / "metrics.csv", encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if key not in MEASURED} for row in csv.DictReader(file)]


def same(left: Any, right: Any) -> bool:
    """Equal to the last bit, tensors included."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(same(*pair) for pair in zip(left, right))
    return left == right

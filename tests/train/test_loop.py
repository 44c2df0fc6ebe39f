"""The loop: accumulation, resume, stopping, faults. Stages run it, so that both stages are tested."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from tests.samples import (
    CPU,
    HARDWARE,
    TinyTokenizer,
    make_classifier,
    make_data,
    make_journal,
    make_language_data,
    make_mlm,
    make_training,
)
from xcls.config.schema import Hardware, Masking, UserError
from xcls.runs.record import carry_over, read_record
from xcls.stages.finetune import finetune
from xcls.stages.pretrain import pretrain
from xcls.train.checkpoint import read_checkpoint
from xcls.train.faults import BadNumbers
from xcls.train.loop import Loop
from xcls.train.precision import Precision
from xcls.train.progress import Progress
from xcls.train.signals import Interrupted
from xcls.train.update import Updater

TIMED = {"time_per_step", "time_per_epoch", "tokens_per_s", "padded_tokens_per_s", "max_gpu_mem_MiB", "max_rss_MiB"}


def train(folder: Path, stage: str = "finetune", *, resume: bool = False, **changes: Any) -> Any:
    """A run in `folder`. `changes`: model, hardware, precision, hash, or settings of the training."""
    journal = make_journal(folder, mode=stage)
    journal.record.hash = changes.pop("hash", journal.record.hash)
    model = changes.pop("model", None)
    common = {"tokenizer": TinyTokenizer(), "seed": 0, "journal": journal, "resume": resume}
    common |= {"hardware": changes.pop("hardware", HARDWARE), "precision": changes.pop("precision", CPU)}
    with journal:
        if stage == "finetune":
            model = model if model is not None else make_classifier("performer", dropout=0.1)
            return finetune(model=model, data=make_data(), training=make_training(**changes), **common)
        model = model if model is not None else make_mlm("reformer", dropout=0.1)
        training = make_training(select_by="val_loss", **changes)
        return pretrain(model=model, data=make_language_data(), masking=Masking(), training=training, **common)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if key not in TIMED} for row in csv.DictReader(file)]


def weights(folder: Path, name: str = "ckpt_last.pt") -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / name)["model"]


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, how: Any) -> None:
    """Calls `how()` in the middle of step number `step` of the loop."""
    apply = Updater.apply

    def wrapped(self: Updater, batch: Any, progress: Progress) -> Any:
        if progress.step + 1 == step:
            how()
        return apply(self, batch, progress)

    monkeypatch.setattr(Updater, "apply", wrapped)


@pytest.mark.parametrize(
    ("stage", "attention"), [("finetune", "sdpa"), ("finetune", "reformer"), ("pretrain", "performer")]
)
def test_accumulation_is_without_meaning(stage: str, attention: str, tmp_path: Path) -> None:
    make = {"finetune": make_classifier, "pretrain": make_mlm}[stage]
    found = {}
    for micro in (None, 8, 3):
        hardware = Hardware(device="cpu", dtype="fp32", micro_batch=micro)
        folder = tmp_path / str(micro)
        train(folder, stage, hardware=hardware, model=make(attention), max_steps=1, batch_size=32, clip_norm=0.0)
        state = read_checkpoint(folder / "ckpt_last.pt")["optimizer"]["state"]
        found[micro] = {key: moments["exp_avg"] for key, moments in state.items()}  # a tenth of the gradient
    largest = max(float(tensor.abs().max()) for tensor in found[None].values())
    for micro in (8, 3):
        assert_close(found[None], found[micro], atol=1e-5 * largest, rtol=1e-4)
    assert rows(tmp_path / "8")[0]["train_loss"][:6] == rows(tmp_path / "None")[0]["train_loss"][:6]


@pytest.mark.parametrize(("stage", "step"), [("finetune", 1), ("pretrain", 3), ("finetune", 6), ("pretrain", 9)])
def test_resume_after_a_signal_is_exact(stage: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "whole", stage, redraw_every_steps=2)
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="SIGTERM"):
        stop_at(patch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        train(tmp_path / "parts", stage, redraw_every_steps=2)
    record = read_record(tmp_path / "parts")
    assert (record.status, record.cause) == ("interrupted", "stopped by SIGTERM")
    assert read_checkpoint(tmp_path / "parts" / "ckpt_last.pt")["progress"]["step"] == step
    assert train(tmp_path / "parts", stage, resume=True, redraw_every_steps=2).status == "completed"
    assert_same(tmp_path / "whole", tmp_path / "parts")


def assert_same(whole: Path, parts: Path) -> None:
    assert rows(whole) == rows(parts)
    for name in ("ckpt_last.pt", "ckpt_best.pt"):
        first, second = weights(whole, name), weights(parts, name)
        assert all(torch.equal(first[key], second[key]) for key in first)
    left, right = read_record(whole), read_record(parts)
    assert left.metrics == right.metrics and left.best_step == right.best_step
    if (whole / "predictions.parquet").exists():
        assert left.files["predictions.parquet"] == right.files["predictions.parquet"]


@pytest.mark.parametrize("change", [{"patience": 1, "epochs": 6.0}, {"workers": 2}, {"micro": 3}, {"dtype": "bf16"}])
def test_resume_after_a_crash_is_exact(change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die() -> None:
        raise SystemError("power cut")

    settings = {key: value for key, value in change.items() if key in ("patience", "epochs")}
    dtype = change.get("dtype", "fp32")
    hardware = Hardware(device="cpu", dtype=dtype, workers=change.get("workers", 0), micro_batch=change.get("micro"))
    settings.update(hardware=hardware, precision=Precision(device="cpu", dtype=dtype))
    train(tmp_path / "whole", **settings)
    for step in (5, 8):  # the last checkpoint was at 3, then at 6: rows of step 4 and 8 are made again
        with monkeypatch.context() as patch, pytest.raises(SystemError):
            stop_at(patch, step, die)
            train(tmp_path / "parts", resume=step > 5, **settings)
        assert read_record(tmp_path / "parts").cause == "SystemError: power cut"
    train(tmp_path / "parts", resume=True, **settings)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert [event["event"] for event in events(tmp_path / "parts")].count("resume") == 2


def test_an_evaluation_cut_short_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "whole")
    evaluate = Loop._evaluate

    def interrupted(self: Loop, stop: Any) -> bool:
        stop.requested = "SIGUSR1"
        return evaluate(self, stop)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Loop, "_evaluate", interrupted)
        train(tmp_path / "parts")
    assert rows(tmp_path / "parts") == []
    train(tmp_path / "parts", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_early_stopping_and_the_best_checkpoint(tmp_path: Path) -> None:
    record = train(tmp_path, epochs=40.0, patience=2, eval_every_steps=2, lr=1e-2)
    scores = [float(row["macro_f1"]) for row in rows(tmp_path)]
    best = scores.index(max(scores))
    assert record.step < record.steps == 200
    assert len(scores) - 1 - best == 2
    assert record.best_step == int(rows(tmp_path)[best]["step"])
    assert read_checkpoint(tmp_path / "ckpt_best.pt")["progress"]["step"] == record.best_step
    assert record.metrics["validation"]["macro_f1"] == max(scores)


def test_keep_bounds_the_step_checkpoints(tmp_path: Path) -> None:
    train(tmp_path, keep=2, checkpoint_every_steps=1)
    assert sorted(path.name for path in tmp_path.glob("ckpt_step*")) == ["ckpt_step00000009.pt", "ckpt_step00000010.pt"]
    assert not list(tmp_path.glob(".*"))


def test_checkpoints_by_minutes_and_by_epochs(tmp_path: Path) -> None:
    never = {"checkpoint_every_steps": None, "eval_every_steps": None, "keep": 100}
    train(tmp_path / "minutes", checkpoint_every_minutes=1e-9, **never)
    assert len(list((tmp_path / "minutes").glob("ckpt_step*"))) == 10
    train(tmp_path / "epochs", checkpoint_every_epochs=0.5, eval_every_epochs=0.7, **never)
    steps = sorted(int(path.stem[9:]) for path in (tmp_path / "epochs").glob("ckpt_step*"))
    assert {3, 5, 8, 10} <= set(steps)
    assert [row["step"] for row in rows(tmp_path / "epochs")] == ["4", "7", "10"]


@pytest.mark.parametrize("where", ["weight", "gradient"])
def test_bad_numbers_name_step_rows_and_layer(where: str, tmp_path: Path) -> None:
    model = make_classifier()
    parameter = model.encoder.blocks[1].attention.v_proj.weight
    if where == "weight":
        with torch.no_grad():
            parameter[0, 0] = float("nan")
    else:
        parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(BadNumbers, match="not finite at step 0"):
        train(tmp_path, model=model)
    record = read_record(tmp_path)
    assert record.status == "failed"
    layer = {
        "weight": "the output of encoder.blocks.1.attention.v_proj",
        "gradient": "the gradient of encoder.blocks.1.attention.v_proj.weight",
    }[where]
    assert f"first in {layer}; rows of the batch: train/" in record.cause
    failure = [event for event in events(tmp_path) if event["event"] == "failure"][0]
    assert (failure["step"], failure["layer"], len(failure["rows"])) == (0, layer, 8)
    assert "BadNumbers" in (tmp_path / "logs" / "traceback.txt").read_text(encoding="utf-8")


def test_what_a_run_leaves_behind(tmp_path: Path) -> None:
    record = train(tmp_path, epochs=8.0)
    assert record.status == "completed" and record.step == record.steps == 40
    assert record.metrics["validation"]["macro_f1"] > 0.8
    assert {"python", "torch", "cuda", "numpy", "tokenizers"} <= set(record.versions)
    assert record.params["total"] > record.params["attention"] > 0
    assert record.device["kind"] == "cpu" and record.device["dtype"] == "fp32"
    costs = record.costs
    assert costs["tokens_per_s"] <= costs["padded_tokens_per_s"]
    assert_close(costs["time_per_epoch"], costs["time_per_step"] * 5)
    assert costs["max_rss_MiB"] > 50 and costs["rss_growth_MiB"] >= 0
    table = rows(tmp_path)
    assert [row["step"] for row in table] == [str(step) for step in range(4, 41, 4)]
    assert float(table[-1]["train_loss"]) < float(table[0]["train_loss"])
    assert float(table[0]["lr"]) > 0


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    train(tmp_path, max_steps=1)
    with pytest.raises(UserError, match="another configuration"):
        train(tmp_path, resume=True, hash="cd" * 32)


def test_the_record_names_how_attention_was_computed(tmp_path: Path) -> None:
    """In training steps, of every micro-batch and of the run's earlier processes too; evaluations do not count."""
    model = make_classifier("performer")
    for block in model.encoder.blocks:
        layer = block.attention.attention
        layer.register_forward_hook(lambda layer, given, out: setattr(layer, "path", "ab"[layer.training]))
    first = train(tmp_path, model=model, max_steps=3)
    assert first.device["attention_path"] == "b" == read_record(tmp_path).device["attention_path"]
    later = make_journal(tmp_path).record
    carry_over(later, first)
    assert later.device["attention_path"] == "b"

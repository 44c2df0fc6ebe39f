"""The loop: accumulation, resume, evaluation, checkpoints, what a run leaves. Both stages run it here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from tests.faults.runs import differences, rows
from tests.samples import make_classifier, make_logger, make_mlm
from tests.train.harness import Case, live, stop_at
from xcls.runs.record import Events, carry_over, read_record
from xcls.train.checkpoint import read_checkpoint
from xcls.train.faults import BadNumbers
from xcls.train.loop import Loop
from xcls.train.signals import Interrupted

PLAIN = Case("finetune", "sdpa")


def use(monkeypatch: pytest.MonkeyPatch, model: torch.nn.Module) -> None:
    """The model of every run from here on."""
    for name in ("make_classifier", "make_mlm"):
        monkeypatch.setattr(f"tests.samples.{name}", lambda attention, dropout: model)


@pytest.mark.parametrize(
    ("stage", "attention"), [("finetune", "sdpa"), ("finetune", "reformer"), ("pretrain", "performer")]
)
def test_accumulation_is_without_meaning(
    stage: str, attention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for micro in (None, 8, 3):
        use(monkeypatch, {"finetune": make_classifier, "pretrain": make_mlm}[stage](attention))
        live(
            tmp_path / str(micro), Case(stage, attention, micro_batch=micro), max_steps=1, batch_size=32, clip_norm=0.0
        )
        state = read_checkpoint(tmp_path / str(micro) / "ckpt_last.pt")["optimizer"]["state"]
        found[micro] = {key: moments["exp_avg"] for key, moments in state.items()}  # a tenth of the gradient
    largest = max(float(tensor.abs().max()) for tensor in found[None].values())
    for micro in (8, 3):
        assert_close(found[None], found[micro], atol=1e-5 * largest, rtol=1e-4)
    assert rows(tmp_path / "8")[0]["train_loss"][:6] == rows(tmp_path / "None")[0]["train_loss"][:6]


@pytest.mark.parametrize(
    ("case", "step"),
    [
        (Case("finetune", "performer", training={"redraw_every_steps": 2}), 1),
        (Case("pretrain", "reformer", training={"redraw_every_steps": 2}), 3),
        (Case("finetune", "reformer", micro_batch=3), 6),
    ],
)
def test_resume_after_a_signal_is_exact(case: Case, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live(tmp_path / "whole", case)
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="SIGTERM"):
        stop_at(patch, step)
        live(tmp_path / "parts", case)
    record = read_record(tmp_path / "parts")
    assert (record.status, record.cause, record.step) == ("interrupted", "stopped by SIGTERM", step)
    assert read_checkpoint(tmp_path / "parts" / "ckpt_last.pt")["progress"]["step"] == step
    live(tmp_path / "parts", case)
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.parametrize(
    "case",
    [
        Case("finetune", "sdpa", training={"patience": 1, "epochs": 6.0}),
        Case("finetune", "performer", workers=2),
        Case("pretrain", "performer", dtype="bf16"),
    ],
)
def test_resume_after_a_crash_is_exact(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die() -> None:
        raise SystemError("power cut")

    live(tmp_path / "whole", case)
    for step in (5, 8):  # the last checkpoint was at 3, then at 6: rows of step 4 and 8 are made again
        with monkeypatch.context() as patch, pytest.raises(SystemError):
            stop_at(patch, step, die)
            live(tmp_path / "parts", case)
        assert read_record(tmp_path / "parts").cause == "SystemError: power cut"
    live(tmp_path / "parts", case)
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


def test_an_evaluation_cut_short_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live(tmp_path / "whole", PLAIN)
    evaluate = Loop._evaluate

    def interrupted(self: Loop, stop: Any) -> bool:
        stop.requested = "SIGUSR1"
        return evaluate(self, stop)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Loop, "_evaluate", interrupted)
        live(tmp_path / "parts", PLAIN)
    assert rows(tmp_path / "parts") == []
    live(tmp_path / "parts", PLAIN)
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


def test_early_stopping_and_the_best_checkpoint(tmp_path: Path) -> None:
    live(tmp_path, PLAIN, epochs=40.0, patience=2, eval_every_steps=2, lr=1e-2)
    record, scores = read_record(tmp_path), [float(row["macro_f1"]) for row in rows(tmp_path)]
    best = scores.index(max(scores))
    assert record.step < record.steps == 200 and len(scores) - 1 - best == 2
    assert record.best_step == int(rows(tmp_path)[best]["step"])
    assert read_checkpoint(tmp_path / "ckpt_best.pt")["progress"]["step"] == record.best_step
    assert record.metrics["validation"]["macro_f1"] == max(scores)


def test_checkpoints_by_steps_minutes_and_epochs(tmp_path: Path) -> None:
    never = {"checkpoint_every_steps": None, "eval_every_steps": None, "keep": 100}
    found = {}
    for name, changes in {
        "steps": {"keep": 2, "checkpoint_every_steps": 1},
        "minutes": {**never, "checkpoint_every_minutes": 1e-9},
        "epochs": {**never, "checkpoint_every_epochs": 0.5, "eval_every_epochs": 0.7},
    }.items():
        live(tmp_path / name, PLAIN, **changes)
        found[name] = sorted(int(path.stem[9:]) for path in (tmp_path / name).glob("ckpt_step*"))
    assert (
        found["steps"] == [9, 10] and found["minutes"] == list(range(1, 11)) and {3, 5, 8, 10} <= set(found["epochs"])
    )
    assert [row["step"] for row in rows(tmp_path / "epochs")] == ["4", "7", "10"]


@pytest.mark.parametrize("where", ["weight", "gradient"])
def test_bad_numbers_name_step_rows_and_layer(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_classifier()
    parameter = model.encoder.blocks[1].attention.v_proj.weight
    if where == "weight":
        with torch.no_grad():
            parameter[0, 0] = float("nan")
    else:
        parameter.register_hook(lambda gradient: gradient * float("inf"))
    use(monkeypatch, model)
    with pytest.raises(BadNumbers, match="step 0"):
        live(tmp_path, PLAIN)
    record = read_record(tmp_path)
    layer = {
        "weight": "the output of encoder.blocks.1.attention.v_proj",
        "gradient": "the gradient of encoder.blocks.1.attention.v_proj.weight",
    }[where]
    assert record.status == "failed" and layer in record.cause and "train/" in record.cause
    events = map(json.loads, (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines())
    failure = next(event for event in events if event["event"] == "failure")
    assert (failure["step"], failure["layer"], len(failure["rows"])) == (0, layer, 8)
    assert "BadNumbers" in (tmp_path / "logs" / "traceback.txt").read_text(encoding="utf-8")


def test_what_a_run_leaves_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned, add = {}, Events.add

    def add_and_look(self: Events, event: str, details: Any = None) -> None:
        planned.setdefault(event, read_record(tmp_path).steps)
        add(self, event, details)

    monkeypatch.setattr(Events, "add", add_and_look)
    live(tmp_path, PLAIN, epochs=8.0)
    record, costs, table = read_record(tmp_path), read_record(tmp_path).costs, rows(tmp_path)
    assert planned["step"] == 40, "who watches knows the total before the first evaluation"
    assert record.status == "completed" and record.step == record.steps == 40
    assert record.metrics["validation"]["macro_f1"] > 0.8
    assert {"python", "torch", "cuda", "numpy", "tokenizers"} <= set(record.versions)
    assert record.params["total"] > record.params["attention"] > 0
    assert record.device["kind"] == "cpu" and record.device["dtype"] == "fp32"
    assert costs["tokens_per_s"] <= costs["padded_tokens_per_s"]
    assert_close(costs["time_per_epoch"], costs["time_per_step"] * 5)
    assert costs["max_rss_MiB"] > 50 and costs["rss_growth_MiB"] >= 0
    assert [row["step"] for row in table] == [str(step) for step in range(4, 41, 4)]
    assert float(table[-1]["train_loss"]) < float(table[0]["train_loss"]) and float(table[0]["lr"]) > 0


def test_the_record_names_how_attention_was_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training steps and in the run's earlier processes too; evaluations do not count."""
    model = make_classifier("performer")
    for block in model.encoder.blocks:
        layer = block.attention.attention
        layer.register_forward_hook(lambda layer, given, out: setattr(layer, "path", "ab"[layer.training]))
    use(monkeypatch, model)
    live(tmp_path, PLAIN, max_steps=3)
    first, later = read_record(tmp_path), make_logger(tmp_path).record
    assert first.device["attention_path"] == "b"
    carry_over(later, first)
    assert later.device["attention_path"] == "b"

"""Steps that the host reads late, as on a GPU: the same results to the bit, and nobody waits for the step under way."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.runs import differences
from tests.samples import make_classifier
from tests.train.harness import BAD_STEPS, LITTLE_MEMORY, Case, live
from xcls.train.amp import Arriving
from xcls.train.checkpoint import read_checkpoint
from xcls.train.optim import Lion
from xcls.train.update import Updater

EVERY = {"checkpoint_every_steps": 7, "eval_every_steps": 5, "epochs": 3.0}
BAD = {**EVERY, "max_bad_steps": 100}


def defer(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on every loop reads its steps late."""
    monkeypatch.setattr("xcls.train.loop.Updater", partial(Updater, deferred=True))


def told(folder: Path, kind: str = "step") -> list[dict[str, Any]]:
    """The events of a kind, but for when they happened."""
    events = map(json.loads, (folder / "events.jsonl").read_text(encoding="utf-8").splitlines())
    return [{key: value for key, value in event.items() if key != "time"} for event in events if event["event"] == kind]


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        (BAD_STEPS, EVERY),
        (LITTLE_MEMORY, EVERY),
        (Case("finetune", "reformer", fault="bad"), {**BAD, "redraw_every_steps": 2}),
        (Case("finetune", "sdpa", fault="bad"), {**BAD, "optimizer": "adafactor"}),
        (Case("finetune", "sdpa", dtype="fp16", fault="bad"), BAD),
        (Case("finetune", "sdpa", workers=2), {**EVERY, "patience": 1, "lr": 0.05}),
    ],
)
def test_reading_late_changes_nothing(
    case: Case, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if changes.get("optimizer") == "adafactor" and not hasattr(torch.optim, "Adafactor"):
        pytest.skip("this torch has no Adafactor")
    if case.dtype == "fp16" and not hasattr(torch.amp, "GradScaler"):
        pytest.skip("this torch has no loss scaling on a CPU")
    live(tmp_path / "at once", case, **changes)
    defer(monkeypatch)
    live(tmp_path / "late", case, **changes)
    assert differences(tmp_path / "at once", tmp_path / "late") == []
    for kind in ("step", "fault"):
        assert told(tmp_path / "at once", kind) == told(tmp_path / "late", kind)
    scalers = [read_checkpoint(tmp_path / name / "ckpt_last.pt")["scaler"] for name in ("at once", "late")]
    assert scalers[0] == scalers[1]


def test_an_overflow_lowers_the_scale_and_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(torch.amp, "GradScaler"):
        pytest.skip("this torch has no loss scaling on a CPU")
    for name in ("at once", "late"):
        if name == "late":
            defer(monkeypatch)
        seen: list[float] = []

        def overflow(gradient: torch.Tensor, seen: list[float] = seen) -> torch.Tensor:
            seen.append(1.0)
            return gradient * float("inf") if len(seen) in (2, 6) else gradient

        model = make_classifier("sdpa", dropout=0.1)
        model.head.linear.bias.register_hook(overflow)
        monkeypatch.setattr("tests.samples.make_classifier", lambda *given, model=model, **named: model)
        live(tmp_path / name, Case("finetune", "sdpa", dtype="fp16"))
    assert differences(tmp_path / "at once", tmp_path / "late") == []
    assert read_checkpoint(tmp_path / "late" / "ckpt_last.pt")["scaler"]["scale"] == 2.0**14


def test_lion_leaves_everything_where_it_is_told_of_an_overflow() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = Lion([weight], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    weight.grad = torch.tensor([0.5, 1.0])
    optimizer.step()
    before = weight.detach().clone(), optimizer.state[weight]["momentum"].clone()
    weight.grad = torch.tensor([float("nan"), 1.0])
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(weight, before[0]) and torch.equal(optimizer.state[weight]["momentum"], before[1])
    weight.grad = torch.tensor([0.5, 1.0])
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert not torch.equal(weight, before[0])


def test_a_step_is_read_when_the_next_is_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for owner, name in ((Updater, "apply"), (Arriving, "read"), (Updater, "finish")):

        def noted(*given: Any, name: str = name, real: Any = getattr(owner, name)) -> Any:
            order.append(name)
            return real(*given)

        monkeypatch.setattr(owner, name, noted)
    defer(monkeypatch)
    live(tmp_path, Case("finetune", "sdpa"), max_steps=4, eval_every_steps=3, checkpoint_every_steps=None)
    once = [name for name in order if name != "read"]
    assert once == ["apply", "apply", "finish", "apply", "finish", "finish", "apply", "finish"]
    assert order[:3] == ["apply", "apply", "read"], "the second step waits for nothing"

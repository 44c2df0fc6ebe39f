"""bench=training: segments by turns; on one GPU, which a training leaves while others have their turn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from xcls.bench import training
from xcls.bench.machine import peak_memory
from xcls.bench.training import Meter, move
from xcls.bench.worker import environment, first_gpu

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, "0"), ("", ""), ("-1", "-1"), ("3,1,0", "3"), ("GPU-8932f937, GPU-5d5b", "GPU-8932f937")],
)
def test_every_measuring_process_sees_one_gpu(
    visible: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert environment("plain")["CUDA_VISIBLE_DEVICES"] == first_gpu(visible) == expected


def trained(device: str = "cpu") -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """A model with buffers, one tied weight, gradients and the state of AdamW."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)).to(device)
    model[2].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters(), fused=device == "cuda")
    step(model, optimizer)
    return model, optimizer


def step(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(3, 4, device=model[0].weight.device)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_a_training_that_moved_away_and_back_goes_on_as_before(device: str) -> None:
    """On a GPU nothing of it is left there meanwhile."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved() if device == "cuda" else 0
    model, optimizer = trained(device)
    weights = list(model.parameters())
    move(model, optimizer, "cpu")
    assert device == "cpu" or torch.cuda.memory_reserved() == before
    move(model, optimizer, device)
    step(model, optimizer)
    other, other_optimizer = trained(device)
    step(other, other_optimizer)
    for weight, mine, expected in zip(weights, model.parameters(), other.parameters()):
        assert mine is weight and mine.device.type == device and torch.equal(mine, expected)


def test_a_segment_is_so_many_steps_and_a_training_leaves_before_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    answers: list[dict[str, Any]] = []

    class Connection:
        def send(self, message: tuple[str, dict[str, Any]]) -> None:
            order.append(message[0])
            answers.append(message[1])

        def recv(self) -> tuple[str, dict[str, Any]]:
            if len(answers) == 2:
                raise EOFError
            return "segment", {}

    hooks: list[Any] = []
    monkeypatch.setattr(training, "move", lambda model, optimizer, device: order.append(device))
    monkeypatch.setattr(training, "register_optimizer_step_post_hook", hooks.append)
    model, optimizer = trained()
    optimizer.register_step_post_hook(lambda *found: hooks[0](*found))
    meter: Any = Meter(Connection(), device="meta", steps=2, count=True)
    meter.start_memory()
    meter.watch(model)
    done = 0
    with pytest.raises(EOFError):
        while True:
            meter.batch(torch.ones(2, 5), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]))
            step(model, optimizer)
            done += 1
    assert done == 2 + 1 + 1, "a step more before the clock of the second segment starts"
    assert order == ["cpu", "answer", "meta", "cpu", "answer"]
    assert [(one["steps"], one["tokens"], one["computed"]) for one in answers] == [(2, 14, 20)] * 2
    assert answers[0]["flops"] > 0 and answers[1]["flops"] is None


@pytest.mark.parametrize(("on_gpu", "expected"), [(1.0, 1.0), (0.0, 0.0), (None, 2.0)])
def test_the_peak_is_that_of_the_device(on_gpu: float | None, expected: float) -> None:
    gauge: Any = SimpleNamespace(peaks={"max_gpu_mem_MiB": on_gpu, "rss_growth_MiB": 2.0, "max_rss_MiB": 9.0})
    assert peak_memory(gauge) == expected

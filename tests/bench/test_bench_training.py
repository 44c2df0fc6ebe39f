"""bench=training: segments by turns; on one GPU, which a training leaves while others have their turn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xcls.bench import training
from xcls.bench.process import environment, first_gpu
from xcls.bench.training import Meter, Parking


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


def test_everything_leaves_the_device_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[tuple[int, str]] = []
    freed: list[int] = []

    class Recorded(Parking):
        """Says what it would move where: on a machine without a GPU there is no second device for data."""

        def _move(self, tensor: Tensor, device: torch.device) -> None:
            moves.append((id(tensor), device.type))

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(1))
    model, optimizer = trained()
    states = [value for state in optimizer.state.values() for value in state.values()]
    held = [*model.parameters(), *model.buffers(), *states, *(parameter.grad for parameter in model.parameters())]
    parking = Recorded(model, optimizer, away="meta")
    parking.leave()
    assert sorted(moves) == sorted((id(tensor), "meta") for tensor in held) and freed == [1]
    moves.clear()
    parking.come_back()
    assert sorted(moves) == sorted((id(tensor), "cpu") for tensor in held) and parking.parked == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")
def test_a_gpu_is_free_meanwhile_and_training_goes_on_as_before() -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    (model, optimizer), (other, others) = trained("cuda"), trained("cuda")
    parking = Parking(model, optimizer)
    parking.leave()
    del other, others
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == before
    parking.come_back()
    step(model, optimizer)
    same, same_optimizer = trained("cuda")
    step(same, same_optimizer)
    for mine, theirs in zip(model.parameters(), same.parameters()):
        assert mine.device.type == "cuda" and torch.equal(mine, theirs)


def test_a_segment_is_so_many_steps_and_a_training_leaves_before_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    answers: list[dict[str, Any]] = []

    class Channel:
        def send(self, kind: str, value: dict[str, Any]) -> None:
            order.append(kind)
            answers.append(value)

        def receive(self) -> tuple[str, dict[str, Any]]:
            if len(answers) == 2:
                raise EOFError
            return "segment", {}

    class Watched:
        def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
            self.leave, self.come_back = lambda: order.append("leaves"), lambda: order.append("comes back")

    class Gauge:
        peaks = {"max_gpu_mem_MiB": 1.0, "rss_growth_MiB": 2.0}

        def __init__(self, device: torch.device) -> None:
            self.pause = lambda: None

    hooks: list[Any] = []
    monkeypatch.setattr(training, "Parking", Watched)
    monkeypatch.setattr(training, "MemoryGauge", Gauge)
    monkeypatch.setattr(training, "synchronizer", lambda device: lambda: None)
    monkeypatch.setattr(training, "register_optimizer_step_post_hook", hooks.append)
    model, optimizer = trained()
    optimizer.register_step_post_hook(lambda *found: hooks[0](*found))
    meter: Any = Meter(Channel(), device="cuda", steps=2, count=True)
    meter.start_memory()
    meter.watch(model)
    done = 0
    with pytest.raises(EOFError):
        while True:
            meter.batch(torch.ones(2, 5), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]))
            step(model, optimizer)
            done += 1
    assert done == 2 + 1 + 1, "a step more before the clock of the second segment starts"
    assert order == ["leaves", "answer", "comes back", "leaves", "answer"]
    assert [(one["steps"], one["tokens"], one["computed"]) for one in answers] == [(2, 14, 20)] * 2
    assert answers[0]["flops"] > 0 and answers[1]["flops"] is None and answers[0]["memory_MiB"] == 1.0

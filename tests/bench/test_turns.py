"""Contenders on one GPU: each sees that one alone, and holds none of its memory while others have their turn."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xcls.bench import training_meter
from xcls.bench.peaks import card_peak
from xcls.bench.process import environment, first_gpu
from xcls.bench.training_meter import Enough, Meter
from xcls.bench.training_parking import Parking
from xcls.bench.training_results import add_segments, add_work, report


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, "0"),
        ("", ""),
        ("-1", "-1"),
        ("2", "2"),
        ("3,1,0", "3"),
        ("GPU-8932f937, GPU-5d5b", "GPU-8932f937"),
        ("MIG-c6d4", "MIG-c6d4"),
    ],
)
def test_every_measuring_process_sees_one_gpu(
    visible: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert environment("plain")["CUDA_VISIBLE_DEVICES"] == first_gpu(visible) == expected


def trained(device: str = "cpu") -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model with buffers, one tied weight, gradients and the state of AdamW."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)).to(device)
    model[2].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters(), fused=device == "cuda")
    step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(3, 4, device=model[0].weight.device)).square().sum().backward()
    optimizer.step()


class Recorded(Parking):
    """Says what it would move where: on a machine without a GPU there is no second device for data."""

    def _move(self, tensor: Tensor, device: torch.device) -> None:
        moves.append((id(tensor), device.type))


moves: list[tuple[int, str]] = []


def test_everything_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[int] = []
    moves.clear()
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


def test_what_waits_on_a_cpu_is_left_there() -> None:
    model, optimizer = trained()
    parking = Parking(model, optimizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parking.leave()
    assert parking.parked == []
    parking.come_back()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


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


def test_a_training_is_gone_before_the_next_is_told_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Watched:
        def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
            pass

        def leave(self) -> None:
            order.append("leaves")

        def come_back(self) -> None:
            order.append("comes back")

    monkeypatch.setattr(training_meter, "Parking", Watched)
    monkeypatch.setattr(training_meter, "matmul_rate", lambda *_: order.append("product") or 1.0)
    monkeypatch.setattr(training_meter, "synchronizer", lambda device: lambda: None)
    monkeypatch.setattr(
        training_meter,
        "MemoryGauge",
        lambda device: type(
            "Gauge", (), {"peaks": {"max_gpu_mem_MiB": 1.0, "rss_growth_MiB": 2.0}, "pause": lambda self: None}
        )(),
    )
    words = io.StringIO('{"word": "warm"}\n{"word": "time"}\n{"word": "peak"}\n')
    meter = Meter(words=words, emit=lambda event, details: order.append(event), device="cuda", dtype="bf16")
    model, optimizer = trained()
    meter.watch(model, optimizer, 1)
    with pytest.raises(Enough):
        meter.begin()
        while True:
            step(model, optimizer)
    segment = ["comes back", "leaves", "segment"]
    assert order == [*segment, *segment, "product", "leaves", "peak"]


@pytest.mark.parametrize(
    ("name", "dtype", "tflops"),
    [
        ("Tesla T4", "fp16", 65.0),
        ("Tesla T4", "bf16", None),
        ("Tesla V100-SXM2-16GB", "fp16", 125.0),
        ("Tesla V100-PCIE-32GB", "fp16", 112.0),
        ("NVIDIA A100-SXM4-40GB", "bf16", 312.0),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("NVIDIA A100-SXM4-40GB", "fp32", None),
        ("NVIDIA L4", "bf16", 121.0),
        ("NVIDIA L40S", "bf16", None),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.0),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA H200", "fp16", 989.0),
        ("NVIDIA H200 NVL", "bf16", 836.0),
        ("AMD EPYC 7B13", "bf16", None),
        (None, "bf16", None),
    ],
)
def test_peaks_of_known_cards(name: str | None, dtype: str, tflops: float | None) -> None:
    assert card_peak(name, dtype) == (None if tflops is None else tflops * 1e12)


@pytest.mark.parametrize(
    ("card", "checkpointing", "mfu"), [(200.0, False, 0.375), (None, False, None), (200.0, True, None)]
)
def test_mfu_counts_the_real_tokens_alone(card: float | None, checkpointing: bool, mfu: float | None) -> None:
    """100 operations a second are 10 for each of 10 real tokens; of 40 computed positions 30 are real."""
    row: dict[str, Any] = {
        "stage": "finetune",
        "contender": "sdpa",
        "position": "rope",
        "group_by_length": True,
        "dtype": "bf16",
        "gradient_checkpointing": checkpointing,
        "status": "completed",
    }
    add_segments(row, [{"tokens": 30, "computed": 40, "seconds": 3.0, "steps": 1, "memory_MiB": 1.0}])
    add_work(row, {"flops": 300, "tokens": 30}, 1000.0, card)
    assert row["tflops_per_s"] * 1e12 == pytest.approx(100.0) and row["share_of_peak"] == pytest.approx(0.1)
    assert row.get("mfu") == (None if mfu is None else pytest.approx(mfu))
    assert ("MFU" in report([row], {})) == (mfu is not None)

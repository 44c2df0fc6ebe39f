"""What a run has spent: time over its lives, and a GPU's energy; and the speed of one document."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.samples import SEQ_LEN, TinyTokenizer, make_amp, make_classifier, make_data, make_journal
from xcls.data.batching import ClassBatches
from xcls.runs.record import read_record
from xcls.stages.texts import _tokenize_ms
from xcls.train import scoring
from xcls.train.energy import energy_counter
from xcls.train.scoring import latency
from xcls.train.spent import Spent


def test_time_adds_up_over_the_lives_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("xcls.train.spent.time", SimpleNamespace(monotonic=lambda: now[0]))
    with make_journal(tmp_path):
        now[0] += 5.0
    first = read_record(tmp_path)
    assert first.costs["wall_seconds"] == 5.0 and first.costs["energy_wh"] is None
    now[0] += 1000.0  # nobody ran it
    again = Spent(first.costs)
    now[0] += 2.0
    assert again.costs() == {"wall_seconds": 7.0, "energy_wh": None}


class Driver:
    """Stands in for libnvidia-ml: two GPUs with a counter each; codes other than 0 are refusals."""

    def __init__(self, *names: str, counts: bool = True) -> None:
        self.names, self.counts, self.counter = names, counts, dict.fromkeys(names, 9_000_000)

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.names)
        return 0

    def nvmlDeviceGetHandleByUUID(self, name: Any, handle: Any) -> int:
        found = [place for place, own in enumerate(self.names) if own.startswith(name.value.decode())]
        handle._obj.value = found[0] + 1 if found else None
        return 0 if found else 6

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        handle._obj.value = index.value + 1
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, value: Any) -> int:
        value._obj.value = self.counter[self.names[handle.value - 1]]
        return 0 if self.counts else 3


def gpu_of(monkeypatch: pytest.MonkeyPatch, **properties: str) -> None:
    """What torch knows of the GPU."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**properties))


def test_the_energy_counter_of_a_gpu_is_read_from_start_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver("GPU-xy", "GPU-ab")
    gpu_of(monkeypatch, uuid="ab")
    monkeypatch.setattr("xcls.train.spent.energy_counter", lambda device: energy_counter(device, lambda name: driver))
    spent = Spent({"wall_seconds": 1.0, "energy_wh": 2.0})
    spent.watch(torch.device("cuda"))
    driver.counter["GPU-ab"] += 3_600_000  # millijoules: one watt-hour
    assert spent.costs()["energy_wh"] == pytest.approx(3.0)
    driver.counts = False  # the driver does not answer any more: the last reading stands
    driver.counter["GPU-ab"] += 3_600_000
    assert spent.costs()["energy_wh"] == pytest.approx(3.0)


def test_without_a_counter_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda:0")

    def no_driver(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    gpu_of(monkeypatch, uuid="ab")
    assert energy_counter(torch.device("cpu"), lambda name: Driver("GPU-ab")) is None
    assert energy_counter(cuda, no_driver) is None
    assert energy_counter(cuda, lambda name: SimpleNamespace()) is None  # a driver without these calls
    assert energy_counter(cuda, lambda name: Driver("GPU-ab", counts=False)) is None
    assert energy_counter(cuda, lambda name: Driver("GPU-xy")) is None  # torch's is a part of a divided one
    assert energy_counter(cuda, lambda name: Driver("GPU-ab"))() == 9_000_000


@pytest.mark.parametrize(
    ("names", "environment", "index", "reads"),
    [
        (("GPU-xy",), {}, 0, "GPU-xy"),
        (("GPU-xy", "GPU-ab"), {"CUDA_VISIBLE_DEVICES": "GPU-ab,GPU-xy"}, 0, "GPU-ab"),
        (("GPU-xy", "GPU-ab"), {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, 0, "GPU-ab"),
        (("GPU-xy", "GPU-ab"), {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, 1, "GPU-ab"),
        (("GPU-xy", "GPU-ab"), {"CUDA_VISIBLE_DEVICES": "1"}, 0, None),  # which one that is, CUDA decides by speed
        (("GPU-xy", "GPU-ab"), {"CUDA_VISIBLE_DEVICES": "MIG-1"}, 0, None),
    ],
)
def test_an_old_torch_s_gpu_is_found_by_what_is_visible(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], environment: dict[str, str], index: int, reads: str | None
) -> None:
    gpu_of(monkeypatch)  # torch before 2.4 knows no uuid
    driver = Driver(*names)
    driver.counter = {name: place for place, name in enumerate(names)}
    counter = energy_counter(torch.device("cuda", index), lambda name: driver, environment)
    assert (counter is None) is (reads is None) and (counter is None or counter() == driver.counter[reads])


def test_one_document_at_a_time_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen = [0.0], []

    def tick() -> float:
        clock[0] += 0.5
        return clock[0]

    model, rows = make_classifier("sdpa"), make_data().test
    maker = ClassBatches(encoded=rows.encoded, labels=rows.labels)
    plain = model.forward

    def forward(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        seen.append(tuple(ids.shape))
        return plain(ids, mask)

    monkeypatch.setattr(model, "forward", forward)
    monkeypatch.setattr(scoring, "time", SimpleNamespace(perf_counter=tick))
    found = latency(model, maker, rows.encoded.lengths, amp=make_amp(), most=10, seconds=1e9)
    assert found == {"latency_ms": 500.0, "latency_p95_ms": 500.0}
    assert (
        len(seen) == 11 and {shape[0] for shape in seen} == {1} and seen[0][1] == max(rows.encoded.lengths) <= SEQ_LEN
    )
    seen.clear()
    latency(model, maker, rows.encoded.lengths, amp=make_amp(), most=10, seconds=0.0)
    assert len(seen) == 6  # the warm-up and five


def test_a_call_in_which_a_graph_was_compiled_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = iter(range(10_000))
    monkeypatch.setattr(scoring, "compiled_graphs", lambda: next(graphs))
    rows = make_data().test
    maker = ClassBatches(encoded=rows.encoded, labels=rows.labels)
    found = latency(make_classifier("sdpa"), maker, rows.encoded.lengths, amp=make_amp(), most=4)
    assert found == {"latency_ms": None, "latency_p95_ms": None}


def test_the_speed_of_tokenisation_is_per_document() -> None:
    texts = [f"document {row}" for row in range(500)]
    assert 0 < _tokenize_ms(texts, TinyTokenizer(), seq_len=SEQ_LEN) < 1000
    assert np.isfinite(_tokenize_ms(texts[:1], TinyTokenizer(), seq_len=SEQ_LEN))

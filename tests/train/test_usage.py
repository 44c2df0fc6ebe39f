"""What a run has spent: time over its lives, and a GPU's energy; and the speed of one document."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.samples import make_amp, make_classifier, make_data, make_logger
from xcls.data.batching import ClassBatches
from xcls.runs.record import read_record
from xcls.train import scoring
from xcls.train.scoring import latency
from xcls.train.usage import ResourceUsage


def test_time_adds_up_over_the_lives_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("xcls.train.usage.time", SimpleNamespace(monotonic=lambda: now[0]))
    with make_logger(tmp_path):
        now[0] += 5.0
    first = read_record(tmp_path)
    assert first.costs["wall_seconds"] == 5.0 and first.costs["energy_wh"] is None
    now[0] += 1000.0  # nobody ran it
    again = ResourceUsage(first.costs)
    now[0] += 2.0
    assert again.costs() == {"wall_seconds": 7.0, "energy_wh": None}


class Driver:
    """Stands in for pynvml and one GPU with a counter of millijoules."""

    def __init__(self, uuid: str = "GPU-ab", counts: bool = True) -> None:
        self.uuid, self.counts, self.counter = uuid, counts, 9_000_000

    def nvmlInit(self) -> None:
        """Nothing to do."""

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != self.uuid:
            raise RuntimeError("not found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if not self.counts:
            raise RuntimeError("not supported")
        return self.counter


def test_the_energy_counter_of_a_gpu_is_read_from_start_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="ab"))
    usage = ResourceUsage({"wall_seconds": 1.0, "energy_wh": 2.0})
    usage.watch(torch.device("cuda"))
    driver.counter += 3_600_000  # millijoules: one watt-hour
    assert usage.costs()["energy_wh"] == pytest.approx(3.0)
    driver.counts = False  # the driver does not answer any more: the last reading stands
    assert usage.costs()["energy_wh"] == pytest.approx(3.0)


@pytest.mark.parametrize("driver", [None, Driver(counts=False), Driver("GPU-xy")])
def test_without_a_counter_there_is_none(driver: Driver | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No package, a GPU that does not count, a part of a divided one."""
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="ab"))
    usage = ResourceUsage({})
    usage.watch(torch.device("cuda"))
    assert usage.costs()["energy_wh"] is None


def test_latency_is_that_of_one_document_at_a_time_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = make_classifier("sdpa"), make_data().test
    collator, seen, plain = ClassBatches(encoded=rows.encoded, labels=rows.labels), [], model.forward
    monkeypatch.setattr(model, "forward", lambda ids, mask: seen.append(tuple(ids.shape)) or plain(ids, mask))
    clock = iter(range(1000))
    monkeypatch.setattr(scoring, "time", SimpleNamespace(perf_counter=lambda: 0.5 * next(clock)))
    found = latency(model, collator, amp=make_amp(), most=10, seconds=1e9)
    assert found == {"latency_ms": 500.0, "latency_p95_ms": 500.0}
    assert len(seen) == 11 and {shape[0] for shape in seen} == {1} and seen[0][1] == max(rows.encoded.lengths)

"""Clock, memory, versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import ROOT
from tests.samples import HARDWARE
from xcls.train import cost
from xcls.train.cost import StepClock
from xcls.train.provenance import commit, describe_device, versions


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes when a test says so."""
    moment = [0.0]
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: moment[0]))
    return moment


def step(clock: StepClock, now: list[float], seconds: float, positions: int = 40, redrew: bool = False) -> None:
    clock.start()
    now[0] += seconds
    clock.stop(tokens=30, padded_tokens=positions, redrew=redrew)


def test_first_step_and_compiling_steps_are_set_aside(monkeypatch: pytest.MonkeyPatch, now: list[float]) -> None:
    graphs = [0]
    monkeypatch.setattr(cost, "compiled_graphs", lambda: graphs[0])
    clock = StepClock()
    assert {name for name, value in clock.costs(10).items() if value is not None} == {
        "set_aside_s",
        "excluded_s",
        "excluded_steps",
    }
    step(clock, now, 5.0)
    assert clock.steps == 0 and clock.set_aside == 5.0
    step(clock, now, 1.0)
    graphs[0] = 2
    step(clock, now, 7.0)
    now[0] += 100.0  # an evaluation
    step(clock, now, 1.0)
    assert (clock.steps, clock.seconds, clock.set_aside) == (2, 2.0, 12.0)
    assert clock.costs(10) == {
        "time_per_step": 1.0,
        "time_per_epoch": 10.0,
        "tokens_per_s": 30.0,
        "padded_tokens_per_s": 40.0,
        "set_aside_s": 12.0,
        "excluded_s": 0.0,
        "excluded_steps": 0,
    }


def test_a_stall_is_left_out_and_told(now: list[float]) -> None:
    """Ten epochs' worth of steps of two shapes, 1 s and 2 s; one of the short ones stalls for a minute."""
    clock = StepClock()
    step(clock, now, 9.0)
    for number in range(20):
        step(clock, now, 60.0 if number == 7 else 1.0, positions=100)
        step(clock, now, 2.0, positions=200)
    costs = clock.costs(10)
    assert costs["time_per_step"] == pytest.approx(1.5) and costs["time_per_epoch"] == pytest.approx(15.0)
    assert costs["tokens_per_s"] == pytest.approx(20.0) and clock.seconds == pytest.approx(119.0)
    assert (costs["excluded_steps"], costs["excluded_s"], costs["set_aside_s"]) == (1, pytest.approx(59.0), 9.0)


def test_new_features_are_no_stall(now: list[float]) -> None:
    """Every tenth step draws new features and takes thrice as long: that is a cost of the mechanism."""
    clock = StepClock()
    step(clock, now, 9.0)
    for number in range(100):
        step(clock, now, 3.0 if number % 10 == 0 else 1.0, positions=40 + number % 4, redrew=number % 10 == 0)
    assert clock.costs(1)["time_per_step"] == pytest.approx(1.2) and clock.costs(1)["excluded_steps"] == 0


def test_a_clock_goes_on_from_its_state(now: list[float], tmp_path: Path) -> None:
    clock = StepClock()
    for number in range(12):
        step(clock, now, 30.0 if number == 5 else 1.0)
    torch.save(clock.state(), tmp_path / "clock.pt")
    other = StepClock.restored(torch.load(tmp_path / "clock.pt", weights_only=True))
    assert other.costs(5) == clock.costs(5) and other.costs(5)["excluded_steps"] == 1
    step(other, now, 1.0)  # the first of its process
    assert other.steps == clock.steps == 11
    step(other, now, 40.0)
    assert other.costs(5)["time_per_step"] == pytest.approx(1.0) and other.costs(5)["excluded_s"] == pytest.approx(
        29.0 + 39.0
    )


MEMORY = """
import torch
from xcls.train.cost import MIB, MemoryGauge
gauge = MemoryGauge(torch.device("cpu"))
gauge.pause()
block = torch.ones(64 * MIB // 4)  # an evaluation
del block
gauge.resume()
gauge.pause()
assert gauge.peaks["rss_growth_MiB"] < 40, gauge.peaks
gauge.resume()
block = torch.ones(64 * MIB // 4)  # a step
gauge.pause()
assert 60 < gauge.peaks["rss_growth_MiB"] < 110, gauge.peaks
assert gauge.peaks["max_rss_MiB"] > gauge.before
assert gauge.peaks["max_gpu_mem_MiB"] is None
print("measured")
"""


def test_memory_leaves_evaluations_out() -> None:
    if cost._status("VmHWM") is None:
        pytest.skip("no /proc/self/status here")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    # in a process of its own: in this one, freed memory of other tests would be used again and nothing would grow
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, cwd=ROOT, env=plain)
    assert done.stdout.strip() == "measured", done.stderr


def test_versions_are_plain_and_survive_missing_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    found = versions()
    assert found["torch"] == str(torch.__version__) and type(found["torch"]) is str
    monkeypatch.setenv("PATH", "/nowhere")
    assert commit() is None
    described = describe_device(torch.device(HARDWARE.device))
    assert described["kind"] == "cpu" and described["threads"] >= 1 and described["name"]

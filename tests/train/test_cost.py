"""Clock, memory, versions."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import ROOT
from tests.samples import HARDWARE
from xcls.train import cost
from xcls.train.cost import StepClock
from xcls.train.versions import commit, describe_device, versions


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes when a test says so."""
    moment = [0.0]
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: moment[0]))
    return moment


def step(clock: StepClock, now: list[float], seconds: float) -> None:
    clock.start()
    now[0] += seconds
    clock.stop(tokens=30, padded_tokens=40)


def test_first_step_and_compiling_steps_are_set_aside(monkeypatch: pytest.MonkeyPatch, now: list[float]) -> None:
    graphs = [0]
    monkeypatch.setattr(cost, "compiled_graphs", lambda: graphs[0])
    clock = StepClock()
    assert {name for name, value in clock.costs(10).items() if value is not None} == {"set_aside_s"}
    step(clock, now, 5.0)
    assert clock.steps == 0 and clock.set_aside == 5.0
    step(clock, now, 1.0)
    graphs[0] = 2
    step(clock, now, 7.0)
    now[0] += 100.0  # an evaluation
    step(clock, now, 2.0)
    assert (clock.steps, clock.seconds, clock.set_aside) == (2, 3.0, 12.0)
    assert clock.costs(10) == {"time_per_step": 1.5, "time_per_epoch": 15.0, "tokens_per_s": 20.0, "padded_tokens_per_s": pytest.approx(80 / 3), "set_aside_s": 12.0}


def test_a_clock_goes_on_from_its_state(now: list[float]) -> None:
    clock = StepClock()
    for _ in range(3):
        step(clock, now, 1.0)
    other = StepClock(**clock.state())
    assert other.costs(5) == clock.costs(5)
    step(other, now, 1.0)  # the first of its process
    assert other.steps == clock.steps


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

"""Clock, memory, versions."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch

from tests.conftest import ROOT
from tests.samples import HARDWARE
from xcls.train import cost
from xcls.train.cost import StepClock
from xcls.train.versions import commit, describe_device, versions


def step(clock: StepClock, seconds: float) -> None:
    clock.start()
    time.sleep(seconds)
    clock.stop(tokens=30, padded_tokens=40)


def test_first_step_and_compiling_steps_are_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = [0]
    monkeypatch.setattr(cost, "compiled_graphs", lambda: graphs[0])
    clock = StepClock()
    assert set(clock.costs(10).values()) == {None}
    step(clock, 0.05)
    assert clock.steps == 0 and clock.set_aside >= 0.05
    step(clock, 0.01)
    graphs[0] = 2
    step(clock, 0.05)
    step(clock, 0.01)
    assert clock.steps == 2 and 0.02 <= clock.seconds < 0.05 and clock.set_aside >= 0.1
    costs = clock.costs(10)
    assert costs["time_per_epoch"] == pytest.approx(10 * costs["time_per_step"])
    assert costs["tokens_per_s"] == pytest.approx(60 / clock.seconds)
    assert costs["padded_tokens_per_s"] == pytest.approx(80 / clock.seconds)


def test_a_clock_goes_on_from_its_state() -> None:
    clock = StepClock()
    for _ in range(3):
        step(clock, 0.001)
    other = StepClock(**clock.state())
    assert other.costs(5) == clock.costs(5)
    step(other, 0.001)  # the first of its process
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

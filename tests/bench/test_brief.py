"""A brief bench times training alone; memory of several lengths comes from one process as long as it can tell them apart."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from tests.bench.test_measures import case
from xcls.bench import worker
from xcls.train.cost import forget_peak


def events_of(measure: Any, *cases: Any, **job: Any) -> list[tuple[str, dict[str, Any]]]:
    told: list[tuple[str, dict[str, Any]]] = []
    measure({"cases": [asdict(one) for one in cases], "brief": True, **job}, lambda event, about: told.append((event, about)))
    return told


def test_a_brief_bench_times_training_alone() -> None:
    cases = [case(name, "step") for name in ("sdpa", "performer")]
    told = events_of(worker.measure_time, *cases, rounds=3, least_rounds=3, seconds=60.0)
    assert {event for event, _ in told} == {"begin", "timed"}  # no rates of the machine
    timed = [about for event, about in told if event == "timed"]
    assert [(about["case"], list(about["times"]), len(about["times"]["training"])) for about in timed] == [
        (0, ["training"], 3), (1, ["training"], 3)
    ]  # fmt: skip


@pytest.mark.parametrize(("tells", "measured"), [(True, [0, 1]), (False, [0])])
def test_a_process_measures_the_next_length_only_where_it_can_tell(monkeypatch: Any, tells: bool, measured: list[int]) -> None:
    monkeypatch.setattr(worker, "forget_peak", lambda most: tells)
    told = events_of(worker.measure_memory, case("sdpa", "step"), case("sdpa", "step", seq_len=32))
    assert [about["case"] for event, about in told if event == "memory"] == measured
    assert all(about.keys() == {"case", "training_MiB"} for event, about in told if event == "memory")


def test_a_peak_cannot_be_forgotten_below_what_is_in_use() -> None:
    assert not forget_peak(1.0)

"""A brief bench measures training alone."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tests.bench.test_measures import case
from xcls.bench import worker


def events_of(measure: Any, *cases: Any, **job: Any) -> list[tuple[str, dict[str, Any]]]:
    told: list[tuple[str, dict[str, Any]]] = []
    measure(
        {"cases": [asdict(one) for one in cases], "brief": True, **job},
        lambda event, about: told.append((event, about)),
    )
    return told


def test_a_brief_bench_times_training_alone() -> None:
    cases = [case(name, "step") for name in ("sdpa", "performer")]
    told = events_of(worker.measure_time, *cases, rounds=3, least_rounds=3, seconds=60.0)
    assert {event for event, _ in told} == {"begin", "timed"}  # no rates of the machine
    timed = [about for event, about in told if event == "timed"]
    assert [(about["case"], list(about["times"]), len(about["times"]["training"])) for about in timed] == [
        (0, ["training"], 3),
        (1, ["training"], 3),
    ]


def test_a_brief_bench_measures_the_memory_of_training_alone() -> None:
    told = events_of(worker.measure_memory, case("sdpa", "step"))
    assert [about.keys() for event, about in told if event == "memory"] == [{"case", "training_MiB"}]

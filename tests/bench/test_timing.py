"""Interleaved rounds: their order, how many there are, and what a failure costs."""

from __future__ import annotations

from typing import Any

import pytest

from xcls.bench.timing import Series, Timer, interleave


class Clock:
    """Time that passes only where a call says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """A trial with known times: every call takes so many seconds, the first one more; call number `breaks` raises."""

    def __init__(self, name: str, seconds: float, *, breaks: int | None = None, first: float = 0.0) -> None:
        self.name, self.seconds, self.breaks, self.first, self.calls = name, seconds, breaks, first, 0
        self.clock, self.log = Clock(), [""]

    def prepare(self, measure: str) -> None:
        self.mode = measure

    def training(self) -> None:
        assert self.mode == "training"
        self.calls += 1
        self.log[0] += self.name
        if self.calls == self.breaks:
            raise RuntimeError("no more memory")
        self.clock.now += self.seconds + (self.first if self.calls == 1 else 0.0)


def run(*trials: Fake, rounds: int, seconds: float = 100.0, least: int = 3, **more: Any) -> tuple[list[Series], str]:
    clock, log = Clock(), [""]
    for trial in trials:
        trial.clock, trial.log = clock, log
    everything = [Series(trial, ("training",), **more) for trial in trials]
    timer = Timer(wait=lambda: None, clock=clock)
    limits: dict[str, Any] = {"rounds": rounds, "seconds": seconds, "least": least}
    interleave(everything, timer, **limits)
    return everything, log[0]


def test_rounds_alternate() -> None:
    assert run(Fake("a", 0.5), Fake("b", 0.25), rounds=3)[1] == "aabb" + "ab" * 3  # two calls each to warm up


def test_times_are_per_call_and_short_calls_are_repeated() -> None:
    (slow, quick), log = run(Fake("s", 0.5), Fake("q", 0.001), rounds=4)
    assert slow.times["training"] == [0.5] * 4 and quick.times["training"] == pytest.approx([0.001] * 4)
    assert log.count("q") == 2 + 4 * 10


@pytest.mark.parametrize("least", [3, 1])
def test_a_slow_one_stops_after_the_least_rounds_and_the_others_go_on(least: int) -> None:
    (slow, quick), _ = run(Fake("s", 9.0), Fake("q", 0.1), rounds=7, seconds=10.0, least=least)
    assert (slow.rounds, quick.rounds) == (least, 7)


def test_what_takes_long_is_called_once_to_warm_up() -> None:
    (long,), log = run(Fake("l", 6.0), rounds=2)
    assert log == "l" + "ll" and long.times["training"] == [6.0, 6.0]


def test_a_failure_is_one_series_and_not_the_bench() -> None:
    (bad, good), log = run(Fake("x", 0.5, breaks=3), Fake("g", 0.5), rounds=3)
    assert "no more memory" in str(bad.cause) and good.rounds == 3 and log.count("x") == 3


def test_the_first_call_stands_apart_as_compile_time() -> None:
    (series,), _ = run(Fake("c", 0.5, first=9.5), rounds=3, compiled=True)
    assert series.row()["compile_s"] == pytest.approx(9.5) and series.times["training"] == [0.5] * 3


def test_a_row_has_medians_and_extremes() -> None:
    row = Series(None, ("training",), times={"training": [0.004, 0.002, 0.008]}).row()
    assert [row[f"training_{word}ms"] for word in ("", "min_", "max_")] == [4.0, 2.0, 8.0]
    assert row["rounds"] == 3


def test_the_device_is_waited_for_on_both_sides() -> None:
    clock = Clock()

    def wait() -> None:
        clock.now += 3.0

    assert Timer(wait=wait, clock=clock).sample(lambda: None, 2) == 1.5

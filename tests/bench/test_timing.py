"""Interleaved rounds: their order, how many there are, and what a failure costs."""

from __future__ import annotations

from typing import Callable

import pytest

from xcls.bench.timing import LEAST_ROUNDS, Series, interleave

pytestmark = pytest.mark.slow


class Clock:
    """Time that passes only where a call says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """A trial with known times: every call takes so many seconds; call number `breaks` raises."""

    def __init__(self, name: str, seconds: float, clock: Clock, log: list[str], breaks: int | None = None) -> None:
        self.name, self.seconds, self.clock, self.log, self.breaks, self.calls = name, seconds, clock, log, breaks, 0

    def prepare(self, measure: str) -> None:
        self.mode = measure

    def training(self) -> None:
        assert self.mode == "training"
        self.calls += 1
        self.log.append(self.name)
        if self.calls == self.breaks:
            raise RuntimeError("no more memory")
        self.clock.now += self.seconds


def run(
    rounds: int, seconds: float, make: Callable[[Clock, list[str]], list[Fake]], **limits: int
) -> tuple[list[Series], list[str], list[str]]:
    clock, log, faults = Clock(), [], []
    everything = [Series(fake, ("training",)) for fake in make(clock, log)]

    def failed(series: Series, error: Exception) -> None:
        series.cause = str(error)
        faults.append(str(error))

    interleave(
        everything,
        rounds=rounds,
        seconds=seconds,
        wait=lambda: None,
        begin=lambda s: None,
        failed=failed,
        clock=clock,
        **limits,
    )
    return everything, log, faults


def test_host_and_device_have_times_of_their_own() -> None:
    """A device that takes 3 s for what the host launches in 0.5 s."""
    clock, now = Clock(), {"device": 0.0}

    class Ahead(Fake):
        def training(self) -> None:
            super().training()
            now["device"] = max(now["device"], self.clock.now - self.seconds) + 3.0

    class Marked:
        def __init__(self) -> None:
            self.at = max(now["device"], clock.now)

        def elapsed_time(self, later: Marked) -> float:
            return 1000 * (later.at - self.at)

    def wait() -> None:
        clock.now = max(clock.now, now["device"])

    series = Series(Ahead("a", 0.5, clock, []), ("training",))
    interleave(
        [series],
        rounds=2,
        seconds=100.0,
        wait=wait,
        begin=lambda s: None,
        failed=lambda s, e: None,
        clock=clock,
        mark=Marked,
    )
    assert (series.times["training"], series.host["training"], series.device["training"]) == (
        [3.0] * 2,
        [0.5] * 2,
        [3.0] * 2,
    )


def test_rounds_alternate() -> None:
    _, log, _ = run(3, 100.0, lambda c, log: [Fake("a", 0.5, c, log), Fake("b", 0.25, c, log)])
    assert "".join(log) == "aabb" + "ab" * 3  # two calls each to warm up


def test_times_are_per_call_and_short_calls_are_repeated() -> None:
    (slow, quick), log, _ = run(4, 100.0, lambda c, log: [Fake("s", 0.5, c, log), Fake("q", 0.001, c, log)])
    assert slow.times["training"] == [0.5] * 4
    assert quick.times["training"] == pytest.approx([0.001] * 4)
    assert quick.calls["training"] == 10 and log.count("q") == 2 + 4 * 10


def test_a_slow_one_stops_after_the_least_rounds_and_the_others_go_on() -> None:
    (slow, quick), _, _ = run(7, 10.0, lambda c, log: [Fake("s", 4.0, c, log), Fake("q", 0.1, c, log)])
    assert (slow.rounds, quick.rounds) == (LEAST_ROUNDS, 7)


def test_fewer_rounds_than_the_usual_least_can_be_asked_for() -> None:
    (slow, quick), _, _ = run(7, 10.0, lambda c, log: [Fake("s", 9.0, c, log), Fake("q", 0.1, c, log)], least=1)
    assert (slow.rounds, quick.rounds) == (1, 7)


def test_what_has_run_long_before_is_not_run_again_to_warm_up() -> None:
    clock, log = Clock(), []
    everything = [
        Series(Fake("l", 6.0, clock, log), ("training",), ran={"training": 6.5}),
        Series(Fake("s", 0.5, clock, log), ("training",), ran={"training": 0.6}),
    ]
    interleave(
        everything,
        rounds=2,
        seconds=100.0,
        wait=lambda: None,
        begin=lambda s: None,
        failed=lambda s, e: None,
        clock=clock,
    )
    assert "".join(log) == "ss" + "ls" * 2 and everything[0].times["training"] == [6.0, 6.0]


def test_a_failure_is_one_series_and_not_the_bench() -> None:
    (bad, good), log, faults = run(3, 100.0, lambda c, log: [Fake("x", 0.5, c, log, breaks=3), Fake("g", 0.5, c, log)])
    assert faults == ["no more memory"] and bad.cause == "no more memory"
    assert good.rounds == 3 and log.count("x") == 3


def test_the_first_call_stands_apart_as_compile_time() -> None:
    clock = Clock()

    class Compiled(Fake):
        def training(self) -> None:
            self.clock.now += 9.5 if self.calls == 0 else 0.0
            super().training()

    series = Series(Compiled("c", 0.5, clock, []), ("training",), compiled=True)
    interleave(
        [series],
        rounds=3,
        seconds=100.0,
        wait=lambda: None,
        begin=lambda s: None,
        failed=lambda s, e: None,
        clock=clock,
    )
    assert series.compile_seconds() == pytest.approx(9.5)
    assert series.times["training"] == [0.5] * 3

"""Interleaved timing: one process, rounds A B C … A B C …, so that a slow moment of the machine slows all equally."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Callable, Sequence

from xcls.bench.worker import cause_of
from xcls.train.faults import free_memory

SAMPLE = 0.01  # seconds: shorter calls are repeated within one sample
MOST_CALLS = 100  # within one sample
LONG = 5.0  # seconds: after a call this long no second call is needed to warm up, unless it was compiled


@dataclass
class Series:
    """The times of one trial: seconds per measure, in the order of the rounds.

    `trial` has a method for each measure, without arguments, and `prepare(measure)`, which is not timed.
    """

    trial: Any
    measures: Sequence[str]
    compiled: bool = False
    long: float = LONG  # seconds: see LONG
    times: dict[str, list[float]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)  # within one sample
    first: dict[str, float] = field(default_factory=dict)  # seconds of the very first call, compilation included
    spent: float = 0.0  # seconds in rounds
    cause: str | None = None  # why it failed

    @property
    def rounds(self) -> int:
        """The number of complete rounds."""
        return min((len(self.times.get(measure, [])) for measure in self.measures), default=0)

    def row(self) -> dict[str, Any]:
        """Medians and extremes, ms.

        `compile_s`: how much longer the first calls took than the median. Only `cause` if the trial failed.
        """
        if self.cause is not None:
            return {"cause": self.cause}
        found: dict[str, Any] = {"rounds": self.rounds, "path": getattr(self.trial, "path", None)}
        for measure, seconds in self.times.items():
            found[f"{measure}_ms"] = 1000.0 * median(seconds)
            found[f"{measure}_min_ms"], found[f"{measure}_max_ms"] = 1000.0 * min(seconds), 1000.0 * max(seconds)
        if self.compiled:
            found["compile_s"] = sum(max(0.0, self.first[m] - median(self.times[m])) for m in self.measures)
        return found


@dataclass(frozen=True)
class Timer:
    """How a call is timed. wait(): waits until the device has finished all its work."""

    wait: Callable[[], None]
    clock: Callable[[], float] = time.perf_counter

    def sample(self, call: Callable[[], Any], calls: int) -> float:
        """Seconds per call: the mean over `calls`; waits for the device before and after."""
        self.wait()
        start = self.clock()
        for _ in range(calls):
            call()
        self.wait()
        return (self.clock() - start) / calls

    def warm_up(self, series: Series) -> None:
        """Calls every measure once or twice, and sets how many calls make a sample."""
        for measure in series.measures:
            series.trial.prepare(measure)
            call = getattr(series.trial, measure)
            series.first[measure] = took = self.sample(call, 1)
            if took < series.long or series.compiled:
                took = self.sample(call, 1)
            series.calls[measure] = max(1, min(MOST_CALLS, round(SAMPLE / max(took, 1e-9))))

    def one_round(self, series: Series) -> None:
        """One sample of every measure."""
        began = self.clock()
        for measure in series.measures:
            series.trial.prepare(measure)
            taken = self.sample(getattr(series.trial, measure), series.calls[measure])
            series.times.setdefault(measure, []).append(taken)
        series.spent += self.clock() - began


def interleave(
    everything: Sequence[Series],
    timer: Timer,
    *,
    rounds: int,
    least: int,
    seconds: float,
    begin: Callable[[int], None] = lambda place: None,
) -> None:
    """Times `everything` in `rounds` interleaved rounds, at least `least` of each.

    After `seconds`, only series that have used less than their equal share continue: so a slow mechanism does not take
    the rounds of fast ones. begin(index in `everything`) is called before every turn. A series that raises gets its
    `cause` and loses its trial; the others continue.
    """
    start = timer.clock()

    def turn(place: int, action: Callable[[Series], None]) -> None:
        series = everything[place]
        begin(place)
        try:
            action(series)
        except Exception as error:  # any error belongs to this mechanism
            series.cause, series.trial = cause_of(error), None
            free_memory()

    for place in range(len(everything)):
        turn(place, timer.warm_up)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds):
            late = number >= least and timer.clock() - start > seconds
            for place, series in enumerate(everything):
                if series.cause is None and not (late and series.spent > seconds / len(everything)):
                    turn(place, timer.one_round)
            gc.collect()
    finally:
        if collecting:
            gc.enable()

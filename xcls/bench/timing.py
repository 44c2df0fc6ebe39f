"""Interleaved timing: one process, rounds A B C … A B C …, so that a slow moment of the machine hits all alike."""

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
LONG = 5.0  # seconds: a call that long needs no second one to warm up, unless it was compiled


@dataclass
class Series:
    """Everything measured of one trial: seconds by measure, in the order of the rounds.

    `trial` has a method for each measure, without arguments, and `prepare(measure)`, which is not timed.
    """

    trial: Any
    measures: Sequence[str]
    compiled: bool = False
    long: float = LONG  # seconds: a call that long needs no second one to warm up
    times: dict[str, list[float]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)  # within one sample
    first: dict[str, float] = field(default_factory=dict)  # seconds of the very first call, compilation included
    spent: float = 0.0  # seconds in rounds
    cause: str | None = None  # why it failed

    @property
    def rounds(self) -> int:
        """Rounds that are complete."""
        return min((len(self.times.get(measure, [])) for measure in self.measures), default=0)

    def row(self) -> dict[str, Any]:
        """Medians and extremes, ms.

        `compile_s`: how much longer the first calls took than they do now. Of one that failed, its `cause`.
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
    """How one call is timed. wait(): until the device is done with all that it was given."""

    wait: Callable[[], None]
    clock: Callable[[], float] = time.perf_counter

    def sample(self, call: Callable[[], Any], calls: int) -> float:
        """Seconds of one call: the mean over `calls`, the device waited for on both sides."""
        self.wait()
        start = self.clock()
        for _ in range(calls):
            call()
        self.wait()
        return (self.clock() - start) / calls

    def warm_up(self, series: Series) -> None:
        """Calls every measure once or twice, and settles how many calls make a sample."""
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
    """Fills `everything`: `rounds` rounds over all, at least `least` of each.

    Once `seconds` are used up, only those go on that have not had their even share of them: one slow mechanism does
    not take the rounds of the quick ones. begin(place in `everything`) is called before every turn. One that raises
    keeps its `cause` and no trial; the rest goes on.
    """
    start = timer.clock()

    def turn(place: int, action: Callable[[Series], None]) -> None:
        series = everything[place]
        begin(place)
        try:
            action(series)
        except Exception as error:  # whatever it is, it is this mechanism's
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

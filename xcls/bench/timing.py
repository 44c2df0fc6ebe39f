"""Interleaved timing: one process, rounds A B C … A B C …, so that a slow moment of the machine hits all alike."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field
from statistics import median
from typing import Callable, Protocol, Sequence

LEAST_ROUNDS = 3  # unless told otherwise
SAMPLE = 0.01  # seconds: shorter calls are repeated within one sample
MOST_CALLS = 100  # within one sample
LONG = 5.0  # seconds: a call that long needs no second one to warm up, unless it was compiled


class Timed(Protocol):
    """What can be timed: a method per measure, without arguments, and what is done before it, off the clock."""

    def prepare(self, measure: str) -> None:
        """Gets ready for a measure."""


@dataclass
class Series:
    """Everything measured of one trial: seconds by measure, in the order of the rounds."""

    trial: Timed
    measures: Sequence[str]
    compiled: bool = False
    long: float = LONG  # seconds: a call that long needs no second one to warm up
    times: dict[str, list[float]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)  # within one sample
    first: dict[str, float] = field(default_factory=dict)  # seconds of the very first call, compilation included
    ran: dict[str, float] = field(default_factory=dict)  # seconds of a call made before the rounds, for another purpose
    spent: float = 0.0  # seconds in rounds
    cause: str | None = None  # why it failed

    @property
    def rounds(self) -> int:
        """Rounds that are complete."""
        return min((len(self.times.get(measure, [])) for measure in self.measures), default=0)

    def compile_seconds(self) -> float:
        """How much longer the first calls took than they do now: compilation, where there is one."""
        return sum(max(0.0, self.first[m] - median(self.times[m])) for m in self.measures if self.times.get(m))


def sample(call: Callable[[], None], calls: int, wait: Callable[[], None], clock: Callable[[], float]) -> float:
    """Seconds of one call, as the mean over `calls` of them, with the device waited for on both sides."""
    wait()
    start = clock()
    for _ in range(calls):
        call()
    wait()
    return (clock() - start) / calls


def warm_up(series: Series, wait: Callable[[], None], clock: Callable[[], float]) -> None:
    """Calls every measure once or twice, and settles how many calls make a sample. What has run long is warm."""
    for measure in series.measures:
        if series.ran.get(measure, -1.0) >= series.long and not series.compiled:
            series.first[measure], series.calls[measure] = series.ran[measure], 1
            continue
        series.trial.prepare(measure)
        call = getattr(series.trial, measure)
        series.first[measure] = took = sample(call, 1, wait, clock)
        if took < series.long or series.compiled:
            took = sample(call, 1, wait, clock)
        series.calls[measure] = max(1, min(MOST_CALLS, round(SAMPLE / max(took, 1e-9))))


def one_round(series: Series, wait: Callable[[], None], clock: Callable[[], float]) -> None:
    """One sample of every measure."""
    began = clock()
    for measure in series.measures:
        series.trial.prepare(measure)
        taken = sample(getattr(series.trial, measure), series.calls[measure], wait, clock)
        series.times.setdefault(measure, []).append(taken)
    series.spent += clock() - began


def interleave(
    everything: Sequence[Series],
    *,
    rounds: int,
    seconds: float,
    wait: Callable[[], None],
    begin: Callable[[Series], None],
    failed: Callable[[Series, Exception], None],
    clock: Callable[[], float] = time.perf_counter,
    least: int = LEAST_ROUNDS,
) -> None:
    """Fills `everything`: `rounds` rounds over all, at least `least` of each.

    Once `seconds` are used up, only those go on that have not had their even share of them: one slow mechanism does
    not take the rounds of the quick ones. begin(series) is called before every turn, failed(series, error) once for
    each that raises; the rest goes on.
    """
    start = clock()

    def turn(series: Series, action: Callable[[Series, Callable[[], None], Callable[[], float]], None]) -> None:
        begin(series)
        try:
            action(series, wait, clock)
        except Exception as error:  # whatever it is, it is this mechanism's
            failed(series, error)

    for series in everything:
        turn(series, warm_up)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds):
            late = number >= least and clock() - start > seconds
            for series in everything:
                if series.cause is None and not (late and series.spent > seconds / len(everything)):
                    turn(series, one_round)
            gc.collect()
    finally:
        if collecting:
            gc.enable()

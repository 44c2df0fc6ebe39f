"""Interleaved timing: one process, rounds A B C … A B C …, so that a slow moment of the machine hits all alike."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Callable, Protocol, Sequence

LEAST_ROUNDS = 3  # unless told otherwise
SAMPLE = 0.01  # seconds: shorter calls are repeated within one sample
MOST_CALLS = 100  # within one sample
LONG = 5.0  # seconds: a call that long needs no second one to warm up, unless it was compiled


class Moment(Protocol):
    """A moment in the work of a device, as torch.cuda.Event is one."""

    def elapsed_time(self, later: Moment) -> float:
        """Milliseconds from this moment to a later one; both must have come."""


Mark = Callable[[], Moment]  # marks the moment at which the device is done with what was asked of it so far


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
    host: dict[str, list[float]] = field(default_factory=dict)  # seconds until everything was launched; not on a CPU
    device: dict[str, list[float]] = field(default_factory=dict)  # seconds that the device took; not on a CPU
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


@dataclass
class Sample:
    """Seconds of one call: in all, and where host and device are two, until all was launched and of the device."""

    seconds: float
    host: float | None = None
    device: float | None = None


def sample(
    call: Callable[[], None], calls: int, wait: Callable[[], None], clock: Callable[[], float], mark: Mark | None = None
) -> Sample:
    """The mean over `calls` calls, with the device waited for on both sides."""
    wait()
    first = mark and mark()
    start = clock()
    for _ in range(calls):
        call()
    launched = clock()
    last = mark and mark()
    wait()
    seconds = (clock() - start) / calls
    if first is None or last is None:
        return Sample(seconds)
    return Sample(seconds, host=(launched - start) / calls, device=first.elapsed_time(last) / 1000 / calls)


def warm_up(series: Series, wait: Callable[[], None], clock: Callable[[], float]) -> None:
    """Calls every measure once or twice, and settles how many calls make a sample. What has run long is warm."""
    for measure in series.measures:
        if series.ran.get(measure, -1.0) >= series.long and not series.compiled:
            series.first[measure], series.calls[measure] = series.ran[measure], 1
            continue
        series.trial.prepare(measure)
        call = getattr(series.trial, measure)
        series.first[measure] = took = sample(call, 1, wait, clock).seconds
        if took < series.long or series.compiled:
            took = sample(call, 1, wait, clock).seconds
        series.calls[measure] = max(1, min(MOST_CALLS, round(SAMPLE / max(took, 1e-9))))


def one_round(series: Series, wait: Callable[[], None], clock: Callable[[], float], mark: Mark | None = None) -> None:
    """One sample of every measure."""
    began = clock()
    for measure in series.measures:
        series.trial.prepare(measure)
        taken = sample(getattr(series.trial, measure), series.calls[measure], wait, clock, mark)
        series.times.setdefault(measure, []).append(taken.seconds)
        if taken.host is not None and taken.device is not None:
            series.host.setdefault(measure, []).append(taken.host)
            series.device.setdefault(measure, []).append(taken.device)
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
    mark: Mark | None = None,
) -> None:
    """Fills `everything`: `rounds` rounds over all, at least `least` of each.

    Once `seconds` are used up, only those go on that have not had their even share of them: one slow mechanism does
    not take the rounds of the quick ones. begin(series) is called before every turn, failed(series, error) once for
    each that raises; the rest goes on. mark(): for a device that works while the host goes on.
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
                    turn(series, partial(one_round, mark=mark))
            gc.collect()
    finally:
        if collecting:
            gc.enable()

"""Tasks of worker.py: peak memory of one case, and interleaved timing of many. The answers are parts of rows."""

from __future__ import annotations

import contextlib
import ctypes
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from xcls.bench.cases import MEASURES, Case, build, work_of
from xcls.bench.machine import counted, peak_memory, synchronizer
from xcls.bench.timing import LONG, Series, Timer, interleave
from xcls.bench.worker import cause_of
from xcls.train.amp import allow_graphs
from xcls.train.cost import MemoryGauge

WARM_LENGTH = 128  # tokens of the call that loads libraries before memory is measured


def measure_memory(connection: Connection, *, case: Case, brief: bool) -> dict[str, Any]:
    """Peak memory of inference and training of one case, MiB, above that of the warmed-up process.

    On CPU: the growth of peak RSS; on CUDA: the peak of the allocator. Inputs, weights and optimizer state count,
    except for compiled cases on CPU: these are first compiled at full size, because the compiler needs more memory.
    Each measure is called twice; once if a call takes longer than LONG. `brief`: one call, of training only. It
    gives 15 to 23 % less than later steps where freed memory is retained, and ratios within 5 %. The answer has `cause`
    if the case failed, beside what was measured before.
    """
    measures = ("training",) if brief else ("inference", "training")
    if case.compile:
        allow_graphs()
    trial = build(case if case.compile else replace(case, seq_len=min(case.seq_len, WARM_LENGTH), batch=1))
    if case.compile:
        trial.compile()
    for measure in measures:
        trial.prepare(measure)
        getattr(trial, measure)()
    if not case.compile:
        del trial
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc: return freed memory, else its reuse hides the next peak
    gauge = MemoryGauge(torch.device(case.device))
    found: dict[str, Any] = {}
    try:
        if not case.compile:
            trial = build(case)
        trial.allocate()
        for measure in measures:
            trial.prepare(measure)
            began, call = time.perf_counter(), getattr(trial, measure)
            call()
            synchronizer(case.device)()
            if time.perf_counter() - began < LONG and not brief:
                call()
            gauge.pause()
            found[f"{measure}_MiB"] = peak_memory(gauge)
            gauge.resume()
    except Exception as error:
        found["cause"] = cause_of(error)
    return found


def measure_time(
    connection: Connection, *, cases: list[Case], rounds: int, least_rounds: int, seconds: float, brief: bool
) -> list[dict[str, Any]]:
    """Interleaved timing of all cases on one device, with operations and compile time; `cause` if a case failed.

    `brief`: only training, after one call to warm up; no operations.
    """
    found: list[dict[str, Any]] = [{} for _ in cases]
    built: dict[int, Series] = {}
    for place, case in enumerate(cases):
        connection.send(("at", place))
        try:
            built[place] = _series(case, found[place], brief)
        except Exception as error:
            found[place] = {"cause": cause_of(error)}
    places, timer = list(built), Timer(synchronizer(cases[0].device))
    limits: dict[str, Any] = {"rounds": rounds, "least": least_rounds, "seconds": seconds}
    interleave(list(built.values()), timer, **limits, begin=lambda number: connection.send(("at", places[number])))
    for place, series in built.items():
        found[place].update(series.row())
    return found


def _series(case: Case, row: dict[str, Any], brief: bool) -> Series:
    """Builds the case and fills `row` with its parameters and, unless `brief`, its operations and bytes."""
    if case.compile:
        allow_graphs()
    trial = build(case)
    row["parameters"] = sum(parameter.numel() for parameter in trial.model.parameters())
    if not brief:
        for measure, amount in work_of(case, trial.attention).items():
            row[f"{measure}_flops"], row[f"{measure}_bytes"] = amount.flops, amount.bytes
        for measure, call in (("inference", trial.forward), ("training", trial.training)):
            trial.prepare(measure)
            row[f"{measure}_flops_counted"] = counted(call)  # not `inference`: the counter cannot trace all of no_grad
    if case.compile:
        trial.compile()
    measures, long = (("training",), 0.0) if brief else (MEASURES, LONG)
    return Series(trial, measures, compiled=case.compile, long=long)

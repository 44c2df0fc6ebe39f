"""The process that measures: reads one job as JSON from standard input, writes events as lines of JSON.

A process of its own keeps one mechanism's memory, crash or death by the out-of-memory killer from the others and from
the bench. `process.py` is the other end.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable

import torch

from xcls.attention.base import Masks
from xcls.attention.work import Shape
from xcls.bench.cases import MEASURES, OURS, Case, build, make_attention, make_position
from xcls.bench.error import SHARED, SOFTMAX, attend, draws, errors_of, exact, random_inputs, summary
from xcls.bench.formulas import work
from xcls.bench.limit import limit_memory, refusal
from xcls.bench.machine import copy_rate, counted, marker, matmul_rate, synchronizer
from xcls.bench.make import make
from xcls.bench.timing import LONG, Series, interleave
from xcls.bench.trained import Caught, trained_inputs
from xcls.train.amp import DTYPES, allow_graphs
from xcls.train.cost import MemoryGauge

Emit = Callable[[str, dict[str, Any]], None]
WARM_LENGTH = 128  # tokens of the call that loads libraries before memory is measured


def cause_of(error: BaseException) -> str:
    """The error in one line."""
    refused = refusal(error)
    if refused is not None:
        return refused
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:300]}" if lines else type(error).__name__


def resized(case: Case, length: int) -> Case:
    """The case with one sequence of so many tokens."""
    return Case(**{**vars(case), "seq_len": length, "batch": 1})


def trim() -> None:
    """Gives freed memory back to the system (glibc), so that it does not hide what is measured next."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def measure_memory(job: dict[str, Any], emit: Emit) -> None:
    """Peak memory of inference and of training of one case, MiB, above what the warmed-up process holds already.

    On CPU the growth of peak RSS; on CUDA the allocator's peak. Inputs, weights and the optimizer's state count, but
    for compiled cases on CPU: those are compiled at full size first, since the compiler needs more memory than they
    do. Two calls of each measure; one where a call takes longer than LONG. `brief`: one, of training alone, for all:
    15 to 23 % less than what later steps hold where freed memory is retained, the ratios within 5 %. What was found
    before memory ran out is told.
    """
    case, brief = Case(**job["cases"][0]), job["brief"]
    emit("begin", {"case": 0})
    measured = ("training",) if brief else ("inference", "training")
    trial = build(case if case.compile else resized(case, min(case.seq_len, WARM_LENGTH)))
    if case.compile:
        trial.compile()
    for measure in measured:
        trial.prepare(measure)
        getattr(trial, measure)()
    if not case.compile:
        del trial
    trim()
    gauge, found = MemoryGauge(torch.device(case.device)), {}
    trial = trial if case.compile else build(case)
    trial.settle()
    try:
        for measure in measured:
            trial.prepare(measure)
            took = seconds_of(getattr(trial, measure), case.device)
            if took < LONG and not brief:
                getattr(trial, measure)()
            gauge.pause()
            found[f"{measure}_MiB"] = gauge.peaks["max_gpu_mem_MiB" if case.device == "cuda" else "rss_growth_MiB"]
            gauge.resume()
    finally:
        if found:
            emit("memory", {"case": 0, **found})


def seconds_of(call: Callable[[], Any], device: str) -> float:
    """How long one call took, the device waited for."""
    began = time.perf_counter()
    call()
    synchronizer(device)()
    return time.perf_counter() - began


def describe_work(case: Case, attention: torch.nn.Module) -> dict[str, Any]:
    """Operations and bytes of the case by formula; nothing where there is none, as with a relative bias."""
    itemsize = torch.empty(0, dtype=DTYPES[case.dtype]).element_size()
    shape = Shape(case.batch, case.num_heads, case.seq_len, case.head_dim, itemsize)
    plain = case.origin == OURS and make_position(case).bias(0) is None
    by_measure = work(case.part, attention, shape) if plain else {}
    found: dict[str, Any] = {}
    for measure, amount in by_measure.items():
        found[f"{measure}_flops"], found[f"{measure}_bytes"] = amount.flops, amount.bytes
    return found


def measure_time(job: dict[str, Any], emit: Emit) -> None:
    """Times all cases, which share length and dtype, interleaved; with the machine's rates, work and compile time.

    `brief`: training alone, after one call to warm up; no rates and no work.
    """
    cases = [Case(**case) for case in job["cases"]]
    device, dtype = cases[0].device, cases[0].dtype
    brief = job["brief"]
    if not brief:
        emit("machine", {"flops_per_s": matmul_rate(dtype, device), "bytes_per_s": copy_rate(device)})
    everything: list[Series] = []
    places: dict[int, int] = {}
    details: dict[int, dict[str, Any]] = {}
    for place, case in enumerate(cases):
        emit("begin", {"case": place})
        try:
            trial, ran = build(case), {}
            details[place] = {} if brief else describe_work(case, trial.attention)
            for measure, call in () if brief else (("inference", trial.forward), ("training", trial.training)):
                trial.prepare(measure)
                began = time.perf_counter()
                flops = counted(call)  # which cannot follow no_grad everywhere
                details[place][f"{measure}_flops_counted"] = flops
                if flops is not None:
                    ran[measure] = time.perf_counter() - began
            if case.compile:
                trial.compile()
            if "inference" in ran:
                ran["forward"] = ran["inference"]
        except Exception as error:
            emit("failed", {"case": place, "cause": cause_of(error)})
            continue
        how = {"measures": ("training",), "long": 0.0} if brief else {"measures": MEASURES}
        everything.append(Series(trial, compiled=case.compile, ran=ran, **how))
        places[id(everything[-1])] = place

    def begin(series: Series) -> None:
        emit("begin", {"case": places[id(series)], "round": series.rounds + 1})

    def failed(series: Series, error: Exception) -> None:
        series.cause, series.trial = cause_of(error), None
        emit("failed", {"case": places[id(series)], "cause": series.cause})
        if device == "cuda":
            torch.cuda.empty_cache()

    wait = synchronizer(device)
    limits = {"rounds": job["rounds"], "least": job["least_rounds"], "seconds": job["seconds"]}
    interleave(everything, **limits, wait=wait, begin=begin, failed=failed, mark=marker(device))
    for series in everything:
        if series.cause is None:
            place = places[id(series)]
            compiled = series.compile_seconds() if cases[place].compile else None
            sides = {"host": series.host.get("training"), "device": series.device.get("training")}
            emit("timed", {"case": place, "times": series.times, **sides, "compile_s": compiled, **details[place]})


def measure_error(job: dict[str, Any], emit: Emit) -> None:
    """Relative error of each case's core against exact attention on random inputs, over several draws of everything.

    A single layer: what layers share does not show here, `measure_trained` has it.
    """
    cases = [Case(**case) for case in job["cases"]]
    first = cases[0]
    shape = (1, first.num_heads, first.seq_len, first.head_dim)
    errors: dict[int, list[tuple[float, float]]] = {place: [] for place in range(len(cases))}
    tied: dict[int, bool] = {}
    for draw in range(draws(first.seq_len)):
        q, k, v = random_inputs(shape, draw, dtype=DTYPES[first.dtype], device=first.device)
        references: dict[bool, torch.Tensor] = {}
        for place, case in enumerate(cases):
            if place not in errors:
                continue
            emit("begin", {"case": place, "round": draw + 1})
            try:
                torch.manual_seed(draw)
                attention = make_attention(Case(**{**vars(case), "seed": draw})).to(case.device)
                tied[place] = attention.ties_qk
                if tied[place] not in references:
                    references[tied[place]] = exact(q, k, v, shared=tied[place])
                with case.autocast():
                    out = attend(attention, q, k, v, Masks())
                errors[place].append(errors_of(out, references[tied[place]], v))
            except Exception as error:
                del errors[place]
                emit("no_error", {"case": place, "cause": cause_of(error)})
    for place, found in errors.items():
        emit("error", {"case": place, **summary(found, SHARED if tied[place] else SOFTMAX)})


def layer_errors(node: dict[str, Any], layers: list[Caught]) -> tuple[list[tuple[float, float]], str]:
    """The errors in each of a trained run's layers, and what they are against.

    One context for all layers, as in a forward pass: what a layer leaves to the next is part of the mechanism.
    """
    errors, context = [], {}
    for layer in layers:
        sizes = {"num_heads": layer.q.shape[1], "head_dim": layer.q.shape[3], "layer": layer.layer, "seed": 0}
        attention = make(node, sizes).to(layer.q.device)
        if attention.ties_qk and not layer.tied:
            raise ValueError("it ties q and k, and the run does not")
        q, k, masks = layer.given(attention)
        out = attend(attention, q, k, layer.v, masks.with_(context=context))
        reference = exact(*layer.rotated(), layer.v, shared=attention.ties_qk, bias=layer.bias)
        errors.append(errors_of(out, reference, layer.v))
    return errors, SHARED if attention.ties_qk else SOFTMAX


def measure_trained(job: dict[str, Any], emit: Emit) -> None:
    """The same on the q, k, v of a trained run's layers: mean and deviation over layers, fp32.

    A mechanism that ties q and k has no meaning on the two of a run that does not: such a case is left out. Trained
    rotations are measured as they are first drawn: those of the run belong to its own mechanism.
    """
    layers, config = trained_inputs(Path(job["folder"]), job["device"])
    about = {
        "seq_len": layers[0].q.shape[2],
        "batch": layers[0].q.shape[0],
        "position": config["position"]["name"],
        "trained_attention": config["attention"]["name"],
    }
    for place, node in enumerate(job["nodes"]):
        emit("begin", {"case": place})
        try:
            errors, against = layer_errors(node, layers)
            found = {**summary(errors, against), "error_by_layer": " ".join(f"{error:.4f}" for error, _ in errors)}
            emit("error", {"case": place, **about, **found})
        except Exception as error:
            emit("no_error", {"case": place, **about, "cause": cause_of(error)})


TASKS = {"memory": measure_memory, "time": measure_time, "error": measure_error, "trained": measure_trained}


def prepare_process(job: dict[str, Any]) -> None:
    """The same settings for every mechanism: threads, the limits of torch.compile, a ceiling on memory on the CPU, and
    first in line for the OOM killer.
    """
    if job.get("threads"):
        torch.set_num_threads(job["threads"])
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900", encoding="ascii")
    cases = job.get("cases", [])
    if cases and all(case["device"] == "cpu" for case in cases):
        limit_memory()
    if any(case["compile"] for case in cases):
        allow_graphs()


def main() -> int:
    """Does the job on standard input. Returns 0 when it came to its end; causes of cases that failed are events."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")  # what libraries print goes to standard error
    os.dup2(2, 1)

    def emit(event: str, details: dict[str, Any]) -> None:
        out.write(json.dumps({"event": event, **details}) + "\n")
        out.flush()

    try:
        job = json.load(sys.stdin)
        prepare_process(job)
        TASKS[job["task"]](job, emit)
    except Exception as error:
        traceback.print_exc()
        emit("stopped", {"cause": cause_of(error)})
        return 1
    emit("end", {})
    return 0


if __name__ == "__main__":
    sys.exit(main())

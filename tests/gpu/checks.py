"""Measures on a GPU what a test can't assert: errors by dtype, bits that repeat, kernels, waits and memory of a step.

    python -m tests.gpu.checks errors steps --out multirun/gpu      # SMALL=1 XCLS_TEST_DEVICE=cpu tries it on a CPU

What is found goes to `checks.json` in the folder, measure after measure, so that a run cut short leaves what it has.
`tests/gpu/tables.py` puts it into docs/gpu.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from tests.attention.layers import ATTENTIONS, build
from tests.gpu.cost import batch_of, configuration, model_of
from tests.gpu.test_cuda import results
from xcls.attention.base import Masks
from xcls.stages.finetune import classification_loss

DEVICE = torch.device(os.environ.get("XCLS_TEST_DEVICE", "cuda"))
SMALL = bool(os.environ.get("SMALL"))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAIN = ["sdpa", "sdpa_fused", "performer", "reformer"]
Note = Callable[[str, dict[str, Any]], None]


def errors(note: Note, length: int, heads: int = 8, width: int = 64) -> None:
    """Of every mechanism and dtype: the distance of output and gradients from float64, and whether a second call
    repeats."""
    shape = {"num_heads": heads, "head_dim": width, "layer": 0, "seed": 1}
    draws = torch.Generator().manual_seed(0)
    base = [torch.randn(2, heads, length, width, generator=draws).to(DEVICE) for _ in range(3)]
    pads = (torch.arange(length) >= torch.tensor([length, length - 5])[:, None]).to(DEVICE)

    def run(attention: Any, dtype: torch.dtype) -> list[Tensor]:
        given = [x.to(dtype) for x in base]
        return results(type(attention).__call__, attention, given, Masks.make(key_padding_mask=pads))

    for name in ATTENTIONS:
        found: dict[str, Any] = {}
        try:
            attention = build("attention", name, small=False, **shape).to(DEVICE)
            exact = run(build("attention", name, small=False, **shape).to(DEVICE).double(), torch.float64)
            for key, dtype in DTYPES.items():
                one, two = run(attention, dtype), run(attention, dtype)
                found[key] = {
                    "errors": [float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in zip(one, exact)],
                    "finite": all(bool(x.isfinite().all()) for x in one),
                    "repeats": [torch.equal(a, b) for a, b in zip(one, two)],
                }
        except Exception as error:  # the rest is still worth its time
            found["failed"] = f"{type(error).__name__}: {str(error)[:300]}"
        note(f"errors {name} {length}", {"attention": name, "tokens": length, **found})
        gc.collect()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()


def steps(note: Note, name: str, batch: int, length: int, dtype: str) -> None:
    """A forward and backward pass of the classifier, size=small, padded: ms, host ms, kernels, waits, peak memory, top
    kernels."""
    config = configuration(name, "size=tiny" if SMALL else "size=small", f"seq_len={length}")
    model = model_of(config, mlm=False).to(DEVICE)
    given = {key: x if x is None else x.to(DEVICE) for key, x in batch_of(batch, length, False, True).items()}

    def step() -> None:
        with torch.autocast(DEVICE.type, dtype=DTYPES[dtype]):
            loss = classification_loss(model, given)
        loss.backward()
        model.zero_grad(set_to_none=True)

    for _ in range(3):
        step()
    found: dict[str, Any] = {"attention": name, "batch": batch, "tokens": length, "dtype": dtype}
    if DEVICE.type == "cuda":
        found |= timed(step) | profiled(step)
    note(f"step {name} {batch}x{length} {dtype}", found)


def timed(step: Callable[[], None], times: int = 10) -> dict[str, Any]:
    """Milliseconds of a step, and of the host in it; peak memory, MiB."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for _ in range(times):
        step()
    launched = time.perf_counter() - began
    torch.cuda.synchronize()
    took = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() / 2**20
    return {"ms": 1e3 * took / times, "host_ms": 1e3 * launched / times, "peak_MiB": peak}


def own_time(event: Any) -> float:
    """Microseconds on the card; torch before 2.4 has another name for it."""
    return getattr(event, "self_device_time_total", None) or getattr(event, "self_cuda_time_total", 0.0)


def profiled(step: Callable[[], None]) -> dict[str, Any]:
    """Waits, kernels and the time that they keep the card busy, and the longest of them."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        step()
        torch.cuda.synchronize()
    kernels = [event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    longest = sorted(seen.key_averages(), key=lambda event: -own_time(event))[:8]
    return {
        "waits": sum("synchroniz" in str(warning.message) for warning in waits),
        "kernels": len(kernels),
        "busy_ms": sum(event.time_range.elapsed_us() for event in kernels) / 1e3,
        "longest": {event.key[:60]: own_time(event) / 1e3 for event in longest},
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=("errors", "steps"))
    parser.add_argument("--out", type=Path, default=Path("multirun/gpu"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "checks.json"
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else DEVICE.type
    told = {"device": device, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    found = (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}) | told

    def note(key: str, value: dict[str, Any]) -> None:
        found[key] = value
        print(key, value, flush=True)
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")

    if "errors" in arguments.what:
        for length in (64, 100) if SMALL else (512, 4096):
            errors(note, length)
    if "steps" in arguments.what:
        half = "fp16" if DEVICE.type == "cuda" and torch.cuda.get_device_capability() < (8, 0) else "bf16"
        sizes = [(2, 64, half)] if SMALL else [(32, 512, half), (32, 512, "fp16"), (1, 16384, half)]
        for name in MAIN:
            for batch, length, dtype in dict.fromkeys(sizes):
                try:
                    steps(note, name, batch, length, dtype)
                except RuntimeError as error:  # one that does not fit must not cost the others
                    print(f"{name}, {batch} x {length}, {dtype}: {str(error)[:200]}", flush=True)


if __name__ == "__main__":
    main()

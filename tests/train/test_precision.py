"""Which device and dtype `auto` means, and mixed precision itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.runs import CASES, live
from tests.samples import make_batch, make_classifier
from xcls.schema import Hardware, UserError
from xcls.train import precision
from xcls.train.amp import Amp
from xcls.train.checkpoint import read_checkpoint
from xcls.train.precision import Precision, resolve
from xcls.train.randomness import random_states, restore_random_states


@pytest.mark.parametrize(
    ("hardware", "capability", "flags", "expected"),
    [
        (Hardware(), None, {"avx2"}, ("cpu", "fp32")),
        (Hardware(), None, {"avx512_bf16"}, ("cpu", "bf16")),
        (Hardware(), None, {"amx_bf16"}, ("cpu", "bf16")),
        (Hardware(), 7.5, {"amx_bf16"}, ("cuda", "fp16")),
        (Hardware(), 9.0, set(), ("cuda", "bf16")),
        (Hardware(device="cpu"), 9.0, set(), ("cpu", "fp32")),
        (Hardware(dtype="fp16"), 9.0, set(), ("cuda", "fp16")),
        (Hardware(device="cuda", dtype="bf16"), None, set(), ("cuda", "bf16")),
    ],
)
def test_auto(
    hardware: Hardware, capability: Any, flags: set[str], expected: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "gpu_capability", lambda: capability)
    monkeypatch.setattr(precision, "cpu_flags", lambda: flags)
    assert resolve(hardware) == Precision(device=expected[0], dtype=expected[1])


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "gpu_capability", lambda: None)
    with pytest.raises(UserError, match="hardware.device=cuda: no usable GPU"):
        resolve(Hardware(device="cuda"))


@pytest.mark.parametrize(
    ("visible", "version", "answer", "expected"),
    [
        (None, "2.5.0", "9.0\n8.0\n", 8.0),
        (None, "2.5.0+cu124", "7.5\n", 7.5),
        (None, "2.5.0+cpu", "9.0\n", None),
        ("", "2.5.0", "9.0\n", None),
        ("-1", "2.5.0", "9.0\n", None),
        (None, "2.5.0", "", None),
        (None, "2.5.0", "No devices were found", None),
    ],
)
def test_gpu_capability(
    visible: Any, version: str, answer: str, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(precision.metadata, "version", lambda name: version)
    done = subprocess.CompletedProcess([], 0, stdout=answer)
    monkeypatch.setattr(precision.subprocess, "run", lambda *given, **named: done)
    precision.gpu_capability.cache_clear()
    try:
        assert precision.gpu_capability() == expected
    finally:
        precision.gpu_capability.cache_clear()


def test_resolving_imports_no_torch() -> None:
    code = (
        "import sys; from xcls.schema import Hardware; from xcls.train.precision import resolve; "
        "resolve(Hardware(device='cpu')); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_autocast_computes_in_the_dtype_and_stays_close(dtype: str) -> None:
    amp = Amp(precision=Precision(device="cpu", dtype=dtype), hardware=Hardware())
    model = make_classifier().eval()
    ids, mask = make_batch([9, 12])
    with torch.no_grad(), amp.autocast():
        logits = model(ids, mask)
    assert logits.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    assert amp.scaler is None
    reference = model(ids, mask).detach()
    assert (logits.float() - reference).abs().max() < 0.05 * reference.abs().max()


def test_cuda_that_torch_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no GPU"):
        Amp(precision=Precision(device="cuda", dtype="bf16"), hardware=Hardware())


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    try:
        Amp(precision=Precision(device="cpu", dtype="fp32"), hardware=Hardware(threads=3))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("dtype", "tf32"), [("fp32", False), ("bf16", True), ("fp16", True)])
def test_products_on_cuda_keep_what_the_dtype_promises(dtype: str, tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    products = torch.backends.cuda.matmul
    names = ("allow_tf32", "allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    before = [getattr(products, name) for name in names]
    try:
        for name, value in zip(names, (not tf32, True, True)):
            setattr(products, name, value)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr("xcls.train.amp._scaler", lambda precision: None)
        Amp(precision=Precision(device="cuda", dtype=dtype), hardware=Hardware())
        assert [getattr(products, name) for name in names] == [tf32, False, False]
    finally:
        for name, value in zip(names, before):
            setattr(products, name, value)


def test_a_run_on_the_cpu_of_a_gpu_machine_leaves_the_gpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No call that makes or needs a CUDA context, with memory that runs out, bad steps and a resume on the way."""

    def refuse(*given: Any) -> Any:
        raise AssertionError("CUDA was touched")

    live(tmp_path / "before", CASES["bad steps left out"], max_steps=1)  # torch lists its functions when it first trains
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("_lazy_init", "get_rng_state_all", "get_rng_state", "set_rng_state", "set_rng_state_all", "synchronize",
                 "empty_cache", "device_count", "current_device", "get_device_properties", "max_memory_allocated",
                 "reset_peak_memory_stats"):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, refuse)
    live(tmp_path / "memory", CASES["micro-batches halved"], max_steps=3)
    live(tmp_path / "bad", CASES["bad steps left out"])
    payload = read_checkpoint(tmp_path / "bad" / "ckpt_last.pt")
    assert payload["random"]["cuda"] == []
    restore_random_states({**payload["random"], "cuda": [torch.zeros(16, dtype=torch.uint8)]}, torch.device("cpu"))


def test_states_of_gpus_belong_to_runs_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[tuple[int, int]] = []
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.tensor(7), torch.tensor(8)])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, index: put.append((int(state), index)))
    states = random_states(torch.device("cuda"))
    restore_random_states(states, torch.device("cuda"))
    assert put == [(7, 0)]  # the second GPU is not here
    restore_random_states(random_states(torch.device("cpu")), torch.device("cuda"))  # a checkpoint of a CPU
    assert put == [(7, 0)]

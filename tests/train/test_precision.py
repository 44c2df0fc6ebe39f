"""Which device and dtype `auto` means, and mixed precision itself."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.samples import make_batch, make_classifier
from xcls.schema import Hardware, UserError
from xcls.train import precision
from xcls.train.amp import Amp
from xcls.train.precision import Precision, resolve


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

"""Which device and dtype `auto` means, what a GPU is refused for, and mixed precision itself."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, Callable

import pytest
import torch

from tests.samples import make_batch, make_classifier
from tests.train.harness import BAD_STEPS, LITTLE_MEMORY, live
from xcls.config.schema import Hardware, UserError
from xcls.train import cards, precision
from xcls.train.amp import Amp
from xcls.train.cards import Card, Cards, runs_on
from xcls.train.precision import Precision, check_cards, resolve
from xcls.train.randomness import random_states, restore_random_states

A100, T4, V100 = Card("NVIDIA A100", (8, 0)), Card("Tesla T4", (7, 5)), Card("Tesla V100", (7, 0))


def found(*cards: Card, warn: bool = False) -> Callable[[], Cards]:
    """What stands in for the cards of this machine."""
    why = "" if cards else "torch finds no GPU"
    return lambda: Cards("2.13.0+cu130", cards, ("sm_75", "sm_80", "sm_90"), why, warn)


@pytest.mark.parametrize(
    ("hardware", "cards", "flags", "expected"),
    [
        (Hardware(), (), {"avx2"}, ("cpu", "fp32")),
        (Hardware(), (), {"amx_bf16"}, ("cpu", "bf16")),
        (Hardware(), (T4,), {"amx_bf16"}, ("cuda", "fp16")),
        (Hardware(), (A100, T4), set(), ("cuda", "fp16")),
        (Hardware(device="cpu"), (A100,), set(), ("cpu", "fp32")),
        (Hardware(dtype="fp16"), (A100,), set(), ("cuda", "fp16")),
        (Hardware(device="cuda", dtype="bf16"), (), set(), ("cuda", "bf16")),
    ],
)
def test_auto(
    hardware: Hardware, cards: tuple, flags: set[str], expected: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(precision.PLANNED, raising=False)
    monkeypatch.setattr(precision, "cpu_flags", lambda: flags)
    chosen = resolve(hardware, found(*cards))
    assert chosen == Precision(*expected)
    assert bool(chosen.why) == ("auto" in (hardware.device, hardware.dtype))
    assert not cards or "cpu" in expected or not chosen.why or cards[0].name in chosen.why


def test_a_job_takes_what_its_sweep_has_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own card alone would have bf16; with the other cards of the machine, its run is one of fp16."""
    monkeypatch.setenv(precision.PLANNED, "cuda fp16")
    assert resolve(Hardware(), found(A100)) == Precision("cuda", "fp16")
    assert resolve(Hardware(device="cpu", dtype="fp32"), found(A100)) == Precision("cpu", "fp32")


@pytest.mark.parametrize(
    ("dtype", "cards", "words"),
    [
        ("bf16", (), "hardware.device=cuda"),
        ("fp16", (A100, V100), "Tesla V100, capability 7.0.*sm_75.*--index-url https://download.pytorch.org/whl/cu126"),
        ("bf16", (T4,), "hardware.dtype=bf16: Tesla T4"),
        ("fp16", (Card("GeForce RTX 5090", (12, 0)),), "capability 12.0.*pip install"),
    ],
)
def test_a_card_that_cannot_do_it_is_refused(dtype: str, cards: tuple, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_cards(Precision("cuda", dtype), found(*cards)())


def test_a_card_that_can_do_it_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_cards(Precision("cuda", "bf16"), found(A100)()) == ""
    assert check_cards(Precision("cpu", "bf16"), found()()) == ""
    assert "Tesla T4" in check_cards(Precision("cuda", "bf16"), found(T4)(), emulate=True)
    monkeypatch.delenv(precision.PLANNED, raising=False)
    with pytest.raises(UserError, match="hardware.device=cuda"):
        resolve(Hardware(device="cuda"), found())


def test_what_code_runs_on_which_card() -> None:
    pypi = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
    for capability in ((7, 5), (8, 0), (8, 9), (9, 0), (12, 1)):
        assert runs_on(capability, pypi)
    assert not runs_on((7, 0), pypi) and not runs_on((6, 1), pypi)
    assert runs_on((9, 0), ("sm_90a",)) and not runs_on((9, 1), ("sm_90a",))
    assert runs_on((12, 0), ("sm_80", "compute_90")) and not runs_on((8, 0), ("compute_90",))
    assert runs_on((7, 0), ())


@pytest.mark.parametrize(
    ("version", "visible", "seen", "words", "warns"),
    [
        ("2.13.0+cpu", None, (), "built without CUDA", False),
        ("2.13.0+cpu", None, (V100,), "Tesla V100.*--index-url https://download.pytorch.org/whl/cu126", True),
        ("2.13.0+cu130", "-1", (A100,), "CUDA_VISIBLE_DEVICES='-1'", False),
        ("2.13.0+cu130", None, (A100,), "NVIDIA A100.*The NVIDIA driver is too old", True),
    ],
)
def test_why_there_is_no_card(
    version: str, visible: str | None, seen: tuple, words: str, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver is too old. More.\nAnd more.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.version, "cuda", None if version.endswith("+cpu") else "13.0")
    monkeypatch.setattr(cards, "driver_cards", lambda: seen)
    monkeypatch.setattr(cards.Path, "exists", lambda self: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    none = cards.look()
    assert not none.cards and none.warn == warns
    with pytest.raises(UserError, match=words):
        check_cards(Precision("cuda", "fp16"), none)


def test_a_launcher_asks_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so only where torch could hold a GPU; what comes back is what was found there."""
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch, "__version__", "of this process")
    there = cards.of_jobs.__wrapped__()
    assert there.torch != "of this process" and bool(there.cards) == torch.cuda.is_available()
    monkeypatch.setattr(cards, "look", os.abort)
    with pytest.raises(UserError, match="BrokenProcessPool.*hardware=cpu"):
        cards.of_jobs.__wrapped__()


def test_resolving_imports_no_torch() -> None:
    code = (
        "import sys; from xcls.config.schema import Hardware; from xcls.train.precision import resolve; "
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


def test_settings_of_torch_follow_the_hardware() -> None:
    """Products on CUDA keep what the dtype promises; the threads are those of the configuration."""
    products, threads = torch.backends.cuda.matmul, torch.get_num_threads()
    before, products.allow_tf32 = products.allow_tf32, True
    try:
        Amp(precision=Precision(device="cpu", dtype="fp32"), hardware=Hardware(threads=3))
        assert torch.get_num_threads() == 3 and not products.allow_tf32
    finally:
        torch.set_num_threads(threads)
        products.allow_tf32 = before


def test_a_run_on_the_cpu_of_a_gpu_machine_leaves_the_gpu_alone(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No call that makes or needs a CUDA context, with memory that runs out and bad steps on the way."""

    def refuse(*given: Any) -> Any:
        raise AssertionError("CUDA was touched")

    live(tmp_path / "before", BAD_STEPS, max_steps=1)  # torch lists its functions when it first trains
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("_lazy_init", "get_rng_state_all", "synchronize", "empty_cache", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    live(tmp_path / "memory", LITTLE_MEMORY, max_steps=3)
    live(tmp_path / "bad", BAD_STEPS)
    states = random_states(torch.device("cpu"))
    assert states["cuda"] == []
    restore_random_states({**states, "cuda": [torch.zeros(16, dtype=torch.uint8)]}, torch.device("cpu"))

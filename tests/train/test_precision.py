"""Which device and dtype `auto` means, and mixed precision itself."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable

import pytest
import torch

from tests.faults.runs import CASES, live
from tests.samples import make_batch, make_classifier
from xcls.config.schema import Hardware, UserError
from xcls.train import cards, precision
from xcls.train.amp import Amp
from xcls.train.cards import Card, Cards, runs_on
from xcls.train.checkpoint import read_checkpoint
from xcls.train.precision import Precision, check_cards, resolve
from xcls.train.randomness import random_states, restore_random_states

A100, T4, V100 = ("NVIDIA A100", (8, 0)), ("Tesla T4", (7, 5)), ("Tesla V100", (7, 0))


def found(
    *cards: tuple[str, tuple[int, int]], why: str = "torch finds no GPU", warn: bool = False
) -> Callable[[], Cards]:
    """What stands in for the cards of this machine."""
    made = tuple(Card(*card) for card in cards)
    return lambda: Cards("2.13.0+cu130", made, ("sm_75", "sm_80", "sm_90"), "" if cards else why, warn)


@pytest.mark.parametrize(
    ("hardware", "cards", "flags", "expected"),
    [
        (Hardware(), (), {"avx2"}, ("cpu", "fp32")),
        (Hardware(), (), {"avx512_bf16"}, ("cpu", "bf16")),
        (Hardware(), (), {"amx_bf16"}, ("cpu", "bf16")),
        (Hardware(), (T4,), {"amx_bf16"}, ("cuda", "fp16")),
        (Hardware(), (A100,), set(), ("cuda", "bf16")),
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
    assert resolve(hardware, found(*cards)) == Precision(device=expected[0], dtype=expected[1])


def test_the_choice_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(precision.PLANNED, raising=False)
    monkeypatch.setattr(precision, "cpu_flags", set)
    assert resolve(Hardware(), found(A100)).why == "hardware=auto: cuda (NVIDIA A100, capability 8.0, bf16)"
    quiet = resolve(Hardware(), found())
    assert (quiet.why, quiet.warn) == ("hardware=auto: cpu (fp32): torch finds no GPU", False)
    assert (
        resolve(Hardware(), found(warn=True)).warn
        and not resolve(Hardware(name="cpu", device="cpu"), found(warn=True)).warn
    )
    assert resolve(Hardware(device="cuda", dtype="bf16"), found()).why == ""


def test_a_job_takes_what_its_sweep_has_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own card alone would have bf16; with the other cards of the machine, its run is one of fp16."""
    monkeypatch.setenv(precision.PLANNED, "cuda fp16")
    assert resolve(Hardware(), found(A100)) == Precision("cuda", "fp16")
    assert resolve(Hardware(device="cpu", dtype="fp32"), found(A100)) == Precision("cpu", "fp32")


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(precision.PLANNED, raising=False)
    with pytest.raises(UserError, match="hardware.device=cuda: torch finds no GPU"):
        resolve(Hardware(device="cuda"), found())


@pytest.mark.parametrize(
    ("dtype", "cards", "words"),
    [
        ("bf16", (), "hardware.device=cuda: torch finds no GPU"),
        (
            "fp16",
            (V100,),
            "Tesla V100, capability 7.0: .* no code for it, only for sm_75, .*--index-url https://download.pytorch.org/whl/cu126",
        ),
        ("bf16", (T4,), "hardware.dtype=bf16: Tesla T4, capability 7.5 has no bf16"),
        ("fp16", (("GeForce RTX 5090", (12, 0)),), "capability 12.0: .* the newest torch with CUDA"),
        ("fp16", (A100, V100), "Tesla V100"),
    ],
)
def test_a_card_that_cannot_do_it_is_refused(dtype: str, cards: tuple, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_cards(Precision("cuda", dtype), found(*cards)())


def test_a_card_that_can_do_it_is_not_refused() -> None:
    assert (
        check_cards(Precision("cuda", "bf16"), found(A100)())
        == check_cards(Precision("cuda", "fp16"), found(T4)())
        == ""
    )
    assert check_cards(Precision("cpu", "bf16"), found()()) == ""
    assert "emulates it" in check_cards(Precision("cuda", "bf16"), found(T4)(), emulate=True)


def test_what_code_runs_on_which_card() -> None:
    pypi = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
    assert [runs_on(capability, pypi) for capability in ((7, 0), (7, 5), (8, 0), (8, 9), (9, 0), (12, 1), (6, 1))] == [
        False,
        *[True] * 5,
        False,
    ]
    assert runs_on((9, 0), ("sm_90a",)) and not runs_on((9, 1), ("sm_90a",))
    assert runs_on((12, 0), ("sm_80", "compute_90")) and not runs_on((8, 0), ("compute_90",))
    assert runs_on((7, 0), ())


class FakeCuda:
    """Stands in for torch.cuda: `cards` as (name, capability)."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *given: tuple[str, tuple[int, int]],
        version: str = "2.13.0+cu130",
        fails: str = "",
    ) -> None:
        def init() -> None:
            raise RuntimeError(fails)

        cuda = None if version.endswith("+cpu") else "13.0"
        fakes = {
            "is_available": lambda: bool(given),
            "device_count": lambda: len(given),
            "init": init,
            "get_device_name": lambda place: given[place][0],
            "get_device_capability": lambda place: given[place][1],
            "get_arch_list": lambda: ["sm_75", "sm_80"],
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch, "__version__", version)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(cards.Path, "exists", lambda self: False)
        monkeypatch.setattr(cards, "_nvidia_smi", lambda: ())
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_the_cards_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, A100, T4)
    assert cards.look() == Cards("2.13.0+cu130", (Card(*A100), Card(*T4)), ("sm_75", "sm_80"))
    assert cards.here.__wrapped__().cards == (Card(*A100),)


SEEN = "nvidia-smi sees NVIDIA A100, capability 8.0"


@pytest.mark.parametrize(
    ("version", "visible", "seen", "words", "warns"),
    [
        ("2.13.0+cpu", None, (), "this torch (2.13.0+cpu) was built without CUDA", False),
        (
            "2.13.0+cpu",
            None,
            (A100,),
            f"but a GPU is here ({SEEN}). Install the newest torch with CUDA: pip install",
            True,
        ),
        ("2.13.0+cpu", None, (V100,), "--index-url https://download.pytorch.org/whl/cu126", True),
        ("2.13.0+cpu", "", (A100,), "CUDA_VISIBLE_DEVICES='' hides every GPU", False),
        ("2.13.0+cu130", "-1", (A100,), "CUDA_VISIBLE_DEVICES='-1' hides every GPU", False),
        ("2.13.0+cu130", None, (), "torch finds no GPU", False),
        (
            "2.13.0+cu130",
            None,
            (A100,),
            f"cannot use the GPU that is here ({SEEN}): The NVIDIA driver is too old. Update",
            True,
        ),
    ],
)
def test_why_there_is_no_card(
    version: str, visible: Any, seen: tuple, words: str, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeCuda(monkeypatch, version=version, fails="The NVIDIA driver is too old. More.\nAnd more.")
    monkeypatch.setattr(cards, "_nvidia_smi", lambda: tuple(Card(*card) for card in seen))
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    none = cards.look()
    assert not none.cards and words in none.why and none.warn == warns


def test_a_gpu_shows_itself_without_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, version="2.13.0+cpu")
    monkeypatch.setattr(cards.Path, "exists", lambda self: str(self) == "/proc/driver/nvidia")
    assert cards.look().warn and "(/proc/driver/nvidia is there)" in cards.look().why


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            "NVIDIA A100-SXM4-40GB, 8.0\nTesla T4, 7.5\n",
            ["NVIDIA A100-SXM4-40GB, capability 8.0", "Tesla T4, capability 7.5"],
        ),
        ("", []),
        ("No devices were found", []),
        ('Field "compute_cap" is not a valid field to query.', []),
    ],
)
def test_nvidia_smi(answer: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 0, stdout=answer)
    monkeypatch.setattr(cards.subprocess, "run", lambda *given, **named: done)
    assert [str(card) for card in cards._nvidia_smi.__wrapped__()] == expected


def test_a_launcher_asks_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so only where torch could hold a GPU; what comes back is what was found there."""
    told = json.dumps(asdict(found(A100, T4)()))
    done = subprocess.CompletedProcess([], 0, stdout=f"something else\n{told}\n")
    monkeypatch.setattr(cards.subprocess, "run", lambda *given, **named: done)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    assert cards.of_jobs.__wrapped__() == found(A100, T4)()
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nImportError: libcudart.so\n")
    monkeypatch.setattr(cards.subprocess, "run", lambda *given, **named: failed)
    with pytest.raises(UserError, match="ImportError: libcudart.so"):
        cards.of_jobs.__wrapped__()


def test_the_other_process_tells_what_it_finds() -> None:
    command = [sys.executable, "-m", "xcls.train.cards"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert told["torch"] == str(torch.__version__) and bool(told["cards"]) == torch.cuda.is_available()


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


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_products_on_cuda_keep_what_the_dtype_promises(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    products = torch.backends.cuda.matmul
    names = ("allow_tf32", "allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    before = [getattr(products, name) for name in names]
    try:
        for name, value in zip(names, (True, True, True)):
            setattr(products, name, value)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr("xcls.train.amp._scaler", lambda precision: None)
        Amp(precision=Precision(device="cuda", dtype=dtype), hardware=Hardware())
        assert [getattr(products, name) for name in names] == [False, False, False]
    finally:
        for name, value in zip(names, before):
            setattr(products, name, value)


def test_a_run_on_the_cpu_of_a_gpu_machine_leaves_the_gpu_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call that makes or needs a CUDA context, with memory that runs out, bad steps and a resume on the way."""

    def refuse(*given: Any) -> Any:
        raise AssertionError("CUDA was touched")

    live(
        tmp_path / "before", CASES["bad steps left out"], max_steps=1
    )  # torch lists its functions when it first trains
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in (
        "_lazy_init",
        "get_rng_state_all",
        "get_rng_state",
        "set_rng_state",
        "set_rng_state_all",
        "synchronize",
        "empty_cache",
        "device_count",
        "current_device",
        "get_device_properties",
        "max_memory_allocated",
        "reset_peak_memory_stats",
    ):
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

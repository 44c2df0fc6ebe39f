"""The Triton kernels of FAVOR+ against the formula: run by Triton's interpreter (TRITON_INTERPRET=1, set before Python
starts), and compiled for the generations of cards, which needs no card."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from xcls.attention import kernels
from xcls.attention.kernels import favor_triton
from xcls.attention.kernels.favor_triton import available, favor

interpreted = pytest.mark.skipif(not kernels.INTERPRETED, reason="needs Triton and TRITON_INTERPRET=1")
ERRORS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of the largest entry: some eight roundings


def formula(q: Tensor, k: Tensor, v: Tensor, directions: Tensor, padding: Tensor | None, epsilon: float) -> Tensor:
    """FAVOR+ in fp64, with all features at once; the stabilisers are held constant."""
    q, k, v, w = (x.double() for x in (q, k, v, directions))
    pads = torch.zeros(q.shape[0], q.shape[2], dtype=torch.bool) if padding is None else padding
    pads = pads[:, None, :, None]
    exponents = (k @ w.T - k.square().sum(dim=-1, keepdim=True) / (2 * k.shape[-1] ** 0.5)).masked_fill(
        pads, -torch.inf
    )
    stabiliser = exponents.detach().amax(dim=(2, 3), keepdim=True).clamp(min=-1e9)
    keys = ((exponents - stabiliser).exp() + epsilon).masked_fill(pads, 0.0)
    queries = (q @ w.T - (q @ w.T).detach().amax(dim=-1, keepdim=True)).exp()
    normaliser = queries @ keys.sum(dim=2, keepdim=True).transpose(2, 3)
    return (queries @ (keys.transpose(2, 3) @ v) / normaliser.clamp(min=1e-300)).masked_fill(pads, 0.0)


def draw(shape: tuple[int, int, int, int], num_features: int, dtype: torch.dtype, size: float = 1.0) -> list[Tensor]:
    """q, k and v [B, H, N, D], views of one projection, the directions, and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    batch, heads, length, width = shape
    projection = (size * torch.randn(batch, length, 3, heads, width, generator=generator)).to(dtype)
    q, k, v = (x.transpose(1, 2).requires_grad_() for x in projection.unbind(2))
    directions = torch.randn(num_features, width, generator=generator) * width**-0.25
    return [q, k, v, directions, torch.randn(shape, generator=generator).to(dtype)]


def pads_of(kind: str, batch: int, length: int) -> Tensor | None:
    """Pads behind each text, none or all of them in the last."""
    if kind == "none":
        return None
    lengths = torch.tensor([max(1, length // (i + 1)) for i in range(batch)])
    if kind == "all":
        lengths[-1] = 0
    return torch.arange(length) >= lengths[:, None]


def both(
    q: Tensor, k: Tensor, v: Tensor, directions: Tensor, grad: Tensor, padding: Tensor | None, epsilon: float
) -> tuple[list[Tensor], list[Tensor]]:
    """out, dq, dk and dv of the kernels and of the formula."""
    sides = []
    for function in (favor, formula):
        out = function(q, k, v, directions, padding, epsilon)
        sides.append([out.detach(), *torch.autograd.grad(out, (q, k, v), grad.to(out.dtype))])
    return sides[0], sides[1]


def check_close(ours: list[Tensor], theirs: list[Tensor], error: float) -> None:
    for name, one, other in zip(("out", "dq", "dk", "dv"), ours, theirs, strict=True):
        largest = other.abs().max().clamp(min=0.1)
        assert (one.double() - other).abs().max() <= error * largest, name


@interpreted
@pytest.mark.parametrize(
    ("shape", "num_features", "dtype", "pads", "epsilon", "size"),
    [
        ((2, 1, 1, 16), 16, torch.float32, "none", 1e-12, 1.0),
        ((2, 1, 17, 24), 20, torch.float32, "ragged", 1e-12, 1.0),
        ((1, 1, 128, 64), 128, torch.float32, "none", 1e-12, 1.0),
        ((2, 1, 100, 32), 64, torch.float32, "ragged", 1e-2, 1.0),
        ((3, 1, 40, 16), 32, torch.float32, "all", 0.0, 1.0),
        ((3, 1, 40, 16), 32, torch.float16, "all", 1e-6, 1.0),
        ((1, 2, 64, 32), 64, torch.float32, "none", 1e-12, 6.0),  # exponents to -500
        ((2, 1, 128, 64), 128, torch.float16, "ragged", 1e-12, 1.0),
        ((2, 1, 100, 64), 160, torch.bfloat16, "ragged", 1e-12, 1.0),
        ((1, 1, 70, 128), 256, torch.float16, "none", 1e-6, 2.0),
    ],
    ids=str,
)
def test_as_the_formula(
    shape: tuple[int, int, int, int], num_features: int, dtype: torch.dtype, pads: str, epsilon: float, size: float
) -> None:
    inputs = draw(shape, num_features, dtype, size)
    ours, theirs = both(*inputs, pads_of(pads, shape[0], shape[2]), epsilon)
    check_close(ours, theirs, ERRORS[dtype])
    assert all(x.dtype == dtype and x.transpose(1, 2).is_contiguous() for x in ours)


@interpreted
@pytest.mark.parametrize(("dtype", "num_features"), [(torch.float32, 20), (torch.float16, 144)], ids=str)
def test_long_sequences_are_split(dtype: torch.dtype, num_features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(favor_triton, "_processors", lambda device: 4)
    monkeypatch.setattr(favor_triton, "SPLIT_TOKENS", 64)
    inputs = draw((2, 1, 200, 16), num_features, dtype, 2.0)
    assert favor_triton._Plan(inputs[0], num_features).splits > 1
    check_close(*both(*inputs, pads_of("ragged", 2, 200), 1e-4), ERRORS[dtype])


@interpreted
def test_pads_hold_anything_and_get_nothing() -> None:
    q, k, v, directions, grad = draw((2, 1, 20, 16), 16, torch.float32)
    padding = pads_of("ragged", 2, 20)
    pads = padding[:, None, :, None]
    clean = favor(q, k, v, directions, padding, 1e-12)
    expected = torch.autograd.grad(clean, (q, k, v), grad)
    q, k, v = (x.detach().masked_fill(pads, torch.nan).requires_grad_() for x in (q, k, v))
    out = favor(q, k, v, directions, padding, 1e-12)
    assert torch.equal(out, clean) and not out.masked_select(pads).any()
    for one, other in zip(torch.autograd.grad(out, (q, k, v), grad), expected, strict=True):
        assert torch.equal(one, other) and not one.masked_select(pads).any()


@interpreted
def test_any_strides() -> None:
    inputs = draw((2, 1, 20, 16), 16, torch.float32)
    odd = [x.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for x in inputs[:3]]
    padding = pads_of("ragged", 20, 2).T
    directions, grad = inputs[3].T.contiguous().T, inputs[4].new_ones(()).expand(2, 1, 20, 16)
    check_close(*both(*odd, directions, grad, padding, 1e-12), ERRORS[torch.float32])
    assert odd[0].stride(-1) == 20 and not padding.is_contiguous()


@interpreted
def test_a_broken_example_reaches_no_other() -> None:
    q, k, v, directions, grad = draw((2, 2, 20, 16), 16, torch.float32)
    expected = favor(q, k, v, directions, None, 1e-12).detach()
    k = k.detach().clone()
    k[0, 0, 3, 2] = torch.nan
    out = favor(q, k.requires_grad_(), v, directions, None, 1e-12)
    gradients = torch.autograd.grad(out, (q, k, v), grad)
    assert out[0, 0].isnan().all() and torch.equal(out[1], expected[1])
    assert all(x[1].isfinite().all() and x[0, 0].isnan().any() for x in gradients)


@interpreted
def test_sums_beyond_the_range_of_fp16() -> None:
    q, k, v, directions, _ = draw((1, 1, 200, 16), 16, torch.float16)
    q, k = (torch.zeros_like(x).requires_grad_() for x in (q, k))
    grad = torch.full_like(v, 3e4)
    ours, theirs = both(q, k, v.detach().mul(0.01).requires_grad_(), directions, grad, None, 1e-12)
    check_close(ours, theirs, ERRORS[torch.float16])
    assert 200 * 3e4 / 16 > torch.finfo(torch.float16).max


@interpreted
def test_compiles_into_one_graph() -> None:
    q, k, v, directions, grad = draw((1, 1, 20, 16), 16, torch.float32)
    whole = torch.compile(favor, backend="aot_eager", fullgraph=True)
    sides = [
        (out := function(q, k, v, directions, None, 1e-12), *torch.autograd.grad(out, (q, k, v), grad))
        for function in (favor, whole)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*sides, strict=True))


def test_shapes_without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.empty(2, 3, 40, 64, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in range(3))
    assert not available(q, 128)
    monkeypatch.setattr(kernels, "assumed_capability", (8, 0))
    assert (
        available(q, 128)
        and not available(q.double(), 128)
        and not available(q, 512)
        and not available(q[..., :8], 128)
    )
    out = favor(
        q, k, v, torch.empty(128, 64, device="meta"), torch.empty(2, 40, dtype=torch.bool, device="meta"), 1e-12
    )
    assert out.shape == q.shape and out.dtype == q.dtype and out.transpose(1, 2).is_contiguous()
    out.backward(torch.empty_like(out))
    assert all(x.grad.shape == q.shape and x.grad.dtype == q.dtype for x in (q, k, v))


def test_operations_of_the_products() -> None:
    product = 2 * 2 * 3 * 40 * 64 * 128
    assert favor_triton.operations((2, 3, 40, 64), 128) == (6 * product, 10 * product)


def test_what_does_not_fit_is_refused() -> None:
    q = torch.empty(2, 3, 40, 64, device="meta")
    with pytest.raises(ValueError, match="one shape and one dtype"):
        favor(q, q, q.half(), torch.empty(128, 64, device="meta"), None, 1e-12)
    with pytest.raises(ValueError, match=r"directions \[128, 32\]"):
        favor(q, q, q, torch.empty(128, 32, device="meta"), None, 1e-12)
    with pytest.raises(ValueError, match=r"padding \[2, 39\]"):
        favor(q, q, q, torch.empty(128, 64, device="meta"), torch.empty(2, 39, device="meta"), 1e-12)


COMPILE = """
import re
import subprocess
import sys
from pathlib import Path
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from xcls.attention.kernels import favor_triton

capability, width, num_features = (int(word) for word in sys.argv[1:4])
dtype = getattr(torch, sys.argv[4])
memory = {80: 163, 86: 99, 90: 227}[capability] * 1024  # that a program may share, in bytes
spilled = 64 if width <= 64 and dtype != torch.float32 else 700  # bytes of a thread's registers that go to memory
show = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
kinds = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.bool: "*i1"}
calls = []
triton.JITFunction.run = lambda kernel, *args, grid, warmup, **named: calls.append((kernel, args, named))
favor_triton._processors = lambda device: 108
for batch in (32, 1):  # one part of the sequence, and several
    q, k, v = (torch.zeros(batch, 512, 8, width, dtype=dtype).transpose(1, 2) for _ in range(3))
    given = q, k, v, torch.zeros(num_features, width), torch.zeros(batch, 512, dtype=torch.bool)
    favor_triton._backward(q, *given, *favor_triton._forward(*given, 1e-12))
for kernel, args, named in calls:
    values = dict(zip(kernel.arg_names, args)) | {name: x for name, x in named.items() if name in kernel.arg_names}
    fixed = {p.name: values[p.name] for p in kernel.params if p.is_constexpr or values[p.name] is None}
    signature = {name: "constexpr" if name in fixed else kinds[x.dtype] if isinstance(x, torch.Tensor)
                 else "i32" if isinstance(x, int) else "fp32" for name, x in values.items()}
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name, x in values.items()
               if name not in fixed and (isinstance(x, torch.Tensor) or isinstance(x, int) and "_" in name and x % 16 == 0)}
    source = ASTSource(kernel, signature, fixed, aligned)
    options = {name: x for name, x in named.items() if name not in kernel.arg_names}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    Path("made.cubin").write_bytes(made.asm["cubin"])
    usage = subprocess.run([show, "-res-usage", "made.cubin"], capture_output=True, text=True, check=True).stdout
    stack = int(re.search(r"STACK:(\\d+)", usage)[1])
    assert made.metadata.shared <= memory and stack <= spilled, (kernel.__name__, made.metadata.shared, stack)
    assert "merge" in kernel.__name__ or "mma" in made.asm["ptx"], f"{kernel.__name__} does not use tensor cores"
print(len(calls), "compiled")
"""


@pytest.mark.skipif(favor_triton.triton is None, reason="needs Triton")
@pytest.mark.parametrize(
    ("capability", "width", "num_features", "dtype"),
    [
        (80, 64, 128, "bfloat16"),
        pytest.param(90, 64, 128, "bfloat16", marks=pytest.mark.slow),
        pytest.param(86, 64, 128, "float16", marks=pytest.mark.slow),
        pytest.param(80, 128, 256, "bfloat16", marks=pytest.mark.slow),
        pytest.param(90, 128, 256, "bfloat16", marks=pytest.mark.slow),
        pytest.param(80, 64, 128, "float32", marks=pytest.mark.slow),
    ],
)
def test_compiles_for_every_card(capability: int, width: int, num_features: int, dtype: str, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    words = [sys.executable, "-c", COMPILE, str(capability), str(width), str(num_features), dtype]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.stdout.strip().endswith("compiled"), done.stderr[-2000:]

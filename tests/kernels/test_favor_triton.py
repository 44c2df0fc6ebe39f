"""The Triton kernels of FAVOR+ against the formula: run by Triton's interpreter (TRITON_INTERPRET=1, set before Python
starts), and compiled for the generations of cards, which needs no card."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.attention.kernels import attend
from tests.kernels.compiled import compile_in_a_process
from xcls.attention import kernels
from xcls.attention.base import zero_padding
from xcls.attention.kernels import favor_triton
from xcls.attention.kernels.favor_triton import available, favor

interpreted = pytest.mark.skipif(not kernels.INTERPRETED, reason="needs Triton and TRITON_INTERPRET=1")
ERRORS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of the largest entry: some eight roundings


def formula(q: Tensor, k: Tensor, v: Tensor, directions: Tensor, padding: Tensor | None, epsilon: float) -> Tensor:
    """FAVOR+ as the readable version has it, in fp64; pads are zero."""
    q, k, v, w = (x.double() for x in (q, k, v, directions))
    return zero_padding(attend((w, None), q, k, v, epsilon=epsilon, key_padding_mask=padding), padding)


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
        ((2, 1, 17, 16), 20, torch.float32, "ragged", 1e-12, 1.0),
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
    assert all(x.dtype == dtype for x in ours) and ours[0].transpose(1, 2).is_contiguous()


@interpreted
@pytest.mark.parametrize(("dtype", "num_features"), [(torch.float32, 20), (torch.float16, 144)], ids=str)
def test_long_sequences_are_split(dtype: torch.dtype, num_features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(favor_triton, "_processors", lambda device: 4)
    monkeypatch.setattr(favor_triton, "SPLIT_TOKENS", 64)
    inputs = draw((2, 1, 200, 16), num_features, dtype, 2.0)
    assert favor_triton._Plan(inputs[0], num_features).splits > 1
    check_close(*both(*inputs, pads_of("ragged", 2, 200), 1e-4), ERRORS[dtype])


@interpreted
def test_pads_hold_anything_and_strides_are_any() -> None:
    q, k, v, directions, grad = draw((2, 1, 20, 16), 16, torch.float32)
    padding = pads_of("ragged", 20, 2).T
    pads = padding[:, None, :, None]
    clean = favor(q, k, v, directions, padding, 1e-12)
    expected = torch.autograd.grad(clean, (q, k, v), grad)
    odd = [x.detach().masked_fill(pads, torch.nan).transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)]
    out = favor(*(x.requires_grad_() for x in odd), directions.T.contiguous().T, padding, 1e-12)
    assert torch.equal(out, clean) and not out.masked_select(pads).any() and not padding.is_contiguous()
    for one, other in zip(torch.autograd.grad(out, odd, grad), expected, strict=True):
        assert torch.equal(one, other) and not one.masked_select(pads).any()


@interpreted
def test_nan_reaches_no_other_example() -> None:
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


def compiled(capability: int, width: int, num_features: int, dtype: str) -> list[dict[str, Any]]:
    """Cases of `compile_in_a_process`: all kernels, as `favor_triton` launches them."""
    plan = favor_triton._Plan(torch.empty(1, 8, 512, width, dtype=getattr(torch, dtype)), num_features)
    short = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}[dtype]
    types = dict.fromkeys("q k v halves mean out grad dq dk dv".split(), short) | {"padding": "*i1"}
    types |= dict.fromkeys(
        "peaks totals weighteds valueses counts tops level floor normaliser dmeans dtotals share".split(), "*fp32"
    )
    launches = {
        "sum_keys": (plan.sums, {}),
        "merge_sums": (plan.merges, {"log_epsilon": "fp32"}),
        "answer_queries": (plan.queries, {}),
        "backward_queries": (plan.sums, {"dmean": "*fp32", "dtotal": "*fp32"}),
        "merge_gradients": (plan.merges, {"dmean": short, "dtotal": "*fp32"}),
        "backward_keys": (plan.keys, {"dmean": short, "dtotal": "*fp32"}),
    }
    backward = ("backward_queries", "merge_gradients", "backward_keys")
    return [
        {
            "module": f"xcls.attention.kernels.favor_{'gradients' if kernel in backward else 'kernels'}",
            "kernel": kernel,
            "capability": capability,
            "fixed": fixed,
            "types": types | more,
            "options": {name: fixed[name] for name in ("num_warps", "num_stages") if name in fixed},
            "spilled": 64 if width <= 64 and dtype != "float32" else 700,
        }
        for kernel, (fixed, more) in launches.items()
    ]


@pytest.mark.skipif(favor_triton.triton is None, reason="needs Triton")
@pytest.mark.parametrize(
    ("capability", "width", "num_features", "dtype"),
    [
        (80, 64, 128, "bfloat16"),
        pytest.param(90, 64, 128, "bfloat16", marks=pytest.mark.slow),
        pytest.param(86, 64, 128, "float16", marks=pytest.mark.slow),
        pytest.param(80, 128, 256, "bfloat16", marks=pytest.mark.slow),
        pytest.param(80, 64, 128, "float32", marks=pytest.mark.slow),
    ],
)
def test_compiles_for_every_card(capability: int, width: int, num_features: int, dtype: str) -> None:
    for made in compile_in_a_process(compiled(capability, width, num_features, dtype)):
        assert made["tensor_cores"] == ("merge" not in made["kernel"])

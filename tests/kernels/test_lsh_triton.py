"""LSH attention in Triton against the dense formula: run by Triton's interpreter (TRITON_INTERPRET=1, set before Python
starts), and compiled for the cards that it is for, which needs no card."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.attention.oracles import lsh_over
from tests.kernels.compiled import compile_in_a_process
from tests.pairwise import few
from xcls.attention import kernels
from xcls.attention.base import Masks, zero_padding
from xcls.attention.kernels import lsh_triton, lsh_windows
from xcls.attention.kernels.lsh_triton import attend_sorted
from xcls.attention.kernels.lsh_windows import attend_in_windows
from xcls.attention.lsh import Reformer
from xcls.attention.lsh_local import ReformerLocal
from xcls.attention.sorted_chunks import Chunks

interpreted = pytest.mark.skipif(not kernels.INTERPRETED, reason="needs Triton and TRITON_INTERPRET=1")
HALF, FULL = torch.float16, torch.float32


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw_order(rounds: int, length: int, count: Tensor, heads: int = 1) -> Tensor:
    """Any order of the real tokens of each round, pads last: [B, H, R, N]."""
    noise = draw(len(count), heads, rounds, length, seed=1).abs() + 9.0 * pads_of(count, length)[:, None, None]
    return noise.argsort(dim=-1).int()


def pads_of(count: Tensor, length: int) -> Tensor:
    return torch.arange(length) >= count[:, None]


def dense(qk: Tensor, v: Tensor, order: Tensor, count: Tensor, chunk: int, before: int, after: int) -> Tensor:
    """The softmax over the union of candidates on the whole N x N matrix: [B, H, N, D], zero in pads."""
    pads = pads_of(count, qk.shape[2])
    out = lsh_over(qk, v, order.argsort(dim=-1), Masks(pads), chunk=chunk, before=before, after=after)
    return zero_padding(out, pads)


def in_programs(qk: Tensor, v: Tensor, order: Tensor, count: Tensor, chunk: int, before: int, after: int) -> Tensor:
    return attend_sorted(qk, v, order, count, chunk=chunk, before=before, after=after)


def in_windows(qk: Tensor, v: Tensor, order: Tensor, count: Tensor, chunk: int, before: int, after: int) -> Tensor:
    out = attend_in_windows(qk, v, Chunks(order, order, count, chunk, before, after), Masks())
    return out.masked_fill(pads_of(count, qk.shape[2])[:, None, :, None], 0.0)


both_ways = pytest.mark.parametrize("ours", [in_programs, in_windows])


def results(attend: Callable[..., Tensor], qk: Tensor, v: Tensor, weight: Tensor, *how: Any) -> list[Tensor]:
    """Output and gradients of `attend`, in fp64."""
    qk, v = (x.detach().requires_grad_() for x in (qk, v))
    out = attend(qk, v, *how)
    return [x.double() for x in (out.detach(), *torch.autograd.grad(out, (qk, v), weight.to(out.dtype)))]


def check(ours: Callable[..., Tensor], qk: Tensor, v: Tensor, order: Tensor, count: Tensor, *sizes: int) -> None:
    """Output and gradients as the formula has them for the same numbers; pads give zeros."""
    weight = draw(*qk.shape, seed=3).to(qk.dtype)
    found = results(ours, qk, v, weight, order, count, *sizes)
    expected = results(dense, qk.double(), v.double(), weight, order, count, *sizes)
    rounding = 3e-6 if qk.dtype == FULL else 4e-3 if ours is in_windows else 3e-3
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= rounding * other.abs().max().clamp(min=0.1)
        assert not one.transpose(1, 2)[pads_of(count, qk.shape[2])].any()


@interpreted
@pytest.mark.parametrize(
    ("ours", "length", "chunk", "rounds", "before", "after", "dtype", "width"),
    [
        (in_programs, 1, 64, 1, 1, 0, HALF, 16),
        (in_programs, 50, 24, 2, 0, 0, FULL, 16),
        (in_programs, 128, 64, 1, 1, 1, FULL, 16),
        (in_programs, 50, 16, 4, 0, 2, HALF, 32),
        (in_programs, 150, 64, 2, 1, 0, FULL, 16),
        (in_windows, 1, 64, 1, 1, 0, HALF, 16),
        (in_windows, 50, 24, 1, 1, 0, FULL, 16),
        (in_windows, 128, 64, 1, 1, 0, HALF, 64),
        (in_windows, 70, 16, 1, 1, 2, FULL, 16),
    ],
)
def test_as_the_formula(
    ours: Callable[..., Tensor], length: int, chunk: int, rounds: int, before: int, after: int, dtype: Any, width: int
) -> None:
    count = torch.tensor([length, 2 * length // 3 + 1, 0], dtype=torch.int32)
    qk, v = draw(3, length, 2, 2, width).permute(2, 0, 3, 1, 4).to(dtype)  # views of one projection
    check(ours, qk, v, draw_order(rounds, length, count, heads=2), count, chunk, before, after)


@interpreted
@both_ways
def test_a_gradient_with_no_strides_and_no_count(ours: Callable[..., Tensor]) -> None:
    order, qk, v = draw_order(1, 9, torch.tensor([9])), draw(1, 1, 9, 16), draw(1, 1, 9, 16, seed=1)
    count = torch.tensor([9]) if ours is in_windows else None
    weights = torch.ones(()).expand_as(v), torch.ones_like(v)
    gradients = [results(ours, qk, v, weight, order, count, 16, 1, 0)[1:] for weight in weights]
    assert all(map(torch.equal, *gradients))


@interpreted
def test_a_key_counts_once_and_a_token_for_itself_only_if_alone_in_all_rounds() -> None:
    order, qk, v = draw_order(1, 20, torch.tensor([20])), draw(1, 1, 20, 16), draw(1, 1, 20, 16, seed=1)
    orders = order, order.expand(1, 1, 3, 20)
    once, thrice = (results(in_programs, qk, v, v, each, None, 16, 1, 0) for each in orders)
    torch.testing.assert_close(once, thrice, rtol=1e-6, atol=1e-7)
    order = torch.tensor([[0, 1, 2], [2, 0, 1]], dtype=torch.int32)[None, None]
    qk, v = 3 * draw(1, 1, 3, 16), draw(1, 1, 3, 16, seed=1)  # the logit of a token for itself is by far the largest
    out, d_qk, d_v = results(in_programs, qk, v, v, order, None, 1, 0, 0)
    assert torch.equal(out, v.double()) and not d_qk.any() and torch.equal(d_v, v.double())
    check(in_programs, qk, v, order, torch.tensor([3]), 2, 0, 0)


@interpreted
@pytest.mark.parametrize(("ours", "rounds"), [(in_programs, 1), (in_programs, 2), (in_windows, 1)])
def test_zeros_give_the_mean_and_finite_gradients(ours: Callable[..., Tensor], rounds: int) -> None:
    count = torch.tensor([20, 1, 0])
    qk, v = torch.zeros(3, 1, 20, 16), draw(3, 1, 20, 16)
    check(ours, qk, v, draw_order(rounds, 20, count), count, 32, 0, 0)


@interpreted
@both_ways
def test_nan_stays_in_its_example_and_pads_are_not_read(ours: Callable[..., Tensor]) -> None:
    count = torch.tensor([20, 20, 11], dtype=torch.int32)
    order, qk, v = draw_order(1, 20, count), draw(3, 1, 20, 16), draw(3, 1, 20, 16, seed=1)
    clean = results(ours, qk, v, v, order, count, 16, 1, 1)
    qk[1, 0, 3], v[1, 0, 5] = torch.nan, torch.inf
    if ours is in_programs:  # windows are given finite pads
        qk[2, 0, 11:], v[2, 0, 11:] = torch.nan, torch.nan
    broken = results(ours, qk, v, v.nan_to_num(), order, count, 16, 1, 1)
    for one, other in zip(clean, broken, strict=True):
        assert torch.equal(one[[0, 2], :, :11], other[[0, 2], :, :11])
    assert broken[0][1].isnan().any()


@interpreted
@pytest.mark.parametrize(("kind", "rounds"), [(Reformer, 1), (Reformer, 3), (ReformerLocal, 2)])
def test_a_mechanism_takes_them(monkeypatch: pytest.MonkeyPatch, kind: type[Reformer], rounds: int) -> None:
    reformer = kind(num_heads=2, head_dim=16, layer=0, seed=1, num_hashes=rounds, bucket_size=16)
    qk, v = draw(2, 2, 2, 71, 16)
    count = torch.tensor([71, 41])
    pads = pads_of(count, 71)

    def mechanism(qk: Tensor, v: Tensor) -> Tensor:
        return reformer(qk, qk, v, Masks(pads))

    found = []
    for ways in ({"programs"}, {"windows"}, set()):  # what Triton does
        monkeypatch.setattr(lsh_triton, "available", lambda x, ways=ways: "programs" in ways)
        monkeypatch.setattr(lsh_windows, "available", lambda x, ways=ways: "windows" in ways)
        found.append(results(mechanism, qk, v, v))
    for one in found[:-1]:
        torch.testing.assert_close(one, found[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rounds", [1, 4])
def test_shapes_without_numbers(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    qk, v = torch.empty(2, 30, 2, 4, 32, dtype=torch.bfloat16, device="meta", requires_grad=True).permute(2, 0, 3, 1, 4)
    assert not lsh_triton.available(qk) and not lsh_windows.available(qk)
    monkeypatch.setattr(kernels, "assumed_capability", (8, 0))
    assert lsh_triton.available(qk) and not lsh_triton.available(qk.double()) and not lsh_triton.available(qk[..., :24])
    order, count = (torch.empty(size, dtype=torch.int32, device="meta") for size in ((2, 4, rounds, 30), (2,)))
    ways = [(attend_sorted(qk, v, order, count, chunk=8), (qk, v))]
    monkeypatch.setattr(kernels, "assumed_capability", (7, 0))
    assert not lsh_triton.available(qk) and not lsh_windows.available(qk) and lsh_windows.available(qk.half())
    if rounds == 1:
        ways.append((attend_in_windows(qk, v, Chunks(order, order, count, 8, 1, 0), Masks()), (qk, v)))
    for out, leaves in ways:
        assert out.shape == v.shape and out.dtype == v.dtype and out.transpose(1, 2).is_contiguous()
        assert all(x.shape == v.shape for x in torch.autograd.grad(out, leaves, torch.empty_like(out)))


@interpreted
def test_shapes_with_numbers_are_the_same_and_there_may_be_nothing() -> None:
    order = draw_order(2, 5, torch.tensor([5, 5]), heads=3)
    for batch in (2, 0):
        arguments = (draw(2, 3, 5, 16)[:batch], draw(2, 3, 5, 16)[:batch], order[:batch], None, 4, 1, 0)
        real = torch.ops.xcls.lsh_forward(*arguments)
        meta = torch.ops.xcls.lsh_forward(*(x.to("meta") if isinstance(x, Tensor) else x for x in arguments))
        assert [(x.shape, x.stride(), x.dtype) for x in real] == [(x.shape, x.stride(), x.dtype) for x in meta]


def compiled(kernel: str, capability: int, dtype: str, width: int, **fixed: int) -> dict[str, Any]:
    """A case of `compile_in_a_process`."""
    like = torch.empty(1, 1, 1, width, dtype={"fp16": HALF, "bf16": torch.bfloat16, "fp32": FULL}[dtype], device="meta")
    options = lsh_triton.options(like, 64) | {"CHUNK": 64, "BEFORE": 1, "AFTER": 0, "ROUND": 0} | fixed
    module = "lsh_programs" if kernel in ("forward_kernel", "backward_kernel") else "lsh_windows"
    if module == "lsh_windows":
        options["TILE"] = lsh_windows.TILE
    integers = dict.fromkeys(("ORDER", "COUNT", "CHUNKS"), "*i32") | {"LSE": "*fp32"}
    tensors = "QK V OUT GRAD D_QK D_V Q KEYS VALUES D_Q D_K D_X D_VALUES".split()
    return {
        "module": f"xcls.attention.kernels.{module}",
        "kernel": kernel,
        "capability": capability,
        "fixed": options,
        "types": dict.fromkeys(tensors, f"*{dtype}") | integers,
        "options": {"num_warps": 4, "num_stages": 1} if module == "lsh_programs" else {},
        "spilled": 64 if module == "lsh_programs" else 0,
    }


@pytest.mark.skipif(kernels.triton is None, reason="needs Triton")
@pytest.mark.parametrize("which", few(["newer cards", "older cards", "other settings"], 2))
def test_compiles_within_shared_memory_and_registers(which: str) -> None:
    pair, windows = ("forward_kernel", "backward_kernel"), ("windows_kernel", "tokens_kernel")
    cases = {
        "newer cards": [compiled(kernel, 80, "bf16", 64) for kernel in pair],
        "older cards": [compiled(kernel, 75, "fp16", 64) for kernel in windows],
        "other settings": [compiled(kernel, 90, "bf16", width) for kernel in pair for width in (64, 128)]
        + [compiled(kernel, 80, "fp16", 64, ROUND=3) for kernel in pair]
        + [compiled(kernel, 80, "fp32", 64) for kernel in pair]
        + [compiled(kernel, 70, "fp16", 64) for kernel in windows]
        + [compiled(kernel, 75, "fp32", 128) for kernel in windows],
    }[which]
    for made in compile_in_a_process(cases):
        assert made["tensor_cores"] == (made["kernel"] in pair)

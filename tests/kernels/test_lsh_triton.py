"""LSH attention in Triton against the dense formula: run by Triton's interpreter (TRITON_INTERPRET=1, set before Python
starts), and compiled for two generations of cards, which needs no card."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.pairwise import few
from xcls.attention import kernels
from xcls.attention.kernels.lsh_triton import attend_sorted, available, hash_keys, operations, sort_keys

interpreted = pytest.mark.skipif(not kernels.INTERPRETED, reason="needs Triton and TRITON_INTERPRET=1")


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
    length, width = qk.shape[-2:]
    place = torch.arange(length).expand_as(order)
    chunks = torch.empty_like(order).scatter_(-1, order.long(), (place // chunk).int())  # [B, H, R, N]
    apart = chunks[..., None, :] - chunks[..., :, None]
    pads = pads_of(count, length)[:, None]
    allowed = ((apart >= -before) & (apart <= after)).any(dim=2) & ~pads[:, :, None, :]
    others = allowed & ~torch.eye(length, dtype=torch.bool)
    allowed = torch.where(others.any(dim=-1, keepdim=True), others, allowed)
    keys = qk * (qk.square().mean(dim=-1, keepdim=True) + 1e-12).rsqrt() / width**0.5
    logits = (qk @ keys.transpose(-1, -2)).masked_fill(~allowed, -1e300)
    return (logits.softmax(dim=-1) @ v).masked_fill(pads[..., None], 0.0)


def results(attend: callable, qk: Tensor, v: Tensor, weight: Tensor) -> list[Tensor]:
    """Output and gradients of `attend`, in fp64."""
    qk, v = (x.detach().requires_grad_() for x in (qk, v))
    out = attend(qk, v)
    return [x.double() for x in (out.detach(), *torch.autograd.grad(out, (qk, v), weight.to(out.dtype)))]


def check(
    qk: Tensor, v: Tensor, order: Tensor, count: Tensor, chunk: int, before: int, after: int, known: bool = True
) -> None:
    """Output and gradients as the formula has them for the same numbers; pads give zeros."""
    weight = draw(*qk.shape, seed=3).to(qk.dtype)
    ours = results(
        lambda q, v: attend_sorted(q, v, order, count if known else None, chunk=chunk, before=before, after=after),
        qk,
        v,
        weight,
    )
    theirs = results(lambda q, v: dense(q, v, order, count, chunk, before, after), qk.double(), v.double(), weight)
    rounding = 3e-6 if qk.dtype == torch.float32 else 3e-3
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= rounding * other.abs().max().clamp(min=0.1)
        assert not one.transpose(1, 2)[pads_of(count, qk.shape[2])].any()


HALF, FULL = torch.float16, torch.float32


@interpreted
@pytest.mark.parametrize(
    ("length", "chunk", "rounds", "before", "after", "dtype"),
    few(
        [
            (1, 64, 1, 1, 0, HALF),
            (50, 16, 1, 1, 0, HALF),
            (50, 32, 4, 0, 0, FULL),
            (50, 24, 2, 0, 0, FULL),
            (128, 64, 1, 1, 1, FULL),
            (128, 64, 2, 1, 0, HALF),
            (300, 64, 1, 1, 0, FULL),
            (300, 128, 1, 0, 0, HALF),
            (1, 16, 4, 0, 2, FULL),
            (50, 16, 4, 1, 0, FULL),
            (50, 16, 2, 0, 2, HALF),
            (128, 16, 2, 2, 1, FULL),
            (300, 64, 4, 1, 0, HALF),
            (300, 16, 2, 1, 1, FULL),
        ],
        8,
    ),
)
def test_as_the_formula(length: int, chunk: int, rounds: int, before: int, after: int, dtype: torch.dtype) -> None:
    count = torch.tensor([length, 2 * length // 3 + 1], dtype=torch.int32)
    qk, v = (draw(2, 1, length, 16, seed=seed).to(dtype) for seed in (4, 5))
    check(qk, v, draw_order(rounds, length, count), count, chunk, before, after)


@interpreted
def test_views_of_a_projection_several_heads_and_no_pads() -> None:
    qk, v = draw(2, 20, 2, 3, 16).permute(2, 0, 3, 1, 4)
    count = torch.tensor([20, 20])
    check(qk, v, draw_order(1, 20, count, heads=3), count, 16, 1, 0, known=False)


@interpreted
def test_a_gradient_with_no_strides() -> None:
    order, qk, v = draw_order(1, 9, torch.tensor([9])), draw(1, 1, 9, 16), draw(1, 1, 9, 16, seed=1)
    gradients = [
        results(lambda q, v: attend_sorted(q, v, order, None, chunk=16), qk, v, weight)[1:]
        for weight in (torch.ones(()).expand_as(v), torch.ones_like(v))
    ]
    assert all(map(torch.equal, *gradients))


@interpreted
def test_the_same_round_thrice_is_that_round_once() -> None:
    order, qk, v = draw_order(1, 20, torch.tensor([20])), draw(1, 1, 20, 16), draw(1, 1, 20, 16, seed=1)
    once, thrice = (
        results(lambda q, v: attend_sorted(q, v, o, None, chunk=16), qk, v, v)
        for o in (order, order.expand(1, 1, 3, 20))
    )
    torch.testing.assert_close(once, thrice, rtol=1e-6, atol=1e-7)


@interpreted
def test_a_token_attends_to_itself_only_if_alone_in_all_rounds() -> None:
    order = torch.tensor([[0, 1, 2], [2, 0, 1]], dtype=torch.int32)[None, None]
    qk, v = 3 * draw(1, 1, 3, 16), draw(1, 1, 3, 16, seed=1)  # the logit of a token for itself is by far the largest
    out, d_qk, d_v = results(lambda q, v: attend_sorted(q, v, order, None, chunk=1, before=0), qk, v, v)
    assert torch.equal(out, v.double()) and not d_qk.any() and torch.equal(d_v, v.double())
    assert torch.equal(
        attend_sorted(qk, v, order, None, chunk=2, before=0)[:, :, 1:], v[:, :, [0, 0]]
    )  # 1 meets 0 first, 2 later
    check(qk, v, order, torch.tensor([3]), 2, 0, 0, known=False)


@interpreted
@pytest.mark.parametrize("rounds", [1, 2])
def test_zeros_give_the_mean_and_finite_gradients(rounds: int) -> None:
    count = torch.tensor([20, 1, 0])
    qk, v = torch.zeros(3, 1, 20, 16), draw(3, 1, 20, 16)
    check(qk, v, draw_order(rounds, 20, count), count, 32, 0, 0)


@interpreted
def test_what_is_no_number_stays_in_its_example_and_pads_are_not_read() -> None:
    count = torch.tensor([20, 20, 11], dtype=torch.int32)
    order, qk, v = draw_order(2, 20, count), draw(3, 1, 20, 16), draw(3, 1, 20, 16, seed=1)
    attend = lambda q, v: attend_sorted(q, v, order, count, chunk=16, after=1)  # noqa: E731
    clean = results(attend, qk, v, v)
    qk[1, 0, 3], v[1, 0, 5], qk[2, 0, 11:], v[2, 0, 11:] = float("nan"), float("inf"), float("nan"), float("nan")
    spoilt = results(attend, qk, v, v.nan_to_num())
    assert (
        all(torch.equal(a[[0, 2], :, :11], b[[0, 2], :, :11]) for a, b in zip(clean, spoilt))
        and spoilt[0][1].isnan().any()
    )


@interpreted
@pytest.mark.parametrize(
    ("dtype", "columns", "width"), [(FULL, 40, 16), (HALF, 4, 32), (torch.bfloat16, 3, 16)], ids=str
)
def test_keys_are_the_largest_of_both_signs(dtype: torch.dtype, columns: int, width: int) -> None:
    """With 40 columns all 70 tokens have buckets of one token, and the kernel three tiles of columns; with 3 or 4 all are used."""
    size = 1 if columns == 40 else 4
    count, x, rotations = torch.tensor([70, 33]), draw(2, 2, 70, width).to(dtype), draw(3, 2, width, columns, seed=2)
    x[0, 0, 7] = 0.0
    x[0, 1, 8] = float("nan")
    padding = pads_of(count, 70)
    keys = hash_keys(x.transpose(1, 2).contiguous().transpose(1, 2), rotations, size, padding=padding)
    assert keys.dtype == torch.int32 and torch.equal(keys % 70, torch.arange(70).expand_as(keys))
    assert (keys // 70 == 2 * columns)[padding[:, None, None].expand_as(keys)].all()
    for b, real in enumerate(count.tolist()):
        half = min(max(-(-real // (2 * size)), 1), columns)
        rotated = torch.einsum("hnd,rhdm->hrnm", x[b, :, :real].double(), rotations[..., :half].double())
        both = torch.cat((rotated, -rotated), dim=-1)
        first, second = both.nan_to_num().topk(2, dim=-1).values.unbind(-1)
        expected = both.nan_to_num().argmax(dim=-1)
        assert (keys[b, :, :, :real] // 70 == expected)[(first - second > 1e-5) | (first == 0)].all()
    order = sort_keys(keys)
    assert order.dtype == torch.int32 and torch.equal(
        order.sort(dim=-1).values, torch.arange(70).int().expand_as(order)
    )
    assert padding[1][order[1, ..., 33:].long()].all()


@interpreted
def test_keys_do_not_depend_on_padding() -> None:
    x, rotations = draw(1, 2, 40, 16), draw(1, 2, 16, 8, seed=2)
    alone = hash_keys(x[:, :, :22], rotations, 4)
    padded = hash_keys(
        x, rotations, 4, padding=pads_of(torch.tensor([22]), 40), count=torch.tensor([22], dtype=torch.int32)
    )
    assert (
        torch.equal(alone // 22, padded[..., :22] // 40) and (alone // 22).max() == 5
    )  # 22 / 4, rounded up to an even number


@pytest.mark.parametrize("rounds", [1, 4])
def test_shapes_without_numbers(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    qk, v = torch.empty(2, 30, 2, 4, 32, dtype=torch.bfloat16, device="meta", requires_grad=True).permute(2, 0, 3, 1, 4)
    assert not available(qk)
    monkeypatch.setattr(kernels, "assumed_capability", (8, 0))
    assert available(qk) and available(qk, hashing=True) and not available(qk.double()) and not available(qk[..., :24])
    keys = hash_keys(
        qk, torch.empty(rounds, 4, 32, 8, device="meta"), 8, padding=torch.empty(2, 30, dtype=torch.bool, device="meta")
    )
    assert keys.shape == (2, 4, rounds, 30) and keys.dtype == torch.int32 and not keys.requires_grad
    out = attend_sorted(qk, v, sort_keys(keys), torch.empty(2, dtype=torch.int32, device="meta"), chunk=8)
    assert out.shape == v.shape and out.dtype == v.dtype and out.transpose(1, 2).is_contiguous()
    gradients = torch.autograd.grad(out, (qk, v), torch.empty_like(out))
    assert all(x.shape == v.shape and x.transpose(1, 2).is_contiguous() for x in gradients)


@interpreted
def test_shapes_with_numbers_are_the_same_and_there_may_be_nothing() -> None:
    order = draw_order(2, 5, torch.tensor([5, 5]), heads=3)
    for batch in (2, 0):
        arguments = (draw(2, 3, 5, 16)[:batch], draw(2, 3, 5, 16)[:batch], order[:batch], None, 4, 1, 0)
        real = torch.ops.xcls.lsh_forward(*arguments)
        meta = torch.ops.xcls.lsh_forward(*(x.to("meta") if isinstance(x, Tensor) else x for x in arguments))
        assert [(x.shape, x.stride(), x.dtype) for x in real] == [(x.shape, x.stride(), x.dtype) for x in meta]


def test_bad_arguments_are_refused() -> None:
    qk, order = torch.empty(2, 3, 5, 16, device="meta"), torch.empty(2, 3, 1, 5, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match=r"order must be int32 \[B, H, R, N\], not torch.int64"):
        attend_sorted(qk, qk, order, None, chunk=4)
    with pytest.raises(ValueError, match="must be alike"):
        attend_sorted(qk, qk.half(), order.int(), None, chunk=4)
    with pytest.raises(ValueError, match="rotations for 2 heads"):
        hash_keys(qk, torch.empty(1, 2, 16, 8, device="meta"), 4)
    with pytest.raises(ValueError, match="lower max_buckets"):
        hash_keys(qk.expand(2, 3, 5, 16).repeat(1, 1, 2**20, 1), torch.empty(1, 3, 16, 512, device="meta"), 4)


def test_operations_are_those_of_the_chunks_that_are_seen() -> None:
    assert operations((1, 1, 64, 8), chunk=64) == (2 * 2 * 64 * 64 * 8, 7 * 2 * 64 * 64 * 8)
    forward, backward = operations((2, 3, 512, 64), chunk=64, rounds=2)  # 8 chunks see 15
    assert forward == 2 * 2 * (2 * 3 * 2) * 15 * 64 * 64 * 64 and 2 * backward == 7 * forward


COMPILE = """
import subprocess, sys, tempfile
from pathlib import Path
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from xcls.attention.kernels import lsh_programs as programs
from xcls.attention.kernels.lsh_triton import options

MEMORY = {70: 96, 75: 64, 80: 163, 90: 227}  # KiB of shared memory of a program
TYPES = {"ORDER": "*i32", "COUNT": "*i32", "CHUNKS": "*i32", "KEYS": "*i32", "LSE": "*fp32", "ROTATIONS": "*fp32", "PADDING": "*u8"}


def build(kernel, capability, dtype, width, round_=0, **more):
    like = torch.empty(1, 1, 1, width, dtype=dtype, device="meta")
    options_ = options(like, 64)
    fixed = {**options_, "CHUNK": 64, "BEFORE": 1, "AFTER": 0, "ROUND": round_, "WIDTH": 16, **more}
    fixed = {name: value for name, value in fixed.items() if name in kernel.arg_names}
    number = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    kinds = {name: "constexpr" if name in fixed else TYPES.get(name, f"*{number}") if name.isupper() else "i32" for name in kernel.arg_names}
    loose = ("heads", "rounds", "columns", "size")  # all else is a multiple of 16
    even = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name not in fixed and name not in loose}
    launch = {name: options_[name] for name in ("num_warps", "num_stages")}
    built = triton.compile(ASTSource(kernel, kinds, fixed, even), target=GPUTarget("cuda", capability, 32), options=launch)
    assert built.metadata.shared <= 1024 * MEMORY[capability], (kernel, capability, dtype, width, built.metadata.shared)
    product = "wgmma" if capability == 90 and width == 64 else "mma.sync"
    assert kernel in (programs.keys_kernel, programs.chunks_kernel) or product in built.asm["ptx"], "no tensor cores"
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"]), file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True).stdout
    spilled = int(usage.partition("STACK:")[2].partition(" ")[0])
    print(kernel.__name__, capability, number, width, usage.partition("REG:")[2].partition(" ")[0], built.metadata.shared, spilled)
    assert spilled <= 64, "what does not fit into registers is moved to memory"


half, low = torch.float16, torch.bfloat16
if sys.argv[1] == "80":
    build(programs.keys_kernel, 70, half, 64)
    build(programs.forward_kernel, 80, low, 64)
    build(programs.backward_kernel, 80, low, 64)
elif sys.argv[1] == "90":
    build(programs.forward_kernel, 90, low, 64)
    build(programs.backward_kernel, 90, low, 64)
else:
    build(programs.chunks_kernel, 80, half, 64)
    build(programs.keys_kernel, 75, half, 64)
    build(programs.keys_kernel, 90, low, 128, COUNT=None, PADDING=None, heads=1, length=1, rounds=1)
    for kernel in (programs.forward_kernel, programs.backward_kernel):
        build(kernel, 80, low, 64, COUNT=None, heads=1, length=1, rounds=1)
        build(kernel, 80, low, 128)
        build(kernel, 90, low, 128)
        build(kernel, 80, half, 64, 3)
        build(kernel, 80, torch.float32, 64)
print("all compiled")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize("part", few(["80", "90", "rest"], 2))
def test_compiles_within_shared_memory_and_registers(part: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    script = tmp_path / "compile_kernels.py"  # Triton reads the source of no function that was typed in with -c
    script.write_text(COMPILE)
    environment["PYTHONPATH"] = os.getcwd()
    done = subprocess.run([sys.executable, script, part], env=environment, capture_output=True, text=True)
    assert done.stdout.endswith("all compiled\n"), done.stdout + done.stderr

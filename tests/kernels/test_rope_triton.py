"""The Triton kernels that split heads and rotate, against the readable formula: run by Triton's interpreter
(TRITON_INTERPRET=1, set before Python starts), and compiled for every generation of cards, which needs no card."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from xcls.attention import kernels
from xcls.position import rope_triton
from xcls.position.rope import rotary_angles, rotate_pairs

interpreted = pytest.mark.skipif(not kernels.INTERPRETED, reason="needs Triton and TRITON_INTERPRET=1")


def angles(length: int, width: int) -> tuple[Tensor, Tensor]:
    table = rotary_angles(length, width, 100.0)
    return table.cos().float(), table.sin().float()


def plain(x: Tensor, cos: Tensor, sin: Tensor, turned: int) -> list[Tensor]:
    parts = [part.transpose(1, 2) for part in x.unbind(2)]
    return [rotate_pairs(part, cos, sin) if i < turned else part for i, part in enumerate(parts)]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def check(x: Tensor, turned: int) -> None:
    """Outputs and the gradient for x [B, N, P, H, D]; the kernel computes as the formula does, to a rounding."""
    cos, sin = (table.to(x.device) for table in angles(x.shape[1], x.shape[4]))
    x = x.detach().requires_grad_()
    ours, theirs = rope_triton.split_heads(x, cos, sin, turned), plain(x, cos, sin, turned)
    weights = [draw(*part.shape).to(x) for part in ours]
    gradients = [torch.autograd.grad(parts, x, weights)[0] for parts in (ours, theirs)]
    assert all(part.is_contiguous() and part.dtype == x.dtype for part in ours)
    for one, other in zip((*ours, gradients[0]), (*theirs, gradients[1]), strict=True):
        rounding = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[x.dtype]
        torch.testing.assert_close(one, other, rtol=rounding, atol=1e-6 if x.dtype == torch.float32 else 1e-4)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("parts", "turned"), [(p, t) for p in (1, 2, 3) for t in range(p + 1)])
def test_as_the_formula(parts: int, turned: int, dtype: torch.dtype) -> None:
    check(draw(2, 5, parts, 2, 6, dtype=dtype), turned)


@interpreted
@pytest.mark.parametrize("shape", [(1, 1, 3, 1, 1), (1, 3, 2, 1, 7), (1, 40, 3, 1, 128), (3, 0, 3, 2, 4)], ids=str)
def test_odd_widths_several_blocks_and_nothing(shape: tuple[int, ...]) -> None:
    check(draw(*shape), 2)


@interpreted
def test_any_strides() -> None:
    check(draw(2, 6, 3, 2, 16)[:, ::2, :, :, ::2], 2)
    check(draw(4, 2, 3, 5, 2).permute(1, 3, 2, 4, 0), 2)  # channels lie farthest apart


@interpreted
def test_a_gradient_with_no_strides() -> None:
    cos, sin = angles(5, 4)
    x = draw(2, 5, 2, 2, 4).requires_grad_()
    gradients = [
        torch.autograd.grad(sum(part.sum() for part in parts), x)[0]
        for parts in (rope_triton.split_heads(x, cos, sin, 1), plain(x, cos, sin, 1))
    ]
    torch.testing.assert_close(*gradients)


@interpreted
def test_the_last_of_the_parts_alone_has_a_gradient() -> None:
    cos, sin = angles(5, 4)
    x = draw(2, 5, 3, 2, 4).requires_grad_()
    rope_triton.split_heads(x, cos, sin, 2)[2].sum().backward()
    assert torch.equal(x.grad, torch.tensor([0.0, 0.0, 1.0])[None, None, :, None, None].expand_as(x))


@interpreted
def test_what_is_copied_is_copied_to_the_bit() -> None:
    x = draw(1, 3, 2, 1, 4)
    x[0, 1, 1, 0] = torch.tensor([float("nan"), float("inf"), -0.0, 1.0])
    out = rope_triton.split_heads(x, *angles(3, 4), 1)[1]
    assert torch.equal(out.view(torch.int32), x[:, :, 1].transpose(1, 2).contiguous().view(torch.int32))


@interpreted
def test_rotate_alone() -> None:
    x = draw(2, 3, 5, 8).requires_grad_()
    cos, sin = angles(5, 8)
    ours, theirs = rope_triton.rotate(x, cos, sin), rotate_pairs(x, cos, sin)
    weight = draw(*x.shape) + 1
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, x, weight)[0], torch.autograd.grad(theirs, x, weight)[0])


@pytest.mark.parametrize("turned", [0, 2])
def test_shapes_without_numbers(turned: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.empty(2, 5, 3, 4, 8, dtype=torch.bfloat16, device="meta", requires_grad=True)
    table = torch.empty(5, 4, device="meta") if turned else None
    assert not rope_triton.available(x)
    monkeypatch.setattr(kernels, "assumed_capability", (8, 0))
    assert rope_triton.available(x) and not rope_triton.available(x.double())
    parts = rope_triton.split_heads(x, table, table, turned)
    assert [part.shape for part in parts] == [(2, 4, 5, 8)] * 3 and parts[0].dtype == torch.bfloat16
    torch.autograd.backward(parts, [torch.empty_like(part) for part in parts])
    assert x.grad.shape == x.shape and x.grad.is_contiguous()


def test_shapes_that_do_not_fit_are_refused() -> None:
    x = torch.empty(2, 5, 3, 4, 8, device="meta")
    with pytest.raises(ValueError, match="turned=4"):
        rope_triton.split_heads(x, None, None, 4)
    with pytest.raises(ValueError, match=r"cos and sin must be \[5, 4\]"):
        rope_triton.split_heads(x, torch.empty(6, 4, device="meta"), torch.empty(6, 4, device="meta"), 1)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from xcls.position.rope_triton import turn_heads

for capability in (70, 75, 80, 90):
    for dtype, width, backwards in (("fp32", 64, False), ("fp16", 64, True), ("bf16", 64, True), ("fp16", 9, False)):
        fixed = {"turned": 2, "parts": 3, "width": width, "half": triton.next_power_of_2(width // 2), "rows": 32, "backwards": backwards}
        fixed |= {name: 1 for name in turn_heads.arg_names if name.endswith("_channel")}
        kinds = {name: "constexpr" if name in fixed else f"*{dtype}" if name in ("a", "b", "c", "to_a", "to_b", "to_c")
                 else "*fp32" if name in ("cos", "sin") else "i32" for name in turn_heads.arg_names}
        source = ASTSource(fn=turn_heads, signature=kinds, constexprs=fixed)
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
print("all compiled")
"""


@pytest.mark.skipif(rope_triton.triton is None, reason="needs Triton")
def test_compiles_for_every_card(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == "all compiled", done.stderr[-2000:]

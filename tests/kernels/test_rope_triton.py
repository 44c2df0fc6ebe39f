"""The Triton kernel that splits heads and rotates, against the readable formula: run by Triton's interpreter
(TRITON_INTERPRET=1, set before Python starts), and compiled for every generation of cards, which needs no card."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.compiled import compile_in_a_process
from xcls.attention import kernels
from xcls.position import rope_triton
from xcls.position.rope import rotary_angles, rotate_pairs

interpreted = pytest.mark.skipif(not kernels.INTERPRETED, reason="needs Triton and TRITON_INTERPRET=1")
FULL, HALF = torch.float32, torch.float16


def angles(length: int, width: int) -> tuple[Tensor, Tensor]:
    table = rotary_angles(length, width, 100.0)
    return table.cos().float(), table.sin().float()


def plain(x: Tensor, cos: Tensor, sin: Tensor, turned: int) -> list[Tensor]:
    parts = [part.transpose(1, 2) for part in x.unbind(2)]
    return [rotate_pairs(part, cos, sin) if i < turned else part for i, part in enumerate(parts)]


def draw(*shape: int, dtype: torch.dtype = FULL) -> Tensor:
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
        rounding = {FULL: 1e-6, HALF: 2e-3, torch.bfloat16: 1.6e-2}[x.dtype]
        torch.testing.assert_close(one, other, rtol=rounding, atol=1e-6 if x.dtype == FULL else 1e-4)


@interpreted
@pytest.mark.parametrize(
    ("shape", "turned", "dtype"),
    [
        ((2, 5, 3, 2, 6), 2, FULL),
        ((2, 5, 3, 2, 6), 3, HALF),
        ((2, 5, 2, 2, 6), 1, HALF),
        ((2, 5, 1, 2, 6), 0, FULL),
        ((1, 1, 3, 1, 1), 2, FULL),  # no pair to turn
        ((1, 3, 2, 1, 7), 2, FULL),  # an odd width
        ((1, 40, 3, 1, 128), 2, FULL),  # several blocks
        ((3, 0, 3, 2, 4), 2, FULL),  # no token
    ],
    ids=str,
)
def test_as_the_formula(shape: tuple[int, ...], turned: int, dtype: torch.dtype) -> None:
    check(draw(*shape, dtype=dtype), turned)


@interpreted
def test_any_strides_of_inputs_and_gradients() -> None:
    check(draw(2, 6, 3, 2, 16)[:, ::2, :, :, ::2], 2)
    check(draw(4, 2, 3, 5, 2).permute(1, 3, 2, 4, 0), 2)  # channels lie farthest apart
    x, (cos, sin) = draw(2, 5, 3, 2, 4).requires_grad_(), angles(5, 4)
    rope_triton.split_heads(x, cos, sin, 2)[2].sum().backward()  # no strides, and of the last part alone
    assert torch.equal(x.grad, torch.tensor([0.0, 0.0, 1.0])[None, None, :, None, None].expand_as(x))


@interpreted
def test_what_is_copied_is_copied_to_the_bit() -> None:
    x = draw(1, 3, 2, 1, 4)
    x[0, 1, 1, 0] = torch.tensor([float("nan"), float("inf"), -0.0, 1.0])
    out = rope_triton.split_heads(x, *angles(3, 4), 1)[1]
    assert torch.equal(out.view(torch.int32), x[:, :, 1].transpose(1, 2).contiguous().view(torch.int32))


@interpreted
def test_rotate_alone() -> None:
    x, (cos, sin) = draw(2, 3, 5, 8).requires_grad_(), angles(5, 8)
    ours, theirs = rope_triton.rotate(x, cos, sin), rotate_pairs(x, cos, sin)
    torch.testing.assert_close(ours, theirs)
    weight = draw(*x.shape) + 1
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


@pytest.mark.skipif(kernels.triton is None, reason="needs Triton")
def test_compiles_for_every_card() -> None:
    cases = []
    for capability, dtype, width, backwards in (
        (70, "fp32", 64, False),
        (75, "fp16", 64, True),
        (80, "fp16", 9, False),
        (90, "bf16", 64, True),
    ):
        half = 4 if width == 9 else 32
        fixed = {"turned": 2, "parts": 3, "width": width, "half": half, "rows": 32, "backwards": backwards}
        types = dict.fromkeys(("merged", "a", "b", "c"), f"*{dtype}") | {"cos": "*fp32", "sin": "*fp32"}
        case = {"module": "xcls.position.rope_triton", "kernel": "turn_heads", "capability": capability}
        cases.append(case | {"fixed": fixed, "types": types})
    assert len(compile_in_a_process(cases)) == 4

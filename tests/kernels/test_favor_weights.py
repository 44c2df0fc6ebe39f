"""FAVOR+ for cards without tensor cores for Triton against the formula: run by Triton's interpreter (TRITON_INTERPRET=1, set
before Python starts), and compiled for these cards, which needs no card."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.kernels.test_favor_triton import ERRORS, check_close, draw, formula, interpreted, pads_of
from xcls.attention import kernels
from xcls.attention.kernels import favor_products, favor_rows, favor_weights
from xcls.attention.kernels.favor_weights import available, favor


def both(
    q: Tensor, k: Tensor, v: Tensor, w: Tensor, grad: Tensor, pads: Tensor | None, epsilon: float, ours=favor
) -> list[list[Tensor]]:
    """out, dq, dk and dv of ours and of the formula, where only rows of real tokens count."""
    sides = []
    for function in (ours, formula):
        out = function(q, k, v, w, pads, epsilon)
        out = out if pads is None else out.masked_fill(pads[:, None, :, None], 0.0)
        sides.append([out.detach(), *torch.autograd.grad(out, (q, k, v), grad.to(out.dtype))])
    return sides


def products(q: Tensor, k: Tensor, v: Tensor, w: Tensor, pads: Tensor | None, epsilon: float) -> Tensor:
    return favor_products.favor(q, k, v, w[None, None], None, pads, epsilon)


@interpreted
@pytest.mark.parametrize("ours", [favor, products])
@pytest.mark.parametrize(
    ("shape", "num_features", "dtype", "pads", "epsilon", "size"),
    [
        ((2, 1, 1, 16), 16, torch.float32, "none", 1e-12, 1.0),
        ((2, 2, 70, 32), 64, torch.float32, "ragged", 1e-2, 1.0),
        ((3, 1, 40, 16), 32, torch.float32, "all", 1e-6, 1.0),
        ((1, 2, 64, 32), 64, torch.float32, "none", 1e-12, 6.0),  # exponents to -500
        ((2, 1, 130, 64), 128, torch.float16, "ragged", 1e-12, 1.0),
        ((1, 1, 70, 128), 128, torch.float16, "none", 1e-6, 2.0),
    ],
    ids=str,
)
def test_as_the_formula(
    shape: tuple[int, ...], num_features: int, dtype: torch.dtype, pads: str, epsilon: float, size: float, ours: object
) -> None:
    q, k, v, w, grad = draw(shape, num_features, dtype, size)
    check_close(*both(q, k, v, w, grad, pads_of(pads, shape[0], shape[2]), epsilon, ours), ERRORS[dtype])


@interpreted
def test_a_broken_example_reaches_no_other() -> None:
    q, k, v, w, grad = draw((3, 2, 20, 16), 16, torch.float32)
    sound = both(q, k, v, w, grad, None, 1e-12)[0]
    k = k.detach().clone()
    k[1, 0, 3, 2] = torch.nan
    found = both(q, k.requires_grad_(), v, w, grad, None, 1e-12)[0]
    assert found[0][1, 0].isnan().all()
    assert all(torch.equal(one[[0, 2]], other[[0, 2]]) for one, other in zip(found, sound, strict=True))


@interpreted
@pytest.mark.parametrize("columns", [5, 128, 300])
def test_softmax_of_rows(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(favor_rows, "WHOLE", 128)  # longer rows are read in parts
    x = 50 * torch.randn(2, 7, columns, generator=torch.Generator().manual_seed(0))
    x[0, 3, : columns // 2] = -1e30
    out = torch.full((2, 8, columns), 7.0)
    sums, largest = favor_rows.softmax_into(x, out)
    torch.testing.assert_close(out[:, :7], x.softmax(dim=-1))
    torch.testing.assert_close(sums, x.logsumexp(dim=-1, keepdim=True))
    assert torch.equal(largest, x.amax(dim=-1, keepdim=True)) and out[:, 7].eq(7.0).all()


def test_shapes_without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.empty(2, 3, 40, 64, dtype=torch.float16, device="meta", requires_grad=True) for _ in range(3))
    assert not available(q, 128)
    monkeypatch.setattr(kernels, "assumed_capability", (7, 0))
    assert available(q, 128) and not available(q, 96) and not available(q.bfloat16(), 128)
    out = favor(
        q, k, v, torch.empty(128, 64, device="meta"), torch.empty(2, 40, dtype=torch.bool, device="meta"), 1e-12
    )
    out.backward(torch.empty_like(out))
    assert out.dtype == q.dtype and all(x.grad.shape == q.shape == out.shape for x in (q, k, v))


COMPILE = """
import re
import subprocess
import sys
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from xcls.attention.kernels import favor_rows, favor_weights

WEIGHTS, FULL = favor_weights.weights_kernel, ("W", "LEVEL", "COUNT", "CONSTANT", "SUMS", "LARGEST", "SHARE", "LEVEL_GRAD")
QUERIES, KEYS = ("PADDING", "COUNT", "CONSTANT", "LARGEST"), ("LARGEST",)
SUMS = ("LEVEL", "COUNT", "CONSTANT", "GRAD", "OUT")
capability = int(sys.argv[1])
for kernel, absent, fixed in (
    (WEIGHTS, SUMS, {"MODE": 0}), (WEIGHTS, ("GRAD", "SUMS", *QUERIES), {"MODE": 1}), (WEIGHTS, QUERIES, {"MODE": 1}), (WEIGHTS, KEYS, {"MODE": 2}),
    (favor_rows.softmax_kernel, (), {"ONCE": True, "TILE": 4, "BLOCK": 512}),
    (favor_rows.softmax_kernel, (), {"ONCE": False, "TILE": 1, "BLOCK": 4096}),
    (favor_rows.means_grad_kernel, (), {"TILE": 16, "D": 64}),
):
    if kernel is WEIGHTS:
        fixed |= {"D": 64, "M": 128, "TILE": favor_weights.tile(128), "WIDER": favor_weights.MORE}
    fixed |= dict.fromkeys(absent)
    rows = kernel is favor_rows.softmax_kernel
    kinds = {name: "constexpr" if name in fixed else "*i1" if name == "PADDING" else "*fp32" if name in FULL or rows and name == "X"
             else "*fp16" if name.isupper() else "i32" for name in kernel.arg_names}
    even = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names)
            if name not in fixed and (name.isupper() or name in ("x_b", "x_h", "x_n", "columns", "width"))}
    made = triton.compile(ASTSource(kernel, kinds, fixed, even), target=GPUTarget("cuda", capability, 32))
    Path("made.cubin").write_bytes(made.asm["cubin"])
    show = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([show, "-res-usage", "made.cubin"], capture_output=True, text=True, check=True).stdout
    stack = int(re.search(r"STACK:(\\d+)", usage)[1])
    print(kernel.__name__, fixed, usage[-200:], made.metadata.shared)
    assert stack == 0, "what does not fit into registers is moved to memory"
print("all compiled")
"""


@pytest.mark.skipif(favor_weights.triton is None, reason="needs Triton")
@pytest.mark.parametrize("capability", [70, 75])
def test_compiles_for_cards_without_tensor_cores(capability: int, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.getcwd()}
    words = [sys.executable, "-c", COMPILE, str(capability)]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.stdout.endswith("all compiled\n"), (done.stdout + done.stderr)[-3000:]

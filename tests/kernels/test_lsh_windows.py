"""LSH attention of one round by PyTorch's fused attention on windows, against the dense formula: run by Triton's interpreter
(TRITON_INTERPRET=1, set before Python starts), and compiled for the cards that it is for, which needs no card."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.kernels.test_lsh_triton import FULL, HALF, dense, draw, draw_order, interpreted, pads_of, results
from xcls.attention import kernels
from xcls.attention.base import Masks
from xcls.attention.kernels.lsh_windows import attend_in_windows, available
from xcls.attention.sorted_chunks import Chunks


def ours(qk: Tensor, v: Tensor, order: Tensor, count: Tensor | None, chunk: int, before: int, after: int) -> Tensor:
    """[B, H, N, D], zero in pads."""
    out = attend_in_windows(qk, v, Chunks(order, order, count, chunk, before, after), Masks())
    return out if count is None else out.masked_fill(pads_of(count, qk.shape[2])[:, None, :, None], 0.0)


@interpreted
@pytest.mark.parametrize(
    ("length", "chunk", "before", "after", "dtype", "width"),
    [
        (1, 64, 1, 0, HALF, 16),
        (50, 24, 1, 0, FULL, 16),
        (128, 64, 1, 0, HALF, 64),
        (70, 16, 1, 2, FULL, 16),
        (40, 16, 0, 0, FULL, 32),
    ],
)
def test_as_the_formula(length: int, chunk: int, before: int, after: int, dtype: torch.dtype, width: int) -> None:
    count = torch.tensor([length, 2 * length // 3, 0], dtype=torch.int32)
    qk, v = draw(3, length, 2, 2, width).permute(2, 0, 3, 1, 4).to(dtype)  # views of one projection
    order, weight = draw_order(1, length, count, heads=2), draw(*qk.shape, seed=3).to(dtype)
    found = results(lambda q, v: ours(q, v, order, count, chunk, before, after), qk, v, weight)
    expected = results(lambda q, v: dense(q, v, order, count, chunk, before, after), qk.double(), v.double(), weight)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= (3e-6 if dtype == FULL else 4e-3) * other.abs().max().clamp(min=0.1)
        assert not one.transpose(1, 2)[pads_of(count, length)].any()


@interpreted
def test_without_padding_and_any_strides() -> None:
    qk, v = (draw(2, 1, 16, 20, seed=seed).transpose(2, 3) for seed in (4, 5))  # the width lies farthest apart
    order, weight = draw_order(1, 20, torch.tensor([20, 20])), torch.ones(()).expand_as(v)
    found = results(lambda q, v: ours(q, v, order, None, 16, 1, 0), qk, v, weight)
    expected = results(
        lambda q, v: dense(q, v, order, torch.tensor([20, 20]), 16, 1, 0), qk.double(), v.double(), weight
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@interpreted
@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_broken_example_reaches_no_other(broken: int) -> None:
    order, qk, v = draw_order(1, 23, torch.full((3,), 23)), draw(3, 2, 23, 16), draw(3, 2, 23, 16, seed=1)
    order = order.expand(3, 2, 1, 23)
    sound = results(lambda q, v: ours(q, v, order, None, 4, 1, 1), qk, v, draw(*qk.shape))
    qk, v = qk.clone(), v.clone()
    qk[broken, :, 3], v[broken, :, 5] = torch.nan, torch.inf
    others = [i for i in range(3) if i != broken]
    for one, other in zip(
        results(lambda q, v: ours(q, v, order, None, 4, 1, 1), qk, v, draw(*qk.shape)), sound, strict=True
    ):
        assert torch.equal(one[others], other[others]) and not one[broken].isfinite().all()


@interpreted
def test_zero_queries_have_finite_gradients() -> None:
    order, weight = draw_order(1, 20, torch.tensor([20])), draw(1, 1, 20, 16)
    found = results(lambda q, v: ours(q, v, order, None, 16, 1, 0), torch.zeros(1, 1, 20, 16), weight, weight)
    assert all(x.isfinite().all() for x in found)


def test_the_operations_give_what_their_shapes_say(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.empty(2, 3, 37, 16, device="meta")
    order = torch.empty(2, 3, 37, dtype=torch.int32, device="meta")
    assert not available(x)
    monkeypatch.setattr(kernels, "assumed_capability", (7, 0))
    assert available(x) and available(x.half()) and not available(x.bfloat16()) and not available(x[..., :8])
    made = torch.ops.xcls.lsh_windows(x, x, order, 16, 1, 0)
    assert [m.shape for m in made] == [(2, 48, 3, 16), (2, 96, 3, 16), (2, 96, 3, 16)]
    for back in torch.ops.xcls.lsh_tokens(*made, x, order, 16, 1, 0):
        assert back.shape == x.shape and back.transpose(1, 2).is_contiguous()


COMPILE = """
import subprocess
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from xcls.attention.kernels import lsh_windows

for capability, number, width in ((70, "fp16", 64), (75, "fp16", 64), (75, "fp32", 128)):
    for kernel in (lsh_windows.windows_kernel, lsh_windows.tokens_kernel):
        fixed = {"D": width, "TILE": lsh_windows.TILE, "BEFORE": 1, "AFTER": 0}
        fixed = {name: value for name, value in fixed.items() if name in kernel.arg_names}
        kinds = {name: "constexpr" if name in fixed else "*i32" if name == "ORDER" else f"*{number}" if name.isupper() else "i32"
                 for name in kernel.arg_names}
        even = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name.isupper() and name not in fixed}
        built = triton.compile(ASTSource(kernel, kinds, fixed, even), target=GPUTarget("cuda", capability, 32))
        Path("made.cubin").write_bytes(built.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([tool, "-res-usage", "made.cubin"], capture_output=True, text=True, check=True).stdout
        spilled = int(usage.partition("STACK:")[2].partition(" ")[0])
        print(kernel.__name__, capability, number, width, usage.partition("REG:")[2].partition(" ")[0], built.metadata.shared, spilled)
        assert spilled == 0, "what does not fit into registers is moved to memory"
print("all compiled")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_compiles_for_cards_without_tensor_cores(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.endswith("all compiled\n"), done.stdout + done.stderr

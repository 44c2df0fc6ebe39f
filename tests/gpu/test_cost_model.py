"""The cost model counts what it says it counts: by hand on a few operations, and on a whole model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.gpu import cost
from xcls.attention import kernels
from xcls.position import rope_triton


def measured(*shapes: tuple[int, ...], run) -> cost.Meter:
    tensors = [torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in shapes]
    meter = cost.Meter(chosen=3)
    with meter:
        run(*tensors)
    return meter


def test_products_and_bytes_of_a_matrix_product() -> None:
    (op,) = measured((4, 8), (8, 16), run=torch.mm).ops
    assert (op.products, op.moved, op.kernels) == (2 * 4 * 8 * 16, 2 * (4 * 8 + 8 * 16 + 4 * 16), 1)
    (op,) = measured((3, 4, 8), (3, 8, 16), run=torch.bmm).ops
    assert op.products == 3 * 2 * 4 * 8 * 16


def test_views_are_free_and_an_expanded_tensor_is_read_once() -> None:
    meter = measured((1, 8), run=lambda x: x.expand(4, 8).transpose(0, 1).exp())
    assert [(op.name, op.moved) for op in meter.ops] == [("exp", 2 * 8 + 2 * 32)]


def test_waits_are_counted_where_they_are() -> None:
    meter = measured((4, 8), run=lambda x: (bool(x.isnan().any()), x.nonzero(), torch.zeros(2).to("meta")))
    assert meter.waits.total() == 3


def test_memory_is_given_back() -> None:
    def run(x: torch.Tensor) -> None:
        for _ in range(10):
            x = x.exp()

    assert measured((1024, 512), run=run).peak == 4 * 2 * 1024 * 512  # the caller's, the last three of the loop


def test_an_operation_of_ours_is_one_kernel_and_an_unknown_one_is_refused() -> None:
    meter = measured((2, 5, 3, 4, 8), run=lambda x: rope_triton.split_heads(x, None, None, 0))
    assert [(op.name, op.kernels, op.moved, op.products) for op in meter.ops] == [("split_heads", 1, 2 * 2 * 960, 0)]
    qk, order = torch.empty(2, 3, 512, 64, device="meta"), torch.empty(2, 3, 2, 512, device="meta")
    forward = cost.lsh_work(qk, qk, order, None, 64, 1, 0)  # 8 chunks see 15
    backward = cost.lsh_work(qk, qk, order, None, order, qk, qk, qk, 64, 1, 0)
    assert forward.products == 2 * 2 * (2 * 3 * 2) * 15 * 64 * 64 * 64 and 2 * backward.products == 7 * forward.products
    library = torch.library.Library("xcls", "FRAGMENT")
    library.define("unheard_of(Tensor x) -> Tensor")
    library.impl("unheard_of", torch.empty_like, "Meta")
    with pytest.raises(LookupError, match="xcls::unheard_of: say in WORK"):
        measured((2, 3), run=torch.ops.xcls.unheard_of)


def test_the_arithmetic_of_a_card() -> None:
    card = cost.Card(1e9, 1e12, 1e11, 1e-6, cost.NEW)
    low, full = (cost.Op("mm", 1000, 1e12, dtype, 1, "a") for dtype in (torch.bfloat16, torch.float32))
    add = cost.Op("add", 10**9, 0, None, 1, "a")
    assert cost.Trace([low, full, add], Counter(), 0, 0).seconds(card) == pytest.approx(1 + 10 + 1)
    many = cost.Trace([add._replace(moved=1, kernels=10**7)], Counter(), 0, 0)
    assert many.seconds(card._replace(launch_s=1e-5)) == pytest.approx(100, rel=1e-3)


def test_a_whole_model_and_nothing_is_left_switched() -> None:
    small = cost.Case("sdpa_fused", batch=2, length=64, words=("size=tiny", "size.num_layers=1"))
    traced = cost.trace(small, "A100")
    assert torch.autocast.__module__ == "torch.amp.autocast_mode" and kernels.assumed_capability == (0, 0)
    fused = [op for op in traced.ops if op.name == "fused"]
    size = cost.configuration("sdpa_fused", "size=tiny").size
    assert sum(op.products for op in fused) == 28 * 2 * 64 * 64 * size.width
    assert {op.dtype for op in traced.ops if op.products and op.name != "fused"} >= {torch.bfloat16}
    assert traced.peak > 12 * traced.weights and traced.moved("xcls/position/") > 0
    deeper = cost.trace(small._replace(words=("size=tiny", "size.num_layers=2")), "A100")
    assert deeper.kernels > traced.kernels and deeper.moved() > traced.moved() and deeper.peak > traced.peak


def test_a_document(tmp_path: Path) -> None:
    path = tmp_path / "gpu.md"
    mark = "<!-- cost: --attention sdpa,mean --batch 2 --length 64 --size tiny -->"
    path.write_text(f"before\n{mark}\nold\n<!-- end -->\nafter\n")
    cost.main([str(path)])
    lines = path.read_text().splitlines()
    assert lines[:2] == ["before", mark] and lines[-2:] == ["<!-- end -->", "after"] and "old" not in lines
    assert lines[2].startswith("| mechanism") and len([line for line in lines if line.startswith("| mean")]) == 2

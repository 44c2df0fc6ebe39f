"""Attention in chunks, computed in blocks with recomputation, against its readable version, and where tokens go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from xcls.attention import cluster_fast
from xcls.attention.cluster_fast import attend_clusters
from xcls.attention.cluster_layout import Layout, lay_out
from xcls.attention.cluster_plain import plain_clusters

B, H, D, C = 2, 2, 4, 4
CASES = {  # before, after, balanced, queries and keys sorted alike
    "one chunk back": (1, 0, False, True),
    "both sides": (1, 2, False, True),
    "alone": (0, 0, False, True),
    "balanced, apart": (0, 0, True, False),
}


def layout_of(case: str, rounds: int, length: int, pads: torch.Tensor | None) -> Layout:
    """Tokens in random order, pads last."""
    before, after, balanced, alike = CASES[case]
    generator = torch.Generator().manual_seed(7)

    def order() -> torch.Tensor:
        score = torch.rand(rounds, B, H, length, generator=generator)
        if pads is not None:
            score = score.masked_fill(pads[:, None], 2.0)
        rows = torch.arange(B)[:, None, None] * length + score.argsort(dim=-1)
        return (rows * H + torch.arange(H)[:, None]).flatten(1, 2)

    q_order = order()
    k_order = q_order if alike else order()
    sizes = {"size": C, "before": before, "after": after, "balanced": balanced}
    return lay_out(q_order, k_order, (B, H, length), key_padding_mask=pads, **sizes)


def arguments(case: str, rounds: int, length: int, full: bool, dtype: torch.dtype = torch.float64) -> tuple:
    """Rows of q, k, v and a bias, and the other arguments; with pads and a mask if full."""
    generator = torch.Generator().manual_seed(0)
    pads = torch.arange(length) >= torch.tensor([length, length - 5])[:, None] if full else None
    mask = torch.rand(B, H, length, length, generator=generator) < 0.5 if full else None
    if full:
        mask[:, :, 3] = True
    tensors = [torch.randn(B * length * H, D, dtype=dtype, generator=generator).requires_grad_() for _ in range(3)]
    tensors.append(torch.randn(H, 7, dtype=dtype, generator=generator).requires_grad_())
    settings = {"attn_mask": mask, "scale": 1.5, "shun_itself": CASES[case][3]}
    return tensors, layout_of(case, rounds, length, pads), settings, pads


def run(function: Callable, tensors: list[torch.Tensor], layout: Layout, settings: dict, pads) -> list[torch.Tensor]:
    """The result and the gradients of all tensors, pads aside, whose rows hold anything."""
    *qkv, bias = tensors
    out = function(*qkv, layout, bias=bias, **settings)
    hidden = torch.zeros(len(out), 1, dtype=torch.bool)
    if pads is not None:
        hidden = pads.repeat_interleave(H, dim=1).flatten()[:, None]
    out = out.masked_fill(hidden, 0.0)
    grads = torch.autograd.grad((out * torch.arange(out.numel()).view_as(out).cos()).sum(), tensors)
    return [out, *(x.masked_fill(hidden, 0.0) for x in grads[:3]), grads[3]]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("length", [1, 5, 16, 23])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("block", [1, 2**20])
def test_blocks_equal_the_readable_version(monkeypatch, case, rounds, length, full, block) -> None:
    monkeypatch.setitem(cluster_fast.BLOCK, "cpu", block)
    inputs = arguments(case, rounds, length, full and length > 5)
    torch.testing.assert_close(run(attend_clusters, *inputs), run(plain_clusters, *inputs))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("full", [False, True])
def test_gradients_are_those_of_the_function(case: str, rounds: int, full: bool) -> None:
    tensors, layout, settings, pads = arguments(case, rounds, 9, full)
    hidden = torch.zeros(B * 9 * H, dtype=torch.bool) if pads is None else pads.repeat_interleave(H, dim=1).flatten()

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.masked_fill(hidden[:, None], 0.0) for x in (q, k, v))
        return attend_clusters(q, k, v, layout, bias=bias, **settings)[~hidden]

    assert torch.autograd.gradcheck(attend, tensors, fast_mode=True)


@pytest.mark.parametrize("rounds", [1, 3])
def test_autocast_keeps_logits_in_fp32_and_is_near(rounds: int) -> None:
    tensors, layout, settings, pads = arguments("one chunk back", rounds, 23, True, torch.float32)
    expected = run(plain_clusters, tensors, layout, settings, pads)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(attend_clusters, tensors, layout, settings, pads)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.1)
    assert all(x.dtype == torch.float32 for x in found)


def test_widths_of_keys_and_values_may_differ() -> None:
    tensors, layout, settings, pads = arguments("one chunk back", 2, 13, True)
    tensors[2] = torch.randn(B * 13 * H, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(
        run(attend_clusters, tensors, layout, settings, pads), run(plain_clusters, tensors, layout, settings, pads)
    )


@pytest.mark.parametrize("length,sizes", [(16, [4, 4, 4, 4]), (13, [4, 3, 3, 3]), (9, [3, 3, 3]), (1, [1])])
def test_balanced_chunks_differ_by_one_at_the_most(length: int, sizes: list[int]) -> None:
    pads = torch.arange(16).expand(B, -1) >= length
    layout = layout_of("balanced, apart", 1, 16, pads)
    found = layout.filled.view(B * H, -1, C).sum(dim=-1)[0].tolist()
    assert sorted(found, reverse=True)[: len(sizes)] == sizes and sum(found) == length


def test_nothing_of_the_size_of_all_logits_is_made(largest: Callable, monkeypatch) -> None:
    monkeypatch.setitem(cluster_fast.BLOCK, "cpu", 8 * C * 2 * C)
    tensors, layout, settings, _ = arguments("one chunk back", 2, 256, False)
    assert largest(lambda: attend_clusters(*tensors[:3], layout, **settings)) <= B * H * (256 + C) * D
    assert largest(lambda: plain_clusters(*tensors[:3], layout, **settings)) >= B * H * 256 * 2 * C

"""Attention in sorted chunks: the CPU's blocks against the readable version, where tokens go, and who meets whom."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.pairwise import pairwise
from xcls.attention.base import Masks
from xcls.attention.kernels import sorted_chunks_blocks
from xcls.attention.kernels.sorted_chunks_blocks import attend_in_blocks
from xcls.attention.sorted_chunks import Chunks, attend_plainly, real_tokens

B, H, D, C = 2, 2, 4, 4
CASES = {  # before, after, balanced, queries and keys sorted alike
    "one chunk back": (1, 0, False, True),
    "both sides": (1, 2, False, True),
    "alone": (0, 0, False, True),
    "balanced, apart": (0, 0, True, False),
}


def chunks_of(case: str, rounds: int, length: int, masks: Masks) -> Chunks:
    """Tokens in random order, pads last."""
    before, after, balanced, alike = CASES[case]
    generator = torch.Generator().manual_seed(7)

    def order() -> torch.Tensor:
        score = torch.rand(B, H, rounds, length, generator=generator)
        if masks.padding is not None:
            score = score.masked_fill(masks.padding[:, None, None], 2.0)
        return score.argsort(dim=-1)

    q_order = order()
    return Chunks(q_order, q_order if alike else order(), real_tokens(masks), C, before, after, balanced)


def arguments(case: str, rounds: int, length: int, full: bool, dtype: torch.dtype = torch.float64) -> tuple:
    """q, k, v and a bias, and the other arguments; with pads and a mask of pairs if full."""
    generator = torch.Generator().manual_seed(0)
    pads = torch.arange(length) >= torch.tensor([length, length - 5])[:, None] if full else None
    pairs = torch.rand(B, H, length, length, generator=generator) < 0.5 if full else None
    if full:
        pairs[:, :, 3] = True
    tensors = [torch.randn(B, H, length, D, dtype=dtype, generator=generator).requires_grad_() for _ in range(3)]
    tensors.append(torch.randn(H, 7, dtype=dtype, generator=generator).requires_grad_())
    masks = Masks(pads, pairs)
    return tensors, chunks_of(case, rounds, length, masks), masks, {"scale": 1.5, "avoid_self": CASES[case][3]}


def run(
    function: Callable, tensors: list[torch.Tensor], chunks: Chunks, masks: Masks, settings: dict
) -> list[torch.Tensor]:
    """The result without pads, and the gradients of all tensors."""
    *qkv, bias = tensors
    out = function(*qkv, chunks, masks.with_(bias=bias), **settings)
    if masks.padding is not None:
        out = out.masked_fill(masks.padding[:, None, :, None], 0.0)
    weights = torch.arange(out.numel(), dtype=torch.float64).view_as(out).cos().to(out.dtype)
    return [out, *torch.autograd.grad((out * weights).sum(), tensors)]


@pytest.mark.parametrize(
    ("case", "rounds", "length", "full", "block"),
    pairwise(list(CASES), [1, 3], [1, 5, 16, 23], [False, True], [1, 100, 2**20]),
)
def test_blocks_equal_the_readable_version(monkeypatch, case, rounds, length, full, block) -> None:
    monkeypatch.setattr(sorted_chunks_blocks, "BLOCK", block)
    inputs = arguments(case, rounds, length, full and length > 5)
    torch.testing.assert_close(run(attend_in_blocks, *inputs), run(attend_plainly, *inputs))


def test_widths_of_keys_and_values_may_differ() -> None:
    tensors, *rest = arguments("one chunk back", 2, 13, True)
    tensors[2] = torch.randn(B, H, 13, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(run(attend_in_blocks, tensors, *rest), run(attend_plainly, tensors, *rest))


@pytest.mark.parametrize("length,sizes", [(16, [4, 4, 4, 4]), (13, [4, 3, 3, 3]), (9, [3, 3, 3]), (1, [1])])
def test_balanced_chunks_differ_by_one_at_the_most(length: int, sizes: list[int]) -> None:
    masks = Masks(torch.arange(16).expand(B, -1) >= length)
    chunks = chunks_of("balanced, apart", 1, 16, masks)
    rank, filled = (x[0].view(-1, C) for x in chunks.rank_in_slot)
    found = filled.sum(dim=-1).tolist()
    assert sorted(found, reverse=True)[: len(sizes)] == sizes and sum(found) == length
    assert rank[filled].tolist() == list(range(length)), "the sorted order goes on from chunk to chunk"
    tokens = chunks.token_in_slot(chunks.q_order).gather(-1, chunks.slot_of_token(chunks.q_order))
    assert torch.equal(tokens[..., :length], torch.arange(length).expand(B, H, 1, -1)), (
        "a slot is where its token stands"
    )

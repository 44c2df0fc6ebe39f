"""Helpers for masks, distances and seeds."""

from __future__ import annotations

import pytest
import torch

from xcls.attention.base import (
    blocked_pairs,
    broken_sequences,
    by_query_blocks,
    distance_matrix,
    is_causal,
    isolated,
    mix,
    product_dtype,
    spoiled,
)


def test_distance_matrix_by_its_definition() -> None:
    bias = torch.arange(10.0).view(2, 5).requires_grad_()
    out = distance_matrix(bias, rows=3, columns=6, offset=-2)
    expected = [
        [[row[min(max(j - i - 2, -2), 2) + 2] for j in range(6)] for i in range(3)] for row in bias.tolist()
    ]
    torch.testing.assert_close(out.detach(), torch.tensor(expected))
    weight = torch.randn(2, 3, 6)
    (grad,) = torch.autograd.grad((out * weight).sum(), bias)
    by_hand = torch.zeros(2, 5)
    for i in range(3):
        for j in range(6):
            by_hand[:, min(max(j - i - 2, -2), 2) + 2] += weight[:, i, j]
    torch.testing.assert_close(grad, by_hand)


@pytest.mark.parametrize("rows,columns", [(1, 1), (1, 5), (4, 1), (4, 4)])
def test_distance_matrix_of_any_shape(rows: int, columns: int) -> None:
    bias = torch.randn(1, 7)
    expected = torch.tensor([[bias[0, min(max(j - i, -3), 3) + 3] for j in range(columns)] for i in range(rows)])
    torch.testing.assert_close(distance_matrix(bias, rows=rows, columns=columns)[0], expected)


def test_only_the_causal_mask_is_causal() -> None:
    causal = torch.ones(6, 6, dtype=torch.bool).triu(1)
    assert is_causal(causal) and is_causal(causal.expand(2, 3, 6, 6)) and is_causal(torch.zeros(1, 1, dtype=torch.bool))
    for i, j in ((2, 1), (2, 2), (2, 4), (5, 0), (0, 5)):
        other = causal.clone()
        other[i, j] ^= True
        assert not is_causal(other)
    assert not is_causal(torch.stack((causal, torch.zeros_like(causal))))


def test_both_masks_become_one() -> None:
    pads = torch.tensor([[False, True]])
    attn_mask = torch.tensor([[[[False, False], [True, False]]]])
    assert blocked_pairs(None, None) is None
    assert blocked_pairs(pads, attn_mask).tolist() == [[[[False, True], [True, True]]]]


def test_blocks_are_joined_in_order_with_their_gradient() -> None:
    q = torch.randn(1, 2, 7, 3, requires_grad=True)
    starts = []

    def attend(block: torch.Tensor, start: int) -> torch.Tensor:
        starts.append(start)
        return block * 2

    out = by_query_blocks(attend, q, 3)
    torch.testing.assert_close(out, q * 2)
    assert starts == [0, 3, 6]
    torch.testing.assert_close(torch.autograd.grad(out.sum(), q)[0], torch.full_like(q, 2.0))


def test_seeds_of_layers_and_runs_differ() -> None:
    seeds = {mix(seed, layer) for seed in range(50) for layer in range(50)}
    assert len(seeds) == 2500 and all(0 <= seed < 2**63 for seed in seeds)


def test_product_dtype_sees_autocast() -> None:
    x = torch.zeros(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert product_dtype(x) == torch.bfloat16
    assert product_dtype(x) == torch.float32 and product_dtype(x.double()) == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compiling", [False, True])
def test_broken_sequences_are_those_whose_real_tokens_are_not_finite(monkeypatch, dtype, compiling: bool) -> None:
    monkeypatch.setattr("xcls.attention.base.is_compiling", lambda: compiling)
    x, y = torch.ones(3, 2, 5, 4, dtype=dtype), torch.ones(3, 2, 5, 4, dtype=dtype)
    pads = torch.arange(5) >= torch.tensor([5, 3, 5])[:, None]
    x[2, 0] = torch.finfo(dtype).max  # its sum is not finite, it is
    assert not broken_sequences(pads, x, y).any()
    x[1, :, 3:] = torch.nan  # pads
    assert not broken_sequences(pads, x, y).any()
    y[0, 1, 4, 3], x[1, 0, 0, 0] = torch.inf, torch.nan
    broken = broken_sequences(pads, x, y)
    assert broken.shape == (3, 2, 1, 1) and broken.flatten(1).tolist() == [[False, True], [True, False], [False] * 2]


def test_the_usual_case_costs_a_sum() -> None:
    x = torch.randn(2, 2, 5, 4, requires_grad=True)
    assert broken_sequences(None, x, x) is None and isolated(x, None) is x and spoiled(x, None) is x


def test_an_isolated_sequence_is_zero_and_shows_in_output_and_gradient() -> None:
    x = torch.ones(2, 1, 3, 2)
    x[1, 0, 1] = torch.nan
    x.requires_grad_()
    broken = broken_sequences(None, x)
    inside = isolated(x, broken)
    assert torch.equal(inside[0], x[0]) and not inside[1].any()
    out = spoiled(2 * inside, broken)
    assert torch.equal(out[0], 2 * x[0]) and out[1].isnan().all()
    (grad,) = torch.autograd.grad(out[0].sum(), x)
    assert torch.equal(grad[0], torch.full((1, 3, 2), 2.0)) and grad[1].isnan().all()

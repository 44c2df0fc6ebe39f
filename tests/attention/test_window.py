"""Sliding-window attention against softmax attention with distant pairs blocked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from xcls.attention.base import Masks
from xcls.attention.softmax import Sdpa
from xcls.attention.window import Window

SHAPE = {"num_heads": 2, "head_dim": 8, "layer": 0, "seed": 1}


def qkv(length: int, width: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, length, width, dtype=torch.float64, generator=generator) for _ in range(3)]


def distant(length: int, window: int) -> torch.Tensor:
    position = torch.arange(length)
    return (position - position[:, None]).abs() > window


@pytest.mark.parametrize("length", [1, 7, 8, 9, 30])
@pytest.mark.parametrize("window", [1, 4, 8])
def test_equals_softmax_with_distant_pairs_blocked(length: int, window: int) -> None:
    q, k, v = qkv(length)
    bias = torch.randn(2, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    blocked = torch.rand(length, length, generator=torch.Generator().manual_seed(2)) < 0.3
    far = distant(length, window)
    for given in ({}, {"relative_bias": bias}, {"attn_mask": blocked}):
        both = Masks.make(**{**given, "attn_mask": far | given.get("attn_mask", far)})
        expected = Sdpa(**SHAPE)(q, k, v, both)
        torch.testing.assert_close(Window(**SHAPE, window=window)(q, k, v, Masks.make(**given)), expected)


def test_a_window_over_everything_is_exact_attention() -> None:
    q, k, v = qkv(17)
    torch.testing.assert_close(Window(**SHAPE, window=16)(q, k, v), Sdpa(**SHAPE)(q, k, v))


def test_no_path_is_quadratic(largest: Callable) -> None:
    q, k, v = (x.requires_grad_() for x in qkv(1024, 4))
    shape = {**SHAPE, "head_dim": 4}
    assert largest(lambda: Window(**shape, window=16)(q, k, v)) <= 2 * (1024 + 32) * 3 * 16


def test_the_window_has_an_effect_and_must_hold_a_token() -> None:
    q, k, v = qkv(30)
    assert not torch.allclose(Window(**SHAPE, window=4)(q, k, v), Window(**SHAPE, window=5)(q, k, v), atol=1e-4)
    with pytest.raises(ValueError, match="at least 1"):
        Window(**SHAPE, window=0)

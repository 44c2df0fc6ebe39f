"""FAVOR+ with an exact band against exact attention, and against its kernel matrix built pair by pair."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.attention.kernels import attend, drawn, estimate, favor_map, qkv, softmax_attention, softmax_kernel
from xcls.attention.base import Masks
from xcls.attention.favor_band import PerformerBand, PerformerBandOprf

SHAPE = {"num_heads": 2, "head_dim": 8, "layer": 0, "seed": 1, "num_features": 16}


def band(window: int, projection: torch.Tensor, **settings) -> PerformerBand:
    """The mechanism with these directions [M, D]."""
    size = {"head_dim": projection.shape[1], "num_features": len(projection)}
    module = PerformerBand(**{**SHAPE, **size}, window=window, **settings).to(projection.dtype)
    module.projection.copy_(projection)
    return module


def kernel_pair_by_pair(q: torch.Tensor, k: torch.Tensor, w: torch.Tensor, window: int) -> torch.Tensor:
    exact, rough = softmax_kernel(q, k), estimate(favor_map(w), q, k)
    chunk = torch.arange(q.shape[2]) // window
    return torch.where((chunk - chunk[:, None]).abs() <= 1, exact, rough)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [1, 3, 5])
def test_equals_the_kernel_pair_by_pair(window: int, causal: bool) -> None:
    q, k, v = qkv(23)
    w = drawn(16, 8, 0)
    mask = torch.ones(23, 23, dtype=torch.bool).triu(1) if causal else None
    weights = kernel_pair_by_pair(q, k, w, window)
    weights = weights if mask is None else weights.masked_fill(mask, 0.0)
    out = band(window, w, epsilon=0.0)(q, k, v, Masks.make(attn_mask=mask))
    torch.testing.assert_close(out, weights / weights.sum(-1, keepdim=True) @ v, rtol=1e-12, atol=1e-12)


def test_a_band_over_everything_is_exact_attention() -> None:
    q, k, v = qkv(20)
    bias = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    position = torch.arange(20)
    distances = bias[:, (position - position[:, None]).clamp(-4, 4) + 4]
    for module in (PerformerBand, PerformerBandOprf):
        out = module(**SHAPE, window=10).double()(q, k, v, Masks.make(relative_bias=bias))
        torch.testing.assert_close(out, softmax_attention(q, k, v, distances))


def test_every_pair_within_the_window_is_exact() -> None:
    q, k, v = qkv(24)
    distance = torch.arange(24) - torch.arange(24)[:, None]
    module = PerformerBand(**SHAPE, window=6).double()
    far = distance.abs() > 6
    expected = softmax_attention(q, k, v, torch.zeros(24, 24).masked_fill(far, -torch.inf))
    torch.testing.assert_close(module(q, k, v, Masks.make(attn_mask=far)), expected)


def test_peaked_near_attention_survives_where_features_fail() -> None:
    q, _, v = qkv(32)
    q = q * 4  # logits of some 45 for a token with itself
    w = drawn(64, 8, 0)
    exact = softmax_attention(q, q, v)
    banded, plain = band(4, w)(q, q, v), attend(favor_map(w), q, q, v)
    assert (banded - exact).norm() < 0.5 * (plain - exact).norm()


def test_finite_where_the_two_fields_differ_by_hundreds_of_orders() -> None:
    q, k, v = (x.float().requires_grad_() for x in qkv(30))
    for scale in (1e-3, 30.0, 300.0):
        out = band(3, drawn(16, 8, 0).float())(q * scale, k * scale, v)
        assert out.isfinite().all() and out.abs().max() <= v.abs().max() * 1.001  # weights are positive
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), (q, k, v)))


@pytest.mark.parametrize("bias_window", [0, 3])
def test_no_path_is_quadratic(largest: Callable, bias_window: int) -> None:
    length = 1024
    q, k, v = (x.requires_grad_() for x in qkv(length, 4))
    bias = torch.randn(2, 2 * bias_window + 1, dtype=torch.float64, requires_grad=True) if bias_window else None

    def run() -> torch.Tensor:
        return band(16, drawn(8, 4, 0))(q, k, v, Masks.make(relative_bias=bias))

    assert largest(run) <= 2 * (length + 32) * 3 * 20


def test_options_have_an_effect() -> None:
    q, k, v = qkv(32)
    base = PerformerBand(**SHAPE, window=4)(q, k, v)
    for other in (PerformerBand(**SHAPE, window=8), PerformerBandOprf(**SHAPE, window=4)):
        assert not torch.allclose(base, other(q, k, v), atol=1e-4)

"""FAVOR+ with an exact band against exact attention, and against its kernel matrix built pair by pair."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.attention.kernels import drawn, estimate, qkv, softmax_kernel
from xcls.attention.kernel import kernel_attention
from xcls.attention.performer import favor_map
from xcls.attention.performer_band import PerformerBand, PerformerBandOprf, band_attention
from xcls.attention.sdpa import sdpa

SHAPE = {"num_heads": 2, "head_dim": 8, "layer": 0, "seed": 1, "num_features": 16}


def kernel_pair_by_pair(q: torch.Tensor, k: torch.Tensor, w: torch.Tensor, window: int) -> torch.Tensor:
    exact, rough = softmax_kernel(q, k), estimate(favor_map(w, epsilon=0.0), q, k)
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
    out = band_attention(q, k, v, favor_map(w, epsilon=0.0), window=window, attn_mask=mask)
    torch.testing.assert_close(out, weights / weights.sum(-1, keepdim=True) @ v, rtol=1e-12, atol=1e-12)


def test_a_band_over_everything_is_exact_attention() -> None:
    q, k, v = qkv(20)
    bias = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for module in (PerformerBand, PerformerBandOprf):
        out = module(**SHAPE, window=10).double()(q, k, v, relative_bias=bias)
        torch.testing.assert_close(out, sdpa(q, k, v, relative_bias=bias))


def test_every_pair_within_the_window_is_exact() -> None:
    q, k, v = qkv(24)
    distance = torch.arange(24) - torch.arange(24)[:, None]
    module = PerformerBand(**SHAPE, window=6).double()
    far = distance.abs() > 6
    torch.testing.assert_close(module(q, k, v, attn_mask=far), sdpa(q, k, v, attn_mask=far))


def test_peaked_near_attention_survives_where_features_fail() -> None:
    q, _, v = qkv(32)
    q = q * 4  # logits of some 45 for a token with itself
    w = drawn(64, 8, 0)
    exact = sdpa(q, q, v)
    band = band_attention(q, q, v, favor_map(w), window=4)
    plain = kernel_attention(q, q, v, favor_map(w))
    assert (band - exact).norm() < 0.5 * (plain - exact).norm()


def test_finite_where_the_two_fields_differ_by_hundreds_of_orders() -> None:
    q, k, v = (x.float().requires_grad_() for x in qkv(30))
    for scale in (1e-3, 30.0, 300.0):
        out = band_attention(q * scale, k * scale, v, favor_map(drawn(16, 8, 0).float()), window=3)
        assert out.isfinite().all() and out.abs().max() <= v.abs().max() * 1.001  # weights are positive
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), (q, k, v)))


@pytest.mark.parametrize("bias_window", [0, 3])
def test_no_path_is_quadratic(largest: Callable, bias_window: int) -> None:
    length = 1024
    q, k, v = (x.requires_grad_() for x in qkv(length, 4))
    bias = torch.randn(2, 2 * bias_window + 1, dtype=torch.float64, requires_grad=True) if bias_window else None

    def run() -> torch.Tensor:
        return band_attention(q, k, v, favor_map(drawn(8, 4, 0)), window=16, relative_bias=bias)

    assert largest(run) <= 2 * (length + 32) * 3 * 20


def test_options_have_an_effect() -> None:
    q, k, v = qkv(32)
    base = PerformerBand(**SHAPE, window=4)(q, k, v)
    for other in (PerformerBand(**SHAPE, window=8), PerformerBandOprf(**SHAPE, window=4)):
        assert not torch.allclose(base, other(q, k, v), atol=1e-4)

"""The modifications of FAVOR+ against what they estimate, and against what their papers define."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.attention.kernels import (
    Map,
    assert_unbiased,
    attend,
    drawn,
    estimate,
    estimates,
    favor_map,
    qkv,
    softmax_attention,
    softmax_kernel,
)
from xcls.attention.base import Masks
from xcls.attention.favor import Performer
from xcls.attention.favor_band import PerformerBand, PerformerBandOprf
from xcls.attention.favor_hyperbolic import PerformerHyperbolic
from xcls.attention.favor_oprf import PerformerOprf, best_directions, mean_square_sum, oprf_directions, optimal_scalar
from xcls.attention.favor_relu import PerformerRelu
from xcls.attention.favor_sderf import Optimum, PerformerSderf, moments, sderf_directions

SHAPE = {"num_heads": 2, "head_dim": 8, "layer": 0, "seed": 1, "num_features": 16}


def plain_map(projection: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> Map:
    return favor_map(projection)


def hyperbolic_map(projection: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> Map:
    """The features of a half of the directions and their opposites."""
    half = projection[: len(projection) // 2]
    return favor_map(torch.cat((half, -half)))


def oprf_map(projection: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> Map:
    return best_directions(projection, q, k, None)


def sderf_map(projection: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> Map:
    return sderf_directions(projection, moments(q, k, None))


@pytest.mark.parametrize(
    ("make", "scale", "orthogonal"),
    [
        (plain_map, 0.7, True),
        (plain_map, 0.7, False),
        (hyperbolic_map, 0.5, False),
        (oprf_map, 1.0, True),
        (oprf_map, 1.0, False),
        (sderf_map, 1.0, True),
    ],
)
def test_unbiased_for_the_softmax_kernel(make: Callable[..., Map], scale: float, orthogonal: bool) -> None:
    q, k, _ = (x * scale for x in qkv(4))
    found = estimates(lambda w: make(w, q, k), q, k, 16, 600, orthogonal=orthogonal)
    assert_unbiased(found, softmax_kernel(q, k))


@pytest.mark.parametrize(
    ("ours", "theirs", "scale", "most"),
    [
        (oprf_map, plain_map, [1.2] * 8, 0.5),
        (sderf_map, oprf_map, [2.5, 2.0, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1], 0.7),  # data with preferred axes
    ],
)
def test_less_variance_than_the_simpler_features(
    ours: Callable[..., Map], theirs: Callable[..., Map], scale: list[float], most: float
) -> None:
    q, k = (x * torch.tensor(scale, dtype=torch.float64) for x in qkv(6)[:2])
    one, other = (estimates(lambda w: make(w, q, k), q, k, 16, 300) for make in (ours, theirs))
    assert one.var(0).mean() < most * other.var(0).mean()


def test_hyperbolic_features_have_less_variance_at_equal_cost() -> None:
    q, k, _ = (x * 0.5 for x in qkv(4))  # the gain is 1 - exp(-|q + k|^2) of a variance that grows as exp(|q + k|^2)
    antithetic = estimates(lambda w: hyperbolic_map(w, q, k), q, k, 16, 600, orthogonal=False)
    apart = estimates(favor_map, q, k, 16, 600, orthogonal=False)
    assert (antithetic.var(0) / apart.var(0)).mean() < 0.85


@pytest.mark.parametrize(("width", "phi"), [(4, 0.3), (8, 12.0), (64, 40.0)])
def test_the_scalar_minimises_the_second_moment(width: int, phi: float) -> None:
    # E[f(q)^2 f(k)^2] = D^4 (1 - 8A)^(-d/2) exp((2 B^2 / (1 - 8A) - 1) |q + k|^2) exp(2 q.k), up to what A leaves alone
    a = torch.linspace(-3.0, 0.0, 300_001, dtype=torch.float64)
    moment = width * (1 - 4 * a).log() - width / 2 * (1 - 8 * a).log() + 2 * (1 - 4 * a) / (1 - 8 * a) * phi
    found = optimal_scalar(torch.tensor(phi, dtype=torch.float64), width)
    torch.testing.assert_close(found, a[moment.argmin()], atol=2e-5, rtol=0)
    assert found < 0


def test_statistics_are_means_over_pairs_of_real_tokens() -> None:
    q, k, _ = (torch.cat((x, x + 1)) for x in qkv())
    pads = torch.arange(12) >= torch.tensor([7, 12])[:, None]
    pairs = (q[:, :, :, None] + k[:, :, None]) * 8**-0.25
    outer = pairs[..., None, :] * pairs[..., None]
    expected = torch.stack((outer[0, :, :7, :7].mean((1, 2)), outer[1].mean((1, 2))))
    garbage = [x.masked_fill(pads[:, None, :, None], torch.nan) for x in (q, k)]
    torch.testing.assert_close(moments(*garbage, pads), expected)
    torch.testing.assert_close(mean_square_sum(*garbage, pads)[..., 0], expected.diagonal(dim1=2, dim2=3).sum(-1))


def test_simpler_features_are_special_cases() -> None:
    q, k, _ = qkv()
    w, phi, nothing = drawn(16, 8, 0), 5.0, torch.zeros(1, 2, 1, dtype=torch.float64)
    torch.testing.assert_close(estimate(oprf_directions(w, nothing), q, k), estimate(favor_map(w), q, k))
    scalar = optimal_scalar(nothing + phi, 8)
    second = (torch.eye(8, dtype=torch.float64) * (phi / 8)).expand(1, 2, 8, 8)  # data without a preferred axis
    torch.testing.assert_close(estimate(sderf_directions(w, second), q, k), estimate(oprf_directions(w, scalar), q, k))


def test_each_axis_is_favor_plus_plus_in_one_dimension() -> None:
    values = torch.tensor([0.0, 0.1, 3.0, 40.0], dtype=torch.float64)
    rotation = torch.linalg.qr(qkv(4, 4)[0][0, 0]).Q
    a, b, log_d = Optimum.apply(rotation @ values.diag() @ rotation.T)
    scalar = optimal_scalar(values, 1)
    torch.testing.assert_close(rotation.T @ a @ rotation, scalar.diag())
    torch.testing.assert_close(b @ b, torch.eye(4, dtype=torch.float64) - 4 * a)
    torch.testing.assert_close(log_d.squeeze(), (1 - 4 * scalar).log().sum() / 4)


def test_derivatives_also_where_eigenvalues_coincide() -> None:
    second = moments(*qkv(5, 4)[:2], None)
    for point in (second, 0.7 * torch.eye(4, dtype=torch.float64), torch.tensor([0.1, 0.1, 1.0, 1.0]).double().diag()):
        assert torch.autograd.gradcheck(lambda s: Optimum.apply((s + s.mT) / 2), (point.requires_grad_(),))


def test_hyperbolic_attention_is_the_kernel_of_cosh() -> None:
    q, k, v = qkv()
    module = PerformerHyperbolic(**SHAPE).double()
    torch.testing.assert_close(module.projection[8:], -module.projection[:8])
    scaled = [x * 8**-0.25 for x in (q, k)]
    sums = scaled[0][:, :, :, None] + scaled[1][:, :, None]  # q + k, [1, H, N, N, D]
    damped = (-(scaled[0].square().sum(-1)[..., None] + scaled[1].square().sum(-1)[:, :, None]) / 2).exp()
    weights = (sums @ module.projection[:8].T).cosh().mean(-1) * damped
    torch.testing.assert_close(module(q, k, v), weights / weights.sum(-1, keepdim=True) @ v)


def test_relu_attention_is_its_kernel_written_out() -> None:
    q, k, v = qkv()
    module = PerformerRelu(**SHAPE, epsilon=0.01).double()
    phi_q, phi_k = ((x @ module.projection.T * 8**-0.25).clamp(min=0) + 0.01 for x in (q, k))
    weights = phi_q @ phi_k.transpose(-1, -2)
    torch.testing.assert_close(module(q, k, v), weights / weights.sum(-1, keepdim=True) @ v)


@pytest.mark.parametrize(("kind", "strict"), [(Performer, True), (PerformerOprf, False), (PerformerSderf, False)])
def test_under_a_causal_mask_later_tokens_show_in_the_features_alone(kind: type, strict: bool) -> None:
    q, k, v = qkv(24)
    attention = kind(**SHAPE).double()
    causal = Masks.make(attn_mask=torch.ones(24, 24, dtype=torch.bool).triu(1))
    changed = [torch.cat((x[:, :, :16], 3 * x[:, :, 16:]), dim=2) for x in (q, k, v)]
    out, other = (attention(*inputs, causal)[:, :, :16] for inputs in ((q, k, v), changed))
    assert torch.allclose(out, other, rtol=1e-6) == strict
    torch.testing.assert_close(attention(q, k, changed[2], causal)[:, :, :16], out)


# The exact band


def band(window: int, projection: torch.Tensor) -> PerformerBand:
    """The mechanism with these directions [M, D]."""
    size = {"head_dim": projection.shape[1], "num_features": len(projection)}
    module = PerformerBand(**{**SHAPE, **size}, window=window).to(projection.dtype)
    module.projection.copy_(projection)
    return module


def test_a_band_over_everything_is_exact_attention() -> None:
    q, k, v = qkv(20)
    bias = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    position = torch.arange(20)
    distances = bias[:, (position - position[:, None]).clamp(-4, 4) + 4]
    for module in (PerformerBand, PerformerBandOprf):
        out = module(**SHAPE, window=10).double()(q, k, v, Masks.make(relative_bias=bias))
        torch.testing.assert_close(out, softmax_attention(q, k, v, distances))


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

"""FAVOR# against FAVOR++ where the data has no preferred axis, against the softmax kernel, and its derivatives."""

from __future__ import annotations

import torch

from tests.attention.kernels import Map, assert_unbiased, drawn, estimate, estimates, qkv, softmax_kernel
from xcls.attention.favor_oprf import best_directions, oprf_directions, optimal_scalar
from xcls.attention.favor_sderf import Optimum, moments, sderf_directions


def best_map(projection: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> Map:
    return sderf_directions(projection, moments(q, k, None))


def stretched() -> list[torch.Tensor]:
    """q and k that lie mostly along two axes."""
    scale = torch.tensor([2.5, 2.0, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1], dtype=torch.float64)
    return [x * scale for x in qkv(6)[:2]]


def test_isotropic_data_give_favor_plus_plus() -> None:
    q, k, _ = qkv()
    w, phi = drawn(16, 8, 0), 5.0
    scalar = optimal_scalar(torch.full((1, 2, 1), phi, dtype=torch.float64), 8)
    second = (torch.eye(8, dtype=torch.float64) * (phi / 8)).expand(1, 2, 8, 8)
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


def test_moments_are_the_mean_over_pairs_of_real_tokens() -> None:
    q, k, _ = (torch.cat((x, x + 1)) for x in qkv())
    pads = torch.arange(12) >= torch.tensor([7, 12])[:, None]
    pairs = (q[:, :, :, None] + k[:, :, None]) * 8**-0.25
    outer = pairs[..., None, :] * pairs[..., None]
    expected = torch.stack((outer[0, :, :7, :7].mean((1, 2)), outer[1].mean((1, 2))))
    garbage = [x.masked_fill(pads[:, None, :, None], torch.nan) for x in (q, k)]
    torch.testing.assert_close(moments(*garbage, pads), expected)


def test_unbiased_for_the_softmax_kernel() -> None:
    q, k, _ = qkv(4)
    found = estimates(lambda w: best_map(w, q, k), q, k, 16, 600)
    assert_unbiased(found, softmax_kernel(q, k))


def test_less_variance_than_favor_plus_plus_on_data_with_preferred_axes() -> None:
    q, k = stretched()
    dense = estimates(lambda w: best_map(w, q, k), q, k, 16, 300).var(0)
    scalar = estimates(lambda w: best_directions(w, q, k, None), q, k, 16, 300).var(0)
    assert dense.mean() < 0.7 * scalar.mean()

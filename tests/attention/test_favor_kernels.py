"""Hyperbolic and ReLU features against what they are defined to be."""

from __future__ import annotations

import pytest
import torch

from tests.attention.kernels import Map, assert_unbiased, estimates, favor_map, qkv, softmax_kernel
from xcls.attention.favor_hyperbolic import PerformerHyperbolic
from xcls.attention.favor_relu import PerformerRelu

SHAPE = {"num_heads": 2, "head_dim": 8, "layer": 0, "seed": 1}


def pairs(projection: torch.Tensor) -> Map:
    """The features of a half of the directions and their opposites."""
    half = projection[: len(projection) // 2]
    return favor_map(torch.cat((half, -half)))


def test_hyperbolic_directions_come_with_their_opposites() -> None:
    module = PerformerHyperbolic(**SHAPE, num_features=16)
    torch.testing.assert_close(module.projection[8:], -module.projection[:8])
    with pytest.raises(ValueError, match="even"):
        PerformerHyperbolic(**SHAPE, num_features=15)


def test_hyperbolic_attention_is_the_kernel_of_cosh() -> None:
    q, k, v = qkv()
    module = PerformerHyperbolic(**SHAPE, num_features=16).double()
    scaled = [x * 8**-0.25 for x in (q, k)]
    sums = scaled[0][:, :, :, None] + scaled[1][:, :, None]  # q + k, [1, H, N, N, D]
    damped = (-(scaled[0].square().sum(-1)[..., None] + scaled[1].square().sum(-1)[:, :, None]) / 2).exp()
    weights = (sums @ module.projection[:8].T).cosh().mean(-1) * damped
    torch.testing.assert_close(module(q, k, v), weights / weights.sum(-1, keepdim=True) @ v)


def test_hyperbolic_is_unbiased_and_has_less_variance_at_equal_cost() -> None:
    q, k, _ = (x * 0.5 for x in qkv(4))  # the gain is 1 - exp(-|q + k|^2) of a variance that grows as exp(|q + k|^2)
    antithetic = estimates(pairs, q, k, 16, 600, orthogonal=False)
    assert_unbiased(antithetic, softmax_kernel(q, k))
    apart = estimates(favor_map, q, k, 16, 600, orthogonal=False)
    assert (antithetic.var(0) / apart.var(0)).mean() < 0.85


def test_relu_attention_is_its_kernel_written_out() -> None:
    q, k, v = qkv()
    module = PerformerRelu(**SHAPE, num_features=16, epsilon=0.01).double()
    phi_q, phi_k = ((x @ module.projection.T * 8**-0.25).clamp(min=0) + 0.01 for x in (q, k))
    weights = phi_q @ phi_k.transpose(-1, -2)
    torch.testing.assert_close(module(q, k, v), weights / weights.sum(-1, keepdim=True) @ v)

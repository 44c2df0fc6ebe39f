"""FAVOR++ against FAVOR+, against the softmax kernel, and its scalar against a search."""

from __future__ import annotations

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
from xcls.attention.favor_oprf import PerformerOprf, best_directions, mean_square_sum, oprf_directions, optimal_scalar
from xcls.attention.favor_sderf import PerformerSderf


def best_map(projection: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> Map:
    return best_directions(projection, q, k, None)


def test_without_a_scalar_it_is_favor_plus() -> None:
    q, k, v = qkv()
    w = drawn(16, 8, 0)
    nothing = torch.zeros(1, 2, 1, dtype=torch.float64)
    torch.testing.assert_close(estimate(oprf_directions(w, nothing), q, k), estimate(favor_map(w), q, k))
    torch.testing.assert_close(attend(oprf_directions(w, nothing), q, k, v), attend(favor_map(w), q, k, v))


def test_phi_is_the_mean_over_pairs_of_real_tokens() -> None:
    q, k, _ = (torch.cat((x, x + 1)) for x in qkv())
    pads = torch.arange(12) >= torch.tensor([7, 12])[:, None]
    pairs = ((q[:, :, :, None] + k[:, :, None]) * 8**-0.25).square().sum(-1)
    expected = torch.stack((pairs[0, :, :7, :7].mean((1, 2)), pairs[1].mean((1, 2))))[..., None]
    garbage = [x.masked_fill(pads[:, None, :, None], torch.nan) for x in (q, k)]
    torch.testing.assert_close(mean_square_sum(*garbage, pads), expected)


@pytest.mark.parametrize(("width", "phi"), [(4, 0.3), (8, 12.0), (64, 40.0)])
def test_the_scalar_minimises_the_second_moment(width: int, phi: float) -> None:
    # E[f(q)^2 f(k)^2] = D^4 (1 - 8A)^(-d/2) exp((2 B^2 / (1 - 8A) - 1) |q + k|^2) exp(2 q.k), up to what A leaves alone
    a = torch.linspace(-3.0, 0.0, 300_001, dtype=torch.float64)
    moment = width * (1 - 4 * a).log() - width / 2 * (1 - 8 * a).log() + 2 * (1 - 4 * a) / (1 - 8 * a) * phi
    found = optimal_scalar(torch.tensor(phi, dtype=torch.float64), width)
    torch.testing.assert_close(found, a[moment.argmin()], atol=2e-5, rtol=0)
    assert found < 0


@pytest.mark.parametrize("orthogonal", [True, False])
def test_unbiased_for_the_softmax_kernel(orthogonal: bool) -> None:
    q, k, _ = qkv(4)
    found = estimates(lambda w: best_map(w, q, k), q, k, 16, 600, orthogonal=orthogonal)
    assert_unbiased(found, softmax_kernel(q, k))


def test_less_variance_than_favor_plus() -> None:
    q, k, _ = (x * 1.2 for x in qkv(6))
    ours = estimates(lambda w: best_map(w, q, k), q, k, 16, 300).var(0)
    theirs = estimates(favor_map, q, k, 16, 300).var(0)
    assert ours.mean() < 0.5 * theirs.mean()


def test_closer_to_softmax_attention_than_favor_plus() -> None:
    q, k, v = qkv(24)
    exact = softmax_attention(q, k, v)

    def error(make) -> float:
        outs = [attend(make(drawn(64, 8, seed)), q, k, v) for seed in range(40)]
        return torch.stack([(out - exact).square().mean() for out in outs]).mean().item()

    assert error(lambda w: best_map(w, q, k)) < 0.9 * error(favor_map)


@pytest.mark.parametrize(
    "kind,strict",
    [
        (Performer, True),
        (PerformerBand, True),
        (PerformerOprf, False),
        (PerformerSderf, False),
        (PerformerBandOprf, False),
    ],
)
def test_under_a_causal_mask_later_tokens_show_in_the_features_alone(kind: type, strict: bool) -> None:
    q, k, v = qkv(24)
    far = {"window": 4} if issubclass(kind, PerformerBand) else {}
    attention = kind(num_heads=2, head_dim=8, layer=0, seed=1, num_features=16, **far).double()
    causal = Masks.make(attn_mask=torch.ones(24, 24, dtype=torch.bool).triu(1))
    changed = [torch.cat((x[:, :, :16], 3 * x[:, :, 16:]), dim=2) for x in (q, k, v)]
    out, other = (attention(*inputs, causal)[:, :, :16] for inputs in ((q, k, v), changed))
    assert torch.allclose(out, other, rtol=1e-6) == strict
    only_values = attention(q, k, changed[2], causal)[:, :, :16]
    torch.testing.assert_close(only_values, out)

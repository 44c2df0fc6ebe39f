"""SMYRF: its transformation, its clusters, and exactness where they cover the sequence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from xcls.attention.base import Masks
from xcls.attention.smyrf import Smyrf, asymmetric_scores, smyrf_attention

FACTS = {"num_heads": 2, "head_dim": 4, "layer": 0, "seed": 1}


def inputs(length: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, length, 4, dtype=torch.float64, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_equals_softmax_attention_where_a_cluster_covers_the_sequence(rounds: int) -> None:
    q, k, v = inputs(23)
    smyrf = Smyrf(**FACTS, num_hashes=rounds, bucket_size=23)
    torch.testing.assert_close(smyrf(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_distance_falls_as_the_dot_product_grows() -> None:
    q, k, _ = inputs(23)
    most = q.square().sum(-1).amax(-1) + k.square().sum(-1).amax(-1)  # [B, H]
    unit = torch.eye(6, dtype=torch.float64)[:, None].expand(6, 2, 6)  # scores along the axes are F and G themselves
    f, g = asymmetric_scores(q, k, unit)  # [B, H, 6, N]
    distance = torch.cdist(f.transpose(2, 3), g.transpose(2, 3)).square()
    torch.testing.assert_close(distance, 2 * most[..., None, None] - 2 * q @ k.transpose(2, 3))
    norms = most[..., None].expand(-1, -1, 23)
    torch.testing.assert_close([f.square().sum(2), g.square().sum(2)], [norms, norms])


def test_each_cluster_is_a_softmax_of_its_own() -> None:
    q, k, v = inputs(8)
    q_scores = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 7]).expand(2, 2, 1, 8)
    k_scores = q_scores.flip(-1)  # the first four queries meet the last four keys
    out = smyrf_attention(q, k, v, q_scores, k_scores, Masks(), bucket_size=4)
    first = F.scaled_dot_product_attention(q[:, :, :4], k[:, :, 4:], v[:, :, 4:])
    second = F.scaled_dot_product_attention(q[:, :, 4:], k[:, :, :4], v[:, :, :4])
    torch.testing.assert_close(out, torch.cat((first, second), dim=2))
    thrice = smyrf_attention(q, k, v, *(x.expand(-1, -1, 3, -1) for x in (q_scores, k_scores)), Masks(), bucket_size=4)
    torch.testing.assert_close(thrice, out)  # the same round thrice is that round once


def test_scores_of_real_tokens_do_not_see_pads() -> None:
    q, k, _ = inputs(23)
    pads = torch.arange(23).expand(2, -1) >= 15
    directions = Smyrf(**FACTS, num_hashes=3).directions
    short = asymmetric_scores(q[:, :, :15], k[:, :, :15], directions)
    q[:, :, 15:], k[:, :, 15:] = 1e3, -1e3
    padded = asymmetric_scores(q, k, directions, pads)
    torch.testing.assert_close([x[..., :15] for x in padded], list(short))
    assert all(x.isfinite().all() for x in padded)


@pytest.mark.parametrize("changed", [{"num_hashes": 3}, {"bucket_size": 5}, {"seed": 2}, {"layer": 1}])
def test_options_have_an_effect(changed: dict) -> None:
    base = {**FACTS, "bucket_size": 4}
    first = Smyrf(**base)(*inputs(40))
    assert not torch.allclose(first, Smyrf(**{**base, **changed})(*inputs(40)), atol=1e-4)
    with pytest.raises(ValueError, match="at least 1"):
        Smyrf(**FACTS, bucket_size=0)


def test_nothing_is_quadratic(largest: Callable) -> None:
    q, k, v = (x.requires_grad_() for x in inputs(1024))
    smyrf = Smyrf(**FACTS, num_hashes=2, bucket_size=8)
    assert largest(lambda: smyrf(q, k, v)) <= 2 * 2 * 1024 * 8

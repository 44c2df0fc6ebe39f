"""The controls (window, mean) and SMYRF where they are exact attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.attention.kernels import qkv
from xcls.attention.base import Masks
from xcls.attention.mean import Mean
from xcls.attention.smyrf import Smyrf, asymmetric_scores, smyrf_attention
from xcls.attention.softmax import Sdpa
from xcls.attention.window import Window

SHAPE = {"num_heads": 2, "head_dim": 8, "layer": 0, "seed": 1}


@pytest.mark.parametrize(("length", "window"), [(1, 4), (7, 8), (9, 4), (30, 1), (17, 16)])
def test_a_window_is_softmax_with_distant_pairs_blocked(length: int, window: int) -> None:
    q, k, v = qkv(length)
    bias = torch.randn(2, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    blocked = torch.rand(length, length, generator=torch.Generator().manual_seed(2)) < 0.3
    position = torch.arange(length)
    far = (position - position[:, None]).abs() > window
    for given in ({}, {"relative_bias": bias}, {"attn_mask": blocked}):
        both = Masks.make(**{**given, "attn_mask": far | given.get("attn_mask", far)})
        expected = Sdpa(**SHAPE)(q, k, v, both)
        torch.testing.assert_close(Window(**SHAPE, window=window)(q, k, v, Masks.make(**given)), expected)


def test_mean_looks_at_nothing_and_is_the_mean() -> None:
    q, k, v = qkv()
    module = Mean(**SHAPE, chunk_size=5)
    causal = Masks.make(attn_mask=torch.ones(12, 12, dtype=torch.bool).triu(1))
    torch.testing.assert_close(module(v, v, v), v.mean(2, keepdim=True).expand_as(v))
    torch.testing.assert_close(module(v, v, v, causal), v.cumsum(2) / torch.arange(1, 13)[:, None])
    assert not module.reads_qk and torch.equal(module(q, k, v), module(k.flip(2), q * 3, v))


@pytest.mark.parametrize("rounds", [1, 4])
def test_smyrf_is_softmax_where_a_cluster_covers_the_sequence(rounds: int) -> None:
    q, k, v = qkv(23)
    smyrf = Smyrf(**SHAPE, num_hashes=rounds, bucket_size=23)
    torch.testing.assert_close(smyrf(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_smyrf_distance_falls_as_the_dot_product_grows() -> None:
    q, k, _ = qkv(23)
    most = q.square().sum(-1).amax(-1) + k.square().sum(-1).amax(-1)  # [B, H]
    unit = torch.eye(10, dtype=torch.float64)[:, None].expand(10, 2, 10)  # scores along the axes are F and G themselves
    f, g = asymmetric_scores(q, k, unit)  # [B, H, 10, N]
    distance = torch.cdist(f.transpose(2, 3), g.transpose(2, 3)).square()
    torch.testing.assert_close(distance, 2 * most[..., None, None] - 2 * q @ k.transpose(2, 3))


def test_each_smyrf_cluster_is_a_softmax_of_its_own() -> None:
    q, k, v = qkv(8)
    q_scores = torch.arange(8.0).expand(1, 2, 1, 8)
    k_scores = q_scores.flip(-1)  # the first four queries meet the last four keys
    out = smyrf_attention(q, k, v, q_scores, k_scores, Masks(), bucket_size=4)
    first = F.scaled_dot_product_attention(q[:, :, :4], k[:, :, 4:], v[:, :, 4:])
    second = F.scaled_dot_product_attention(q[:, :, 4:], k[:, :, :4], v[:, :, :4])
    torch.testing.assert_close(out, torch.cat((first, second), dim=2))


@pytest.mark.parametrize("changed", [{"num_hashes": 3}, {"bucket_size": 5}, {"seed": 2}, {"layer": 1}])
def test_smyrf_options_have_an_effect(changed: dict) -> None:
    base = {**SHAPE, "bucket_size": 4}
    assert not torch.allclose(Smyrf(**base)(*qkv(40)), Smyrf(**{**base, **changed})(*qkv(40)), atol=1e-4)


@pytest.mark.parametrize(("kind", "key"), [(Smyrf, "bucket_size"), (Window, "window"), (Mean, "chunk_size")])
def test_impossible_options_are_refused(kind: type, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        kind(**SHAPE, **{key: 0})

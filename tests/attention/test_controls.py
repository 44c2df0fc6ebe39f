"""The mean, and SMYRF where it is exact attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.attention.kernels import qkv
from xcls.attention.base import Masks
from xcls.attention.mean import Mean
from xcls.attention.smyrf import Smyrf, asymmetric_scores

SHAPE = {"num_heads": 2, "head_dim": 8, "layer": 0, "seed": 1}


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

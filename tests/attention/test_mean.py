"""The mean of the values against the mean of the values."""

from __future__ import annotations

import torch

from tests.attention.kernels import qkv
from xcls.attention.base import Masks
from xcls.attention.mean import Mean

SHAPE = {"num_heads": 2, "head_dim": 8, "layer": 0, "seed": 1}


def test_is_the_mean_over_what_may_be_attended() -> None:
    v = torch.cat((qkv(12)[2], qkv(12, seed=1)[2]))
    module = Mean(**SHAPE, chunk_size=5)
    pads = torch.arange(12) >= torch.tensor([7, 12])[:, None]
    whole, padded = module(v, v, v), module(v, v, v, Masks.make(key_padding_mask=pads))
    causal = module(v, v, v, Masks.make(attn_mask=torch.ones(12, 12, dtype=torch.bool).triu(1)))
    torch.testing.assert_close(whole, v.mean(2, keepdim=True).expand_as(v))
    torch.testing.assert_close(padded[0, :, :7], v[0, :, :7].mean(1, keepdim=True).expand(2, 7, 8))
    torch.testing.assert_close(padded[1], whole[1])
    torch.testing.assert_close(causal, v.cumsum(2) / torch.arange(1, 13)[:, None])


def test_a_relative_bias_weighs() -> None:
    v = qkv(9)[2]
    bias = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    position = torch.arange(9)
    weights = bias[:, (position - position[:, None]).clamp(-3, 3) + 3].softmax(-1)
    torch.testing.assert_close(Mean(**SHAPE, chunk_size=2)(v, v, v, Masks.make(relative_bias=bias)), weights @ v)


def test_looks_at_nothing() -> None:
    q, k, v = qkv()
    module = Mean(**SHAPE)
    assert not module.reads_qk and torch.equal(module(q, k, v), module(k.flip(2), q * 3, v))

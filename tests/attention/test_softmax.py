"""Softmax attention, explicit and fused, against PyTorch's."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from tests.attention.layers import in_blocks
from xcls.attention.base import Attention, Masks
from xcls.attention.softmax import Sdpa, SdpaFused


def make(mechanism: type[Attention], width: int = 4) -> Attention:
    return mechanism(num_heads=2, head_dim=width, layer=0, seed=0)


def qkv(length: int = 9) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, length, 4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("mechanism", [Sdpa, SdpaFused])
@pytest.mark.parametrize("blocks", [False, True])
def test_equals_pytorch_with_masks_and_bias(mechanism: type[Attention], blocks: bool) -> None:
    q, k, v = qkv()
    bias = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    pads = torch.arange(9) >= torch.tensor([9, 6])[:, None]
    attn_mask = torch.rand(2, 2, 9, 9, generator=torch.Generator().manual_seed(1)) < 0.3
    attn_mask[..., 0] = False
    position = torch.arange(9)
    matrix = bias[:, (position - position[:, None]).clamp(-3, 3) + 3]
    additive = matrix.expand(2, 2, 9, 9).masked_fill(attn_mask | pads[:, None, None], -torch.inf)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=additive).masked_fill(pads[:, None, :, None], 0.0)
    attention = make(mechanism)
    with in_blocks() if blocks else nullcontext():
        out = attention(q, k, v, Masks.make(key_padding_mask=pads, attn_mask=attn_mask, relative_bias=bias))
        assert attention.path == ("blocks" if blocks else {Sdpa: "whole", SdpaFused: "fused"}[mechanism])
        torch.testing.assert_close(out, expected)
        weight = torch.randn_like(out)
        found = torch.autograd.grad((out * weight).sum(), (q, k, v, bias))
    torch.testing.assert_close(found, torch.autograd.grad((expected * weight).sum(), (q, k, v, bias)))


@pytest.mark.parametrize("blocks", [False, True])
def test_fp16_scores_above_its_range_are_finite(blocks: bool) -> None:
    q = torch.full((1, 1, 3, 64), 150.0, dtype=torch.float16)  # q.k / sqrt(64) = 180,000
    v = torch.arange(192.0).view(1, 1, 3, 64).half()
    with in_blocks() if blocks else nullcontext():
        out = make(Sdpa, 64)(q, q, v)
    torch.testing.assert_close(out, v.float().mean(dim=2, keepdim=True).expand_as(v).half())


def test_in_fp16_a_pad_has_no_weight_beside_low_scores() -> None:
    q, k = torch.full((1, 2, 2, 4), 90.0).half(), torch.tensor([-90.0, 90.0]).view(1, 1, 2, 1).expand(1, 2, 2, 4).half()
    v = torch.tensor([1.0, 5.0]).view(1, 1, 2, 1).expand(1, 2, 2, 4).half()
    masks = Masks.make(key_padding_mask=torch.tensor([[False, True]]), finite=True)
    assert torch.equal(make(Sdpa)(q, k, v, masks), torch.ones_like(v))  # logits -16,200 and 16,200

"""Softmax attention, explicit and fused, against PyTorch's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from xcls.attention.sdpa import sdpa
from xcls.attention.sdpa_fused import sdpa_fused

BLOCKED = {"block_size": 4, "block_above": 0}


def qkv(length: int = 9) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, length, 4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("function", [sdpa, sdpa_fused])
@pytest.mark.parametrize("sizes", [{}, BLOCKED])
def test_equals_pytorch_with_masks_and_bias(function: Callable, sizes: dict) -> None:
    q, k, v = qkv()
    bias = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    pads = torch.arange(9) >= torch.tensor([9, 6])[:, None]
    attn_mask = torch.rand(2, 2, 9, 9, generator=torch.Generator().manual_seed(1)) < 0.3
    attn_mask[..., 0] = False
    position = torch.arange(9)
    matrix = bias[:, (position - position[:, None]).clamp(-3, 3) + 3]
    additive = matrix.expand(2, 2, 9, 9).masked_fill(attn_mask | pads[:, None, None], -torch.inf)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=additive).masked_fill(pads[:, None, :, None], 0.0)
    out = function(q, k, v, key_padding_mask=pads, attn_mask=attn_mask, relative_bias=bias, **sizes)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    found = torch.autograd.grad((out * weight).sum(), (q, k, v, bias))
    torch.testing.assert_close(found, torch.autograd.grad((expected * weight).sum(), (q, k, v, bias)))


@pytest.mark.parametrize("function", [sdpa, sdpa_fused])
def test_equals_pytorch_without_a_mask_and_causal(function: Callable) -> None:
    q, k, v = qkv()
    torch.testing.assert_close(function(q, k, v), F.scaled_dot_product_attention(q, k, v))
    causal = torch.ones(9, 9, dtype=torch.bool).triu(1)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(function(q, k, v, attn_mask=causal), expected)


@pytest.mark.parametrize("function", [sdpa, sdpa_fused])
def test_nothing_quadratic_is_made_in_blocks(function: Callable, largest: Callable) -> None:
    length = 256
    q, k, v = qkv(length)
    bias = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    sizes = {"block_size": 8, "block_above": 0}
    assert largest(lambda: function(q, k, v, relative_bias=bias, **sizes)) <= 2 * 2 * 2 * 8 * length
    assert largest(lambda: sdpa(q, k, v)) >= length * length


def test_fp16_scores_above_its_range_are_finite() -> None:
    q = torch.full((1, 1, 3, 64), 150.0, dtype=torch.float16)  # q.k / sqrt(64) = 180,000
    v = torch.arange(192.0).view(1, 1, 3, 64).half()
    torch.testing.assert_close(sdpa(q, q, v), v.float().mean(dim=2, keepdim=True).expand_as(v).half())

"""Position encodings against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from xcls.position.base import Position
from xcls.position.learned import Learned
from xcls.position.none import NoPosition
from xcls.position.relative import Relative
from xcls.position.rope import Rotary, rotary_angles, rotate_pairs
from xcls.position.sin import Sinusoidal, sinusoids

FACTS = {"embed_dim": 8, "num_heads": 2, "head_dim": 4, "num_layers": 3, "seq_len": 12}


@pytest.mark.parametrize("position", [Position, NoPosition])
def test_none_does_nothing(position: type[Position]) -> None:
    encoding, x = position(**FACTS), torch.randn(2, 5, 8)
    assert encoding.embed(x) is x and encoding.rotation(5, x.device) is None and encoding.bias(0) is None
    assert not list(encoding.parameters())


@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_sinusoids_by_their_definition(width: int) -> None:
    expected = [
        [(math.cos if c % 2 else math.sin)(p * 100.0 ** (-(c - c % 2) / width)) for c in range(width)] for p in range(6)
    ]
    torch.testing.assert_close(sinusoids(6, width, 100.0), torch.tensor(expected))


def test_sinusoids_are_added_at_their_scale() -> None:
    x = torch.randn(2, 5, 8)
    out = Sinusoidal(**FACTS, scale=0.5).embed(x)
    torch.testing.assert_close(out - x, (0.5 * sinusoids(5, 8, 10000.0)).expand(2, -1, -1))
    assert not torch.equal(Sinusoidal(**FACTS, base=10.0).embed(x), Sinusoidal(**FACTS).embed(x))


@pytest.mark.parametrize("position", [Learned, Sinusoidal, Rotary])
def test_one_token_more_than_seq_len_is_refused(position: type[Position]) -> None:
    encoding = position(**FACTS)
    assert encoding.embed(torch.zeros(1, 12, 8)).shape == (1, 12, 8)
    with pytest.raises(ValueError, match="13 tokens are more than seq_len=12"):
        encoding.embed(torch.zeros(1, 13, 8))
        encoding.rotation(13, torch.device("cpu"))


def test_learned_rows_get_the_gradient_of_their_position() -> None:
    encoding = Learned(**FACTS)
    encoding.embed(torch.zeros(3, 5, 8)).sum().backward()
    expected = torch.zeros(12, 8)
    expected[:5] = 3.0
    torch.testing.assert_close(encoding.table.grad, expected)


def test_relative_has_its_own_bias_per_layer_head_and_distance() -> None:
    encoding = Relative(**FACTS, window=5)
    assert encoding.table.shape == (3, 2, 11)
    assert torch.equal(encoding.bias(2), encoding.table[2]) and not torch.equal(encoding.bias(0), encoding.bias(1))
    with pytest.raises(ValueError, match="window"):
        Relative(**FACTS, window=0)


@pytest.mark.parametrize("width", [1, 4, 5])
def test_rotary_turns_pairs_by_complex_multiplication(width: int) -> None:
    x = torch.randn(2, 2, 6, width, dtype=torch.float64)
    angles = rotary_angles(6, width, 100.0)
    half = width // 2
    turned = torch.complex(x[..., :half], x[..., half : 2 * half]) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat((turned.real, turned.imag, x[..., 2 * half :]), dim=-1)
    torch.testing.assert_close(rotate_pairs(x, angles.cos(), angles.sin()), expected)


def test_rotary_keeps_norms_and_products_see_the_distance_alone() -> None:
    rotate = Rotary(**FACTS).rotation(12, torch.device("cpu"))
    q, k = (torch.randn(1, 1, 1, 4).expand(1, 1, 12, 4) for _ in range(2))
    torch.testing.assert_close(rotate(q).norm(dim=-1), q.norm(dim=-1))
    products = (rotate(q) @ rotate(k).transpose(-1, -2))[0, 0]
    for distance in range(-5, 6):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


def test_rotary_of_half_precision_is_computed_in_fp32() -> None:
    encoding = Rotary(**{**FACTS, "seq_len": 16384})
    x = torch.randn(1, 1, 16384, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = encoding.rotation(16384, x.device)(x)
    assert out.dtype == torch.bfloat16
    angles = rotary_angles(16384, 4, 10000.0)
    expected = rotate_pairs(x.double(), angles.cos(), angles.sin())
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-6)  # one rounding to bf16, at the end

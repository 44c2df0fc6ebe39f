"""The trial of a mechanism before a run: all that are here pass it, and each broken promise is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.attention.layers import ATTENTIONS, POSITIONS, build
from tests.pairwise import spread
from xcls.attention.base import Attention, Masks, zero_padding
from xcls.attention.check import LENGTH, check_attention, check_position
from xcls.attention.softmax import Sdpa
from xcls.config.schema import UserError
from xcls.position.base import Position

FACTS = {"num_heads": 2, "head_dim": 8}
Attend = Callable[[Tensor, Tensor, Tensor, Masks], Tensor]


def position_of(name: str, **facts: int) -> nn.Module:
    shape = {"num_heads": 2, "head_dim": 8, "num_layers": 2, "seq_len": LENGTH, **facts}
    return build("position", name, small=False, embed_dim=shape["num_heads"] * shape["head_dim"], **shape)


@pytest.mark.parametrize(("attention", "position"), spread(ATTENTIONS, POSITIONS, times=1))
def test_everything_here_keeps_its_promises(attention: str, position: str) -> None:
    layers = [
        build("attention", attention, small=False, num_heads=2, head_dim=64, layer=layer, seed=0) for layer in (0, 1)
    ]
    encoding = position_of(position, head_dim=64)
    check_position(encoding, name=position)
    check_attention(layers, encoding, name=attention)
    assert not any(layer.training for layer in layers)


def without_care(q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
    """NaN where a row has nothing to attend to."""
    blocked = masks.blocked()
    blocked = q.new_zeros(1, dtype=torch.bool) if blocked is None else blocked
    return (q @ k.mT).masked_fill(blocked, -torch.inf).softmax(-1) @ v


def only_even(f: Attend, layer: int, q: Tensor, k: Tensor, v: Tensor, m: Masks) -> Tensor:
    v.unflatten(2, (-1, 64))
    return f(q, k, v, m)


BROKEN: list[tuple[Callable[..., Tensor], str]] = [  # what is wrong, and what the message names
    (lambda f, layer, q, k, v, m: f(q, k, v, m.with_(padding=None)), "sees padding"),
    (lambda f, layer, q, k, v, m: f(q, k, v, m.with_(padding=None, context={}) if layer else m), "sees padding"),
    (lambda f, layer, q, k, v, m: f(q, k, v, m) / v.shape[2], "sees padding"),
    (lambda f, layer, q, k, v, m: f(q, k, v, m) * zero_padding(v, m.padding)[len(v) // 2 :].abs().amax(), "examples"),
    (lambda f, layer, q, k, v, m: f(q, k, v, m).transpose(1, 2), "shape"),
    (only_even, "fails on"),
    (lambda f, layer, q, k, v, m: f(q, k, v, m.with_(pairs=None)), "attn_mask"),
    (lambda f, layer, q, k, v, m: f(q, k, v, m if m.causal else m.with_(pairs=None)), "respect attn_mask"),
    (lambda f, layer, q, k, v, m: f(q, k, v, m.with_(pairs=None) if m.causal else m), "causal attn_mask"),
    (lambda f, layer, q, k, v, m: without_care(q, k, v, m), "NaN"),
    (lambda f, layer, q, k, v, m: without_care(q, k, v, m).nan_to_num(), "gradient"),
    (lambda f, layer, q, k, v, m: f(q + 1e-3 * torch.randn_like(q), k, v, m), "same input"),
]


def mechanism(mistake: Callable[..., Tensor]) -> list[Attention]:
    """Two layers of softmax attention with a mistake."""

    class Mine(Sdpa):
        def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
            return mistake(super().attend, self.layer, q, k, v, masks)

    return [Mine(layer=layer, seed=0, **FACTS) for layer in (0, 1)]


@pytest.mark.parametrize(("broken", "position"), spread(BROKEN, ["none", "relative", "rope"], times=1))
def test_a_broken_promise_is_named(broken: tuple[Callable[..., Tensor], str], position: str) -> None:
    mistake, promise = broken
    with pytest.raises(UserError) as refused:
        check_attention(mechanism(mistake), position_of(position), name="attention=mine (a.Mine)")
    text = str(refused.value)
    assert text.startswith("attention=mine (a.Mine): ") and promise in text


@pytest.mark.parametrize(
    ("unrotated", "position", "promise"), [(False, "relative", "relative_bias"), (True, "rope", "rotate")]
)
def test_a_mechanism_without_positions_is_refused_where_it_needs_them(
    unrotated: bool, position: str, promise: str
) -> None:
    layers = mechanism(lambda f, layer, q, k, v, m: f(q, k, v, m.with_(bias=None)))
    for layer in layers:
        layer.wants_unrotated = unrotated
    check_attention(layers, position_of("none"), name="a")
    with pytest.raises(UserError, match=promise):
        check_attention(layers, position_of(position), name="a")


class Narrow(Position):
    def embed(self, x: Tensor) -> Tensor:
        return x[..., 1:]


class Backwards(Position):
    def embed(self, x: Tensor) -> Tensor:
        return x + torch.arange(x.shape[1], 0, -1)[:, None]


class Unbalanced(Position):
    def bias(self, layer: int) -> Tensor:
        return torch.zeros(self.num_heads, 8)


@pytest.mark.parametrize(
    ("position", "hook"),
    [(Narrow, "embed makes"), (Backwards, "depends on the tokens behind"), (Unbalanced, r"bias is \[2, 8\]")],
)
def test_a_broken_position_encoding_is_named(position: type[Position], hook: str) -> None:
    with pytest.raises(UserError, match=f"^p: .*{hook}"):
        check_position(position(embed_dim=16, num_layers=2, seq_len=LENGTH, **FACTS), name="p")

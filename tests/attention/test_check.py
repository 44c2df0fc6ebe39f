"""The trial of a mechanism before a run: all that are here pass it, and each broken promise is named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.attention.layers import ATTENTIONS, POSITIONS, build
from tests.pairwise import spread
from xcls.attention.base import Attention, Masks, mix, zero_padding
from xcls.attention.check import LENGTH, check_attention, check_position
from xcls.attention.softmax import Sdpa
from xcls.position.base import Position

FACTS = {"num_heads": 2, "head_dim": 8}


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


class SeesPadding(Sdpa):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        return super().attend(q, k, v, masks.with_(padding=None))


class CountsPadding(Sdpa):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        return super().attend(q, k, v, masks) / v.shape[2]


class SeesTheBatch(Sdpa):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        return super().attend(q, k, v, masks) * (zero_padding(v, masks.padding).abs().amax() if len(v) > 1 else 1.0)


class WrongShape(Sdpa):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        return super().attend(q, k, v, masks).transpose(1, 2)


class NoOddLength(Sdpa):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        v.unflatten(2, (-1, 64))
        return super().attend(q, k, v, masks)


class NoAttnMask(Sdpa):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        return super().attend(q, k, v, masks.with_(pairs=None))


class OnlyCausal(Sdpa):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        return super().attend(q, k, v, masks if masks.causal else masks.with_(pairs=None))


class NoCausal(Sdpa):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        return super().attend(q, k, v, masks.with_(pairs=None) if masks.causal else masks)


class NaNWhereNothingIs(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        blocked = masks.blocked()
        blocked = q.new_zeros(1, dtype=torch.bool) if blocked is None else blocked
        return (q @ k.mT).masked_fill(blocked, -torch.inf).softmax(-1) @ v


class NaNInTheGradient(NaNWhereNothingIs):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        out = super().attend(q, k, v, masks)
        return torch.where(out.isnan(), 0.0, out)


class Random(Sdpa):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        return super().attend(q + 1e-3 * torch.randn_like(q), k, v, masks)


class NoPositions(Sdpa):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        return super().attend(q, k, v, masks.with_(bias=None))


class NoRotation(Sdpa):
    wants_unrotated = True


class SecondLayerSeesPadding(Sdpa):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        return super().attend(q, k, v, masks.with_(padding=None) if self.layer else masks)


BROKEN = [
    (SeesPadding, "sees padding"),
    (CountsPadding, "sees padding"),
    (SecondLayerSeesPadding, "sees padding"),
    (SeesTheBatch, "other examples"),
    (WrongShape, "shape"),
    (NoOddLength, "fails on"),
    (NoAttnMask, "attn_mask"),
    (OnlyCausal, "respect attn_mask"),
    (NoCausal, "causal attn_mask"),
    (NaNWhereNothingIs, "NaN"),
    (NaNInTheGradient, "gradient"),
    (Random, "same input"),
]


@pytest.mark.parametrize(("broken", "position"), spread(BROKEN, ["none", "relative", "rope"], times=1))
def test_a_broken_promise_is_named(broken: tuple[type[Attention], str], position: str) -> None:
    mechanism, promise = broken
    layers = [mechanism(layer=layer, seed=mix(0, layer), **FACTS) for layer in (0, 1)]
    with pytest.raises(Exception) as refused:
        check_attention(layers, position_of(position), name="attention=mine (a.Mine)")
    text = str(refused.value)
    assert (
        type(refused.value).__name__ == "UserError" and text.startswith("attention=mine (a.Mine): ") and promise in text
    ), text


@pytest.mark.parametrize(
    ("mechanism", "position", "promise"), [(NoPositions, "relative", "relative_bias"), (NoRotation, "rope", "rotate")]
)
def test_a_mechanism_without_positions_is_refused_where_it_needs_them(
    mechanism: type[Attention], position: str, promise: str
) -> None:
    layers = [mechanism(layer=layer, seed=0, **FACTS) for layer in (0, 1)]
    check_attention(layers, position_of("none"), name="a")
    with pytest.raises(Exception, match=promise):
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
    with pytest.raises(Exception, match=f"^p: .*{hook}"):
        check_position(position(embed_dim=16, num_layers=2, seq_len=LENGTH, **FACTS), name="p")

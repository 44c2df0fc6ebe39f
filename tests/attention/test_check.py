"""The trial of a mechanism before a run: all that are here pass it, and each broken promise is named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.attention.layers import ATTENTIONS, POSITIONS, build
from tests.pairwise import spread
from xcls.attention.base import Attention, mix
from xcls.attention.check import LENGTH, check_attention, check_position
from xcls.attention.sdpa import Sdpa, sdpa
from xcls.position.base import Position

FACTS = {"num_heads": 2, "head_dim": 8}


def position_of(name: str, **facts: int) -> nn.Module:
    shape = {"num_heads": 2, "head_dim": 8, "num_layers": 2, "seq_len": LENGTH, **facts}
    return build("position", name, small=False, embed_dim=shape["num_heads"] * shape["head_dim"], **shape)


@pytest.mark.parametrize(("attention", "position"), spread(ATTENTIONS, POSITIONS, times=1))
def test_everything_here_keeps_its_promises(attention: str, position: str) -> None:
    layers = [build("attention", attention, small=False, num_heads=2, head_dim=64, layer=layer, seed=0) for layer in (0, 1)]
    encoding = position_of(position, head_dim=64)
    check_position(encoding, name=position)
    check_attention(layers, encoding, name=attention)
    assert not any(layer.training for layer in layers)


class SeesPadding(Sdpa):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask=None, **given) -> Tensor:
        return super().forward(q, k, v, **given)


class CountsPadding(Sdpa):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, **given) -> Tensor:
        return super().forward(q, k, v, **given) / v.shape[2]


class SeesTheBatch(Sdpa):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask=None, **given) -> Tensor:
        real = torch.ones_like(v[:, :1, :, :1]) if key_padding_mask is None else (~key_padding_mask).float()[:, None, :, None]
        return super().forward(q, k, v, key_padding_mask=key_padding_mask, **given) * ((v * real).abs().amax() if len(v) > 1 else 1.0)


class WrongShape(Sdpa):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, **given) -> Tensor:
        return super().forward(q, k, v, **given).transpose(1, 2)


class NoOddLength(Sdpa):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, **given) -> Tensor:
        v.unflatten(2, (-1, 64))
        return super().forward(q, k, v, **given)


class NoAttnMask(Sdpa):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, attn_mask=None, **given) -> Tensor:
        return super().forward(q, k, v, **given)


class OnlyCausal(Sdpa):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, attn_mask=None, **given) -> Tensor:
        causal = attn_mask is not None and attn_mask.dim() == 2 and bool(attn_mask[0, 1:].all())
        return super().forward(q, k, v, attn_mask=attn_mask if causal else None, **given)


class NoCausal(Sdpa):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, attn_mask=None, **given) -> Tensor:
        return super().forward(q, k, v, attn_mask=attn_mask if attn_mask is None or attn_mask.dim() == 4 else None, **given)


def plain(q: Tensor, k: Tensor, v: Tensor, blocked: Tensor) -> Tensor:
    return (q @ k.mT).masked_fill(blocked, -torch.inf).softmax(-1) @ v


class NaNWhereNothingIs(Attention):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask=None, attn_mask=None, **given) -> Tensor:
        blocked = torch.zeros(len(q), 1, 1, q.shape[2], dtype=torch.bool) if key_padding_mask is None else key_padding_mask[:, None, None]
        return plain(q, k, v, blocked if attn_mask is None else blocked | attn_mask)


class NaNInTheGradient(NaNWhereNothingIs):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, **given) -> Tensor:
        out = super().forward(q, k, v, **given)
        return torch.where(out.isnan(), 0.0, out)


class OnesWhereNothingIs(NaNWhereNothingIs):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, **given) -> Tensor:
        return super().forward(q, k, v, **given).nan_to_num(1.0)


class Random(Sdpa):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, **given) -> Tensor:
        return super().forward(q + 1e-3 * torch.randn_like(q), k, v, **given)


class NoPositions(Sdpa):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, relative_bias=None, **given) -> Tensor:
        return super().forward(q, k, v, **given)


class NoRotation(Attention):
    wants_unrotated = True

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask=None, attn_mask=None, **given) -> Tensor:
        return sdpa(q, k, v, key_padding_mask=key_padding_mask, attn_mask=attn_mask)


class SecondLayerSeesPadding(Sdpa):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask=None, **given) -> Tensor:
        return super().forward(q, k, v, key_padding_mask=None if self.layer else key_padding_mask, **given)


BROKEN = [
    (SeesPadding, "sees padding"), (CountsPadding, "sees padding"), (SecondLayerSeesPadding, "sees padding"), (SeesTheBatch, "other examples"),
    (WrongShape, "shape"), (NoOddLength, "fails on"), (NoAttnMask, "attn_mask"), (OnlyCausal, "respect attn_mask"), (NoCausal, "causal attn_mask"),
    (NaNWhereNothingIs, "NaN"), (NaNInTheGradient, "gradient"), (OnesWhereNothingIs, "not zero"), (Random, "same input"),
]  # fmt: skip


@pytest.mark.parametrize(("broken", "position"), spread(BROKEN, ["none", "relative", "rope"], times=1))
def test_a_broken_promise_is_named(broken: tuple[type[Attention], str], position: str) -> None:
    mechanism, promise = broken
    layers = [mechanism(layer=layer, seed=mix(0, layer), **FACTS) for layer in (0, 1)]
    with pytest.raises(Exception) as refused:
        check_attention(layers, position_of(position), name="attention=mine (a.Mine)")
    text = str(refused.value)
    assert type(refused.value).__name__ == "UserError" and text.startswith("attention=mine (a.Mine): ") and promise in text, text


@pytest.mark.parametrize(("mechanism", "position", "promise"), [(NoPositions, "relative", "relative_bias"), (NoRotation, "rope", "rotate")])
def test_a_mechanism_without_positions_is_refused_where_it_needs_them(mechanism: type[Attention], position: str, promise: str) -> None:
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
    ("position", "hook"), [(Narrow, "embed makes"), (Backwards, "depends on the tokens behind"), (Unbalanced, r"bias is \[2, 8\]")]
)
def test_a_broken_position_encoding_is_named(position: type[Position], hook: str) -> None:
    with pytest.raises(Exception, match=f"^p: .*{hook}"):
        check_position(position(embed_dim=16, num_layers=2, seq_len=LENGTH, **FACTS), name="p")

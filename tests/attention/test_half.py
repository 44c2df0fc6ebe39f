"""Half precision against the fp32 oracle: how far off autocast may be, forward and backward, over every mechanism."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from tests.attention.layers import ATTENTIONS, HEADS, Layer, inputs, masks_of, weight_like
from tests.attention.oracles import oracle
from tests.pairwise import pairwise, spread
from xcls.attention.base import Masks

WIDTH = 16
# About one and a half times the largest relative error measured over all mechanisms, masks and positions here: an
# intermediate result that is rounded once too often, or scaled, is beyond it.
LIMITS = {torch.bfloat16: (0.008, 0.035), torch.float16: (0.0011, 0.006)}  # of the output, of gradients
PERFORMERS = [name for name in ATTENTIONS if name.startswith("performer")]


def rounded_inputs(layer: Layer, dtype: torch.dtype) -> tuple[list[Tensor], object]:
    """q, k, v [B, H, N, D] as a projection in half precision leaves them, and the rotation where the mechanism wants
    it.

    Rotated before they are rounded, so that both precisions hash the same numbers.
    """
    x = layer.position.embed(inputs(21, width=WIDTH).float())
    rotate = layer.position.rotation(x.shape[1], x.device)
    q, k, v = ((x @ w.float()).unflatten(2, (HEADS, WIDTH)).transpose(1, 2) for w in layer.weights)
    if rotate is not None and not layer.attention.wants_unrotated:
        q, k, rotate = rotate(q), rotate(k), None
    return [x.detach().to(dtype) for x in (q, k, v)], rotate


def results(layer: Layer, qkv: list[Tensor], rotate: object, dtype: torch.dtype | None, masks: dict) -> list[Tensor]:
    """The output and the gradients of q, k, v and of the position: under autocast, or of the oracle where dtype is
    None."""
    leaves = [(x.float() if dtype is None else x).clone().requires_grad_() for x in qkv]
    q, k, v = leaves
    given = Masks.make(relative_bias=layer.position.bias(0), rotate=rotate, **masks)
    with nullcontext() if dtype is None else torch.autocast("cpu", dtype):
        k = q if layer.attention.ties_qk else k
        out = oracle(layer.attention, q, k, v, given) if dtype is None else layer.attention(q, k, v, given)
    assert out.dtype == v.dtype
    loss, wanted = (out.float() * weight_like(out.float())).sum(), [*leaves, *layer.position.parameters()]
    return [out.detach(), *torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)]


def relative_error(found: Tensor, exact: Tensor) -> float:
    """|found - exact| / |exact|, Frobenius norms."""
    return float((found.float() - exact).norm() / exact.norm())


@pytest.mark.parametrize(
    ("attention_file", "position_file", "kind", "dtype"),
    pairwise(
        ATTENTIONS,
        ["none", "relative", "rope"],
        ["none", "padding", "causal", "padding+causal", "random"],
        list(LIMITS),
    ),
)
def test_is_near_the_oracle_in_fp32(attention_file: str, position_file: str, kind: str, dtype: torch.dtype) -> None:
    layer, masks = Layer(attention_file, position_file, width=WIDTH).float(), masks_of(kind, 21)
    qkv, rotate = rounded_inputs(layer, dtype)
    out, *grads = results(layer, qkv, rotate, dtype, masks)
    exact, *exact_grads = results(layer, qkv, rotate, None, masks)
    assert relative_error(out, exact) < LIMITS[dtype][0]
    compared = [relative_error(grad, other) for grad, other in zip(grads, exact_grads) if other.any()]
    assert compared and max(compared) < LIMITS[dtype][1]


@pytest.mark.parametrize(
    ("attention_file", "position_file", "kind", "dtype"),
    spread(PERFORMERS, ["none", "relative"], ["padding+causal", "random"], list(LIMITS), times=2),
)
def test_features_and_normaliser_are_fp32(
    attention_file: str, position_file: str, kind: str, dtype: torch.dtype
) -> None:
    """Where a mask or a bias keeps FAVOR+ from its quick way: values in fp32 show what rounding the output would
    hide."""
    layer = Layer(attention_file, position_file, width=WIDTH).float()
    (q, k, v), _ = rounded_inputs(layer, dtype)
    found, exact = (results(layer, [q, k, v.float()], None, each, masks_of(kind, 21))[0] for each in (dtype, None))
    torch.testing.assert_close(found, exact)

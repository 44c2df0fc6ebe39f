"""A mechanism that nobody here has written yet: cosFormer, from `Attention` alone, with all masks, in less than 40
lines."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.attention import test_contract as contract
from tests.attention.layers import MASKS, POSITIONS, Layer, inputs
from tests.attention.oracles import ORACLES, allowed_pairs, dense_bias
from tests.pairwise import spread
from xcls.attention.base import Attention, Masks, distance_matrix, full_dtype, zero_padding


class CosFormer(Attention):
    """Weights relu(q).relu(k) cos(pi/2 (i - j) / M), linear in N (Qin et al. 2022, section 3.2), M the longest text."""

    longest = 16384

    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        """q, k, v [B, H, N, D] -> [B, H, N, D]; dense where masks between tokens or a bias are given."""
        length = q.shape[2]
        angle = torch.arange(length, device=q.device, dtype=full_dtype(q))[:, None] * (math.pi / 2 / self.longest)

        def features(x: Tensor) -> Tensor:
            x = x.to(full_dtype(x)).relu() + 1e-3  # a little for every pair: else a query may meet no key at all
            return torch.cat((x * angle.cos(), x * angle.sin()), dim=-1)

        phi_q, phi_k = features(q), zero_padding(features(k), masks.padding)
        values = F.pad(v.to(phi_q.dtype), (0, 1), value=1.0)  # the last column sums the weights
        if masks.pairs is None and masks.bias is None:
            products = phi_q @ (phi_k.mT @ values)
        else:
            weights = phi_q @ phi_k.mT
            if masks.bias is not None:
                weights = weights * distance_matrix(masks.bias, rows=length, columns=length).exp()
            if masks.pairs is not None:
                weights = weights.masked_fill(masks.pairs, 0.0)
            products = weights @ values
        return (products[..., :-1] / products[..., -1:].clamp(min=1e-9)).to(v.dtype)


def dense(attention: Attention, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
    """The weights as they are defined, pair by pair."""
    position = torch.arange(q.shape[2], dtype=q.dtype)
    near = (math.pi / 2 * (position - position[:, None]) / CosFormer.longest).cos()
    bias = torch.as_tensor(dense_bias(masks, q.shape[2]), dtype=q.dtype).exp()
    weights = (q.relu() + 1e-3) @ (k.relu() + 1e-3).mT * near * bias * allowed_pairs(masks, q)
    return weights @ v / weights.sum(dim=-1, keepdim=True).clamp(min=1e-9)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ORACLES, CosFormer, dense)


def test_it_is_short() -> None:
    assert len(inspect.getsource(CosFormer).splitlines()) <= 40


@pytest.mark.parametrize(("position", "kind"), spread(POSITIONS, MASKS))
def test_it_keeps_the_contract(position: str, kind: str) -> None:
    contract.test_equals_the_dense_kernel(CosFormer, position, kind)
    for garbage in (1e4, float("nan")):
        contract.test_padding_is_invisible(CosFormer, position, garbage)
    contract.test_batch_mates_are_invisible_nan_too(CosFormer, position, float("nan"), (0, 0))
    contract.test_rows_with_nothing_to_attend_to_are_zero(CosFormer, position)
    contract.test_half_precision_is_finite_at_a_hundred_times_the_scale(CosFormer, position, torch.bfloat16, 4)
    contract.test_gradients_are_those_of_the_function(CosFormer, position)
    contract.test_any_length_padded_and_masked(CosFormer, position, 31)
    assert Layer(CosFormer, position)(inputs(5)).isfinite().all()

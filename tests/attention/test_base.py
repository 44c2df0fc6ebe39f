"""Helpers for masks, distances and seeds."""

from __future__ import annotations

import pytest
import torch

from xcls.attention import base
from xcls.attention.base import Attention, Masks, distance_matrix, fits, is_causal, mix


def test_distance_matrix_by_its_definition() -> None:
    bias = torch.arange(10.0).view(2, 5).requires_grad_()
    out = distance_matrix(bias, rows=3, columns=6, offset=-2)
    expected = [[[row[min(max(j - i - 2, -2), 2) + 2] for j in range(6)] for i in range(3)] for row in bias.tolist()]
    torch.testing.assert_close(out.detach(), torch.tensor(expected))
    weight = torch.randn(2, 3, 6)
    (grad,) = torch.autograd.grad((out * weight).sum(), bias)
    by_hand = torch.zeros(2, 5)
    for i in range(3):
        for j in range(6):
            by_hand[:, min(max(j - i - 2, -2), 2) + 2] += weight[:, i, j]
    torch.testing.assert_close(grad, by_hand)


def test_only_the_causal_mask_is_causal() -> None:
    causal = torch.ones(6, 6, dtype=torch.bool).triu(1)
    assert is_causal(causal) and is_causal(causal.expand(2, 3, 6, 6)) and is_causal(torch.zeros(1, 1, dtype=torch.bool))
    for i, j in ((2, 1), (2, 2), (2, 4), (5, 0), (0, 5)):
        other = causal.clone()
        other[i, j] ^= True
        assert not is_causal(other)
    assert not is_causal(torch.stack((causal, torch.zeros_like(causal))))


def test_seeds_of_layers_and_runs_differ() -> None:
    seeds = {mix(seed, layer) for seed in range(50) for layer in range(50)}
    assert len(seeds) == 2500 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(("device", "share"), [("cpu", 4), ("meta", 2)])
def test_a_matrix_fits_by_the_memory_of_its_device_and_all_layers_count(
    monkeypatch: pytest.MonkeyPatch, device: str, share: int
) -> None:
    q = torch.empty(2, 4, 100, 8, dtype=torch.bfloat16, device=device)
    for layers in (1, 12):
        needed = 2 * 4 * 100 * 100 * 2 * (layers + 4) * share
        monkeypatch.setattr(base, "memory_of", lambda _: needed)
        assert fits(q, layers) and not fits(q, layers + 1)
        monkeypatch.setattr(base, "memory_of", lambda _: needed - share)
        assert not fits(q, layers)


def test_pads_and_rows_without_keys_are_zero_whatever_a_mechanism_makes_of_them() -> None:
    class Ones(Attention):
        def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, masks: Masks) -> torch.Tensor:
            assert q.isfinite().all() and not torch.is_autocast_enabled()
            return torch.ones_like(v)

    q = torch.full((1, 1, 4, 2), torch.nan)
    q[:, :, :3] = 1.0
    pads, pairs = torch.tensor([[False, False, False, True]]), torch.zeros(4, 4, dtype=torch.bool)
    pairs[1] = True
    out = Ones(num_heads=1, head_dim=2, layer=0, seed=0)(q, q, q, Masks.make(key_padding_mask=pads, attn_mask=pairs))
    assert out[0, 0, :, 0].tolist() == [1, 0, 1, 0]


def test_masks_of_another_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="key_padding_mask"):
        Masks.make(key_padding_mask=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"attn_mask.*\[2, 3, 3\]"):
        Masks.make(attn_mask=torch.zeros(2, 3, 3, dtype=torch.bool))

"""FAVOR+ against the softmax kernel that it estimates, and against its features written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.attention.kernels import assert_unbiased, drawn, estimates, qkv, softmax_kernel
from xcls.attention.kernel import kernel_attention
from xcls.attention.performer import Performer, favor_map
from xcls.attention.performer_chunks import banded_products
from xcls.attention.sdpa import sdpa


def favor(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, projection: torch.Tensor, *, epsilon: float = 1e-12,
    norm_in_stabiliser: bool = True, **arguments,
) -> torch.Tensor:
    features = favor_map(projection, epsilon=epsilon, norm_in_stabiliser=norm_in_stabiliser)
    return kernel_attention(q, k, v, features, **arguments)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_unbiased_for_the_softmax_kernel(orthogonal: bool) -> None:
    q, k, _ = (x * 0.7 for x in qkv(4))
    found = estimates(lambda w: favor_map(w, epsilon=0.0), q, k, 16, 600, orthogonal=orthogonal)
    assert_unbiased(found, softmax_kernel(q, k))


def test_orthogonal_features_have_less_variance() -> None:
    q, k, _ = qkv(6)
    together, apart = (estimates(favor_map, q, k, 8, 500, orthogonal=orthogonal) for orthogonal in (True, False))
    assert together.var(0).mean() < 0.9 * apart.var(0).mean()


def test_error_falls_as_one_over_the_root_of_m() -> None:
    q, k, v = qkv()
    q, k = q / 2, k / 2
    exact = sdpa(q, k, v)

    def error(num_features: int) -> float:
        errors = [(favor(q, k, v, drawn(num_features, 8, seed)) - exact).square().mean() for seed in range(24)]
        return torch.stack(errors).mean().sqrt().item()

    assert 3.0 < error(32) / error(512) < 5.5  # 4 by the law
    assert error(4096) < 0.05


def test_rows_are_orthogonal_gaussian_and_without_a_preferred_sign() -> None:
    blocks = torch.stack([drawn(10, 4, seed) for seed in range(2000)])
    gram = blocks[:, :4] @ blocks[:, :4].transpose(1, 2)
    torch.testing.assert_close(gram, torch.diag_embed(gram.diagonal(dim1=1, dim2=2)), atol=1e-4, rtol=0)
    assert blocks.mean(0).abs().max() < 4.5 / 2000**0.5  # QR as it comes has -0.4 here for the first row
    torch.testing.assert_close(blocks.square().mean(0), torch.ones(10, 4).double(), atol=0.16, rtol=0)


def test_equals_features_written_out() -> None:
    q, k, v = qkv()
    w, scale, epsilon = drawn(16, 8, 0), 8**-0.25, 1e-3
    exponent_q = (q * scale) @ w.T - (q * scale).square().sum(-1, keepdim=True) / 2
    exponent_k = (k * scale) @ w.T - (k * scale).square().sum(-1, keepdim=True) / 2
    phi_q = (exponent_q - exponent_q.amax(-1, keepdim=True)).exp()
    phi_k = (exponent_k - exponent_k.amax((-1, -2), keepdim=True)).exp() + epsilon
    weights = phi_q @ phi_k.transpose(-1, -2)
    expected = weights / weights.sum(-1, keepdim=True) @ v
    torch.testing.assert_close(favor(q, k, v, w, epsilon=epsilon), expected)


def test_equals_the_formula_of_performer_pytorch() -> None:
    q, k, v = qkv()
    w, scale, epsilon = drawn(16, 8, 0), 8**-0.25, 1e-4
    dash_q, dash_k = q * scale @ w.T, k * scale @ w.T
    half_q, half_k = (x.square().sum(-1, keepdim=True) / 2 * scale**2 for x in (q, k))
    phi_q = 16**-0.5 * ((dash_q - half_q - dash_q.amax(-1, keepdim=True)).exp() + epsilon)
    phi_k = 16**-0.5 * ((dash_k - half_k - dash_k.amax((-1, -2), keepdim=True)).exp() + epsilon)
    expected = phi_q @ (phi_k.transpose(-1, -2) @ v) / (phi_q @ phi_k.sum(-2)[..., None])
    torch.testing.assert_close(favor(q, k, v, w, epsilon=epsilon, norm_in_stabiliser=False), expected)


def test_equals_performer_pytorch_itself() -> None:
    theirs = pytest.importorskip("performer_pytorch.performer_pytorch", reason="the extra `bench` is not installed")
    q, k, v = (x.float() for x in qkv())
    w = drawn(16, 8, 0).float()
    phi_q = theirs.softmax_kernel(q, projection_matrix=w, is_query=True, eps=1e-4)
    phi_k = theirs.softmax_kernel(k, projection_matrix=w, is_query=False, eps=1e-4)
    expected = theirs.linear_attention(phi_q, phi_k, v)
    torch.testing.assert_close(favor(q, k, v, w, epsilon=1e-4, norm_in_stabiliser=False), expected)


@pytest.mark.parametrize("norm_in_stabiliser", [True, False])
def test_the_stabiliser_sees_real_keys_alone(norm_in_stabiliser: bool) -> None:
    w = drawn(1, 8, 0)
    k = -w.expand(1, 1, 3, 8) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1)  # all exponents below the 0 of a zeroed pad
    pads = torch.tensor([[False, False, True]])
    arguments = {"epsilon": 0.1, "norm_in_stabiliser": norm_in_stabiliser}
    features = favor_map(w, **arguments)
    alone = features.keys(k[:, :, :2])
    padded = features.keys(k.masked_fill(pads[:, None, :, None], 0.0), pads)
    torch.testing.assert_close(padded[:, :, :2], alone)
    assert not padded[:, :, 2].any()


@pytest.mark.parametrize("entries", [1, 4 * 16 * 48, 3 * 2 * 7 * 16 * 48])  # one chunk, some of a head, whole examples
@pytest.mark.parametrize("window", [0, 3])
def test_the_band_is_the_same_in_groups_of_any_size(monkeypatch: pytest.MonkeyPatch, entries: int, window: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.rand(4, 2, 90, width, dtype=torch.float64) for width in (5, 5, 4)]
    inputs += [torch.rand(2, 2 * window + 1, dtype=torch.float64)] if window else []
    found = []
    for cached in (entries, 2**40):
        monkeypatch.setattr("xcls.attention.performer_chunks.CACHED", cached)
        phi_q, phi_k, values, *factor = leaves = [x.clone().requires_grad_() for x in inputs]
        how = {"factor": factor[0] if window else None, "causal": not window, "chunk_size": 16}
        out = banded_products(phi_q, phi_k, values, **how)
        grad = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        found.append([out.detach(), *torch.autograd.grad(out, leaves, grad)])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 3])
def test_no_path_is_quadratic(largest: Callable, causal: bool, window: int) -> None:
    length = 1024
    q, k, v = (x.requires_grad_() for x in qkv(length, 4))
    bias = torch.randn(2, 2 * window + 1, dtype=torch.float64, requires_grad=True) if window else None
    mask = torch.ones(length, length, dtype=torch.bool).triu(1) if causal else None

    def run() -> torch.Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("xcls.attention.kernel.is_causal", lambda mask: True)  # comparing masks is quadratic
            return favor(q, k, v, drawn(8, 4, 0), attn_mask=mask, relative_bias=bias, chunk_size=16)

    assert largest(run) <= 2 * length * 3 * 20  # heads x tokens x the band of three chunks, or M (D + 1) / C


@pytest.mark.parametrize("changed", [
    {"num_features": 17}, {"orthogonal": False}, {"epsilon": 0.1}, {"seed": 2}, {"layer": 1},
    {"norm_in_stabiliser": False, "epsilon": 0.1},
])  # fmt: skip
def test_options_have_an_effect(changed: dict) -> None:
    q, k, v = qkv()
    base = {"num_heads": 2, "head_dim": 8, "layer": 0, "seed": 1, "num_features": 16}
    first = {**base, "epsilon": 0.1} if len(changed) > 1 else base
    assert not torch.allclose(Performer(**first)(q, k, v), Performer(**{**base, **changed})(q, k, v), atol=1e-4)


def test_sizes_change_speed_only() -> None:
    q, k, v = qkv()
    base = {"num_heads": 2, "head_dim": 8, "layer": 0, "seed": 1, "num_features": 16}
    causal = torch.ones(12, 12, dtype=torch.bool).triu(1)
    for mask in (causal, causal.T):
        whole = Performer(**base)(q, k, v, attn_mask=mask)
        pieces = Performer(**base, chunk_size=5, block_size=5, block_above=0)(q, k, v, attn_mask=mask)
        torch.testing.assert_close(pieces, whole)


def test_redraw_changes_the_projection_and_is_reproducible() -> None:
    performer = Performer(num_heads=2, head_dim=8, layer=0, seed=1)
    first = performer.projection.clone()
    performer.redraw(torch.Generator().manual_seed(5))
    second = performer.projection.clone()
    performer.redraw(torch.Generator().manual_seed(5))
    assert torch.equal(performer.projection, second) and not torch.equal(first, second)

"""FAVOR+ against the softmax kernel that it estimates, and against its features written out."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch

from tests.attention.kernels import attend, drawn, estimates, favor_map, qkv, softmax_attention
from xcls.attention import favor, favor_masked
from xcls.attention.base import Masks
from xcls.attention.favor import Performer
from xcls.attention.favor_masked import chunked_sums
from xcls.attention.favor_oprf import PerformerOprf
from xcls.attention.kernels import favor_chunks


def test_orthogonal_features_have_less_variance() -> None:
    q, k, _ = qkv(6)
    together, apart = (estimates(favor_map, q, k, 8, 500, orthogonal=orthogonal) for orthogonal in (True, False))
    assert together.var(0).mean() < 0.9 * apart.var(0).mean()


def test_error_falls_as_one_over_the_root_of_m() -> None:
    q, k, v = qkv()
    q, k = q / 2, k / 2
    exact = softmax_attention(q, k, v)

    def error(num_features: int) -> float:
        errors = [
            (attend(favor_map(drawn(num_features, 8, seed)), q, k, v) - exact).square().mean() for seed in range(24)
        ]
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
    torch.testing.assert_close(attend(favor_map(w), q, k, v, epsilon=epsilon), expected)


def test_equals_performer_pytorch_itself() -> None:
    theirs = pytest.importorskip("performer_pytorch.performer_pytorch", reason="the extra `bench` is not installed")
    q, k, v = (x.float() for x in qkv())
    w = drawn(16, 8, 0).float()
    phi_q = theirs.softmax_kernel(q, projection_matrix=w, is_query=True, eps=0.0)
    phi_k = theirs.softmax_kernel(k, projection_matrix=w, is_query=False, eps=0.0)
    expected = theirs.linear_attention(phi_q, phi_k, v)
    torch.testing.assert_close(attend(favor_map(w), q, k, v, epsilon=0.0), expected)


@pytest.mark.parametrize("entries", [1, 5 * 2 * 16 * 16, 2**40])  # chunks of one place in all heads, those of five, all
@pytest.mark.parametrize("window", [0, 3])
def test_the_band_in_groups_of_any_size_is_its_formula(
    monkeypatch: pytest.MonkeyPatch, entries: int, window: int
) -> None:
    torch.manual_seed(0)
    inputs = [torch.rand(4, 2, 90, width, dtype=torch.float64) for width in (5, 5, 4)]
    inputs += [torch.rand(2, 2 * window + 1, dtype=torch.float64)] if window else []
    found = []
    for compiled in (False, True):  # in groups; and the formula
        monkeypatch.setattr(favor_chunks, "CACHED", entries)
        monkeypatch.setattr(favor_masked, "is_compiling", lambda compiled=compiled: compiled)
        phi_q, phi_k, values, *factor = leaves = [x.clone().requires_grad_() for x in inputs]
        out = chunked_sums(phi_q, phi_k, values, factor[0] if window else None, causal=not window, chunk_size=16)
        grad = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        found.append([out.detach(), *torch.autograd.grad(out, leaves, grad)])
    torch.testing.assert_close(found[0], found[1])


def test_triton_is_used_where_it_fits_and_nothing_stands_between_tokens() -> None:
    q, k, v = qkv()
    base = {"num_heads": 2, "head_dim": 8, "layer": 0, "seed": 1, "num_features": 16}
    eye, bias = torch.eye(12, dtype=torch.bool), torch.zeros(2, 3)
    with mock.patch.multiple(favor.favor_triton, available=lambda q, m: True, favor=mock.DEFAULT) as kernel:
        for kind, masks, used in (
            (Performer, {"key_padding_mask": torch.zeros(1, 12, dtype=torch.bool)}, True),
            (PerformerOprf, {}, False),
            (Performer, {"attn_mask": eye}, False),
            (Performer, {"relative_bias": bias}, False),
        ):
            kernel["favor"].reset_mock(return_value=True)
            kernel["favor"].return_value = v
            kind(**base)(q, k, v, Masks.make(**masks))
            assert kernel["favor"].called == used


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "causal", "bias"])
def test_it_compiles_in_one_piece_for_every_length(kind: str) -> None:
    performer = Performer(num_heads=2, head_dim=8, layer=0, seed=1, num_features=16, chunk_size=4).double()
    graphs = []

    def backend(graph: torch.fx.GraphModule, example: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(performer, backend=backend, fullgraph=True, dynamic=True)
    for length in (12, 17, 30):
        q, k, v = qkv(length)
        masks = {
            "none": Masks(),
            "causal": Masks.make(attn_mask=torch.ones(length, length, dtype=torch.bool).triu(1)),
            "bias": Masks.make(relative_bias=torch.linspace(-1, 1, 10, dtype=torch.float64).view(2, 5)),
        }[kind]
        torch.testing.assert_close(compiled(q, k, v, masks), performer(q, k, v, masks))
    assert len(graphs) <= 2

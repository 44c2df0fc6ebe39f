"""What the tests of random features share: inputs, directions, and the kernel that features estimate."""

from __future__ import annotations

from collections.abc import Callable

import torch

from xcls.attention.base import Masks
from xcls.attention.favor import draw_projection, key_features, linear_attention, query_features

Map = tuple[torch.Tensor, "torch.Tensor | None"]  # directions and offset, as `query_features` takes them


def qkv(length: int = 12, width: int = 8, seed: int = 0) -> list[torch.Tensor]:
    """Three times [1, 2, length, width], standard normal, float64."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 2, length, width, dtype=torch.float64, generator=generator) for _ in range(3)]


def drawn(num_features: int, head_dim: int, seed: int, orthogonal: bool = True) -> torch.Tensor:
    """Directions [M, D], float64."""
    generator = torch.Generator().manual_seed(seed)
    return draw_projection(num_features, head_dim, orthogonal=orthogonal, generator=generator).double()


def favor_map(projection: torch.Tensor) -> Map:
    """The map of FAVOR+ for directions [M, D]."""
    return projection * projection.shape[-1] ** -0.25, None


def attend(
    found: Map,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    epsilon: float = 1e-12,
    chunk_size: int = 128,
    **masks,
) -> torch.Tensor:
    """`linear_attention` with the features of a map; `masks` as `Masks.make` takes them."""
    made = Masks.make(**masks)
    phi_k, _ = key_features(k, *found, padding=made.padding, epsilon=epsilon)
    return linear_attention(query_features(q, *found)[0], phi_k, v, made, chunk_size=chunk_size)


def softmax_kernel(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """exp(q.k / sqrt(D)), [1, H, N, N]."""
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).exp()


def softmax_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, added: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """softmax(q k^T / sqrt(D) + added) v."""
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + added).softmax(-1) @ v


def estimate(found: Map, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """phi(q).phi(k) / M with the stabilisers put back: [1, H, N, N]."""
    (phi_q, level_q), (phi_k, level_k) = query_features(q, *found), key_features(k, *found)
    return phi_q @ phi_k.transpose(-1, -2) * (level_q + level_k).exp() / phi_q.shape[-1]


def estimates(make: Callable[[torch.Tensor], Map], q, k, num_features: int, draws: int, **how) -> torch.Tensor:
    """The estimates of so many draws, [draws, 1, H, N, N]."""
    return torch.stack([estimate(make(drawn(num_features, q.shape[-1], seed, **how)), q, k) for seed in range(draws)])


def assert_unbiased(found: torch.Tensor, exact: torch.Tensor) -> None:
    """The mean over draws is the kernel, within the standard errors of some 32 entries."""
    error = (found.mean(0) - exact) / (found.std(0) / len(found) ** 0.5)
    assert error.abs().max() < 4.5 and error.square().mean() < 2.0

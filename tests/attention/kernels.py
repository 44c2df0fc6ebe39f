"""What the tests of random features share: inputs, directions, and the kernel that features estimate."""

from __future__ import annotations

from collections.abc import Callable

import torch

from xcls.attention.performer_features import Exponential, draw_projection


def qkv(length: int = 12, width: int = 8, seed: int = 0) -> list[torch.Tensor]:
    """Three times [1, 2, length, width], standard normal, float64."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 2, length, width, dtype=torch.float64, generator=generator) for _ in range(3)]


def drawn(num_features: int, head_dim: int, seed: int, orthogonal: bool = True) -> torch.Tensor:
    """Directions [M, D], float64."""
    generator = torch.Generator().manual_seed(seed)
    return draw_projection(num_features, head_dim, orthogonal=orthogonal, generator=generator).double()


def softmax_kernel(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """exp(q.k / sqrt(D)), [1, H, N, N]."""
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).exp()


def estimate(features: Exponential, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """phi(q).phi(k) / M with the stabilisers put back: [1, H, N, N]."""
    (phi_q, level_q), (phi_k, level_k) = features.scaled_queries(q), features.scaled_keys(k, None)
    return phi_q @ phi_k.transpose(-1, -2) * (level_q + level_k).exp() / phi_q.shape[-1]


def estimates(make: Callable[[torch.Tensor], Exponential], q, k, num_features: int, draws: int, **how) -> torch.Tensor:
    """The estimates of so many draws, [draws, 1, H, N, N]."""
    return torch.stack([estimate(make(drawn(num_features, q.shape[-1], seed, **how)), q, k) for seed in range(draws)])


def assert_unbiased(found: torch.Tensor, exact: torch.Tensor) -> None:
    """The mean over draws is the kernel, within the standard errors of some 32 entries."""
    error = (found.mean(0) - exact) / (found.std(0) / len(found) ** 0.5)
    assert error.abs().max() < 4.5 and error.square().mean() < 2.0

"""Random features of the softmax kernel: exp(w.x + c - |x|^2 / 2) for random directions w.

Letters: B batch, H heads, N tokens, D head width, M random features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xcls.attention.base import is_compiling, mix
from xcls.attention.kernel import FeatureMap, KernelAttention
from xcls.attention.performer_fast import fast_attention


def draw_projection(num_features: int, head_dim: int, *, orthogonal: bool, generator: torch.Generator) -> Tensor:
    """Random directions w [M, D], fp32: Gaussian rows, in blocks of D orthogonal ones if `orthogonal`.

    Choromanski et al. 2021, section 3. Orthogonal rows get the norms of independent Gaussian ones (chi with D degrees
    of freedom), so that each row by itself is N(0, I) and the estimate stays unbiased. That needs directions uniform
    on the sphere: the signs that QR leaves to the algorithm (LAPACK makes the first entry of the first row negative,
    always) are drawn too.
    """
    if not orthogonal:
        return torch.randn(num_features, head_dim, generator=generator)
    blocks = []
    for _ in range(-(-num_features // head_dim)):
        gaussian = torch.randn(head_dim, head_dim, generator=generator)
        directions, triangle = torch.linalg.qr(gaussian)
        blocks.append((directions * triangle.diagonal().sign()).T)
    norms = torch.randn(num_features, head_dim, generator=generator).norm(dim=1, keepdim=True)
    return torch.cat(blocks)[:num_features] * norms


class ExpPlus(torch.autograd.Function):
    """exp(x) + epsilon in the memory of x: plain autograd would keep both the exponential and the sum."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, epsilon: float) -> Tensor:
        """x [...] -> [...], x is overwritten."""
        ctx.epsilon = epsilon
        ctx.mark_dirty(x)
        x.exp_().add_(epsilon)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        """d exp(x) = exp(x) dx."""
        (features,) = ctx.saved_tensors
        return (features - ctx.epsilon).mul_(grad), None


def exp_plus(x: Tensor, epsilon: float) -> Tensor:
    """exp(x) + epsilon: [...] -> [...]; x may be overwritten. The compiler fuses the plain formula by itself."""
    if is_compiling():
        return x.exp() + epsilon
    return ExpPlus.apply(x, epsilon)


def half_norm(x: Tensor) -> Tensor:
    """|x|^2 / (2 sqrt D), that is |x|^2 / 2 of the scaled vector: [B, H, N, D] -> [B, H, N, 1]."""
    return x.square().sum(dim=-1, keepdim=True) * (0.5 * x.shape[-1] ** -0.5)


@dataclass(frozen=True)
class Exponential(FeatureMap):
    """phi_m(x) = exp(w_m.x + c_m - |x|^2 / (2 sqrt D)), stabilised by factors that cancel in the normalised output (those
    of the keys up to epsilon, which is measured by them; gradients hold them constant).

    directions: w [B|1, H|1, M, D], with the scale D^(-1/4) of q and k in it; offset: c [B|1, H|1, 1, M] or None.
    epsilon: added to the features of keys, of which the largest is 1. A query has a feature of 1 anyway.
    norm_in_stabiliser: false takes the maximum of w.x alone, and adds epsilon to queries too, as performer-pytorch
    does: the features of long vectors then underflow to epsilon.
    """

    directions: Tensor
    offset: Tensor | None = None
    epsilon: float = 1e-12
    norm_in_stabiliser: bool = True

    def queries(self, q: Tensor) -> Tensor:
        """phi(q) / its own largest: [B, H, N, D] -> [B, H, N, M]."""
        return self.scaled_queries(q)[0]

    def keys(self, k: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """phi(k) / the largest of the example and head + epsilon, zero in pads: [B, H, N, D] -> [B, H, N, M]."""
        return self.scaled_keys(k, key_padding_mask)[0]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None) -> Tensor | None:
        """`fast_attention`, except with the stabiliser of performer-pytorch."""
        if not self.norm_in_stabiliser:
            return None
        return fast_attention(
            q, k, v, self.directions, self.offset, key_padding_mask=key_padding_mask, epsilon=self.epsilon
        )

    def scaled_queries(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The features [B, H, N, M] and the log of the factor [B, H, N, 1] that makes them phi(q)."""
        exponent = self._exponent(q)
        peak = exponent.detach().amax(dim=-1, keepdim=True)
        if self.norm_in_stabiliser:  # |q|^2 / 2 drops out, being in the exponent and in its maximum
            return exp_plus(exponent.sub_(peak), 0.0), peak - half_norm(q)
        return exp_plus(exponent.sub_(peak + half_norm(q)), self.epsilon), peak

    def scaled_keys(self, k: Tensor, key_padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The features [B, H, N, M] and the log of the factor [B, H, 1, 1] that makes them phi(k).

        The maximum is over real keys alone, and pads are zeroed after the map, since the map of zero is not zero:
        otherwise padding would reach the stabiliser and the normaliser.
        """
        exponent, shift = self._exponent(k), half_norm(k)
        pads = None if key_padding_mask is None else key_padding_mask[:, None, :, None]
        if self.norm_in_stabiliser:
            exponent, shift = exponent.sub_(shift), 0.0
        if pads is not None:
            exponent = exponent.masked_fill(pads, -torch.inf)
        peak = exponent.detach().amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(k.dtype).min)
        features = exp_plus(exponent.sub_(shift + peak), self.epsilon)
        return features if pads is None else features.masked_fill(pads, 0.0), peak

    def _exponent(self, x: Tensor) -> Tensor:
        exponent = x @ self.directions.to(x.dtype).transpose(-1, -2)
        return exponent if self.offset is None else exponent.add_(self.offset)


class RandomFeatures(KernelAttention):
    """Kernel attention with random directions, fixed per layer and shared by its heads."""

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        layer: int,
        seed: int,
        num_features: int = 128,
        orthogonal: bool = True,
        epsilon: float = 1e-12,
        chunk_size: int = 128,
        block_size: int = 256,
        block_above: int = 2**26,
    ) -> None:
        """num_features: M; orthogonal: see `draw_projection`; epsilon: added to the features of keys.

        chunk_size: tokens per chunk of the prefix sums; block_size, block_above: for a general attn_mask.
        """
        super().__init__(
            num_heads=num_heads,
            head_dim=head_dim,
            layer=layer,
            seed=seed,
            chunk_size=chunk_size,
            block_size=block_size,
            block_above=block_above,
        )
        if num_features < 1 or epsilon < 0:
            raise ValueError(f"num_features must be at least 1, epsilon at least 0, not {num_features}, {epsilon}")
        self.num_features = num_features
        self.orthogonal = orthogonal
        self.epsilon = epsilon
        self.register_buffer("projection", torch.empty(num_features, head_dim))
        self.redraw(torch.Generator().manual_seed(mix(seed, layer)))

    def draw(self, generator: torch.Generator) -> Tensor:
        """Directions [M, D] from `generator` (a CPU one)."""
        return draw_projection(self.num_features, self.head_dim, orthogonal=self.orthogonal, generator=generator)

    def redraw(self, generator: torch.Generator) -> None:
        """A new projection from `generator` (a CPU one)."""
        self.projection.copy_(self.draw(generator))

    def operations(self, shape: Any) -> tuple[tuple[float, float], tuple[float, float]]:
        """Operations and bytes of inference and of training on B, H, N, D of `shape` (of `xcls.bench`), without masks.

        Q W^T and K W^T, phi(K)^T V and phi(Q) of it; backward two products for each of the last two, and one for
        each of the first, since the directions need no gradient.
        """
        product, moved = 2.0 * shape.vectors * self.num_features, 4.0 * shape.itemsize * shape.vectors
        return (4 * product, moved), (10 * product, 3 * moved)

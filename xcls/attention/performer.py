"""FAVOR+: softmax attention through positive random features, linear in the number of tokens.

Choromanski et al. 2021, "Rethinking Attention with Performers": exp(q.k) is the mean over w ~ N(0, I) of
phi(q) phi(k) with phi(x) = exp(w.x - |x|^2 / 2), so that phi(Q) (phi(K)^T V) needs no N x N matrix.
Letters: B batch, H heads, N tokens, D head width, M random features.
"""

from __future__ import annotations

from torch import Tensor

from xcls.attention.performer_features import Exponential, RandomFeatures


def favor_map(projection: Tensor, *, epsilon: float = 1e-12, norm_in_stabiliser: bool = True) -> Exponential:
    """The features of FAVOR+ for directions [M, D]."""
    directions = projection[None, None] * projection.shape[-1] ** -0.25
    return Exponential(directions, epsilon=epsilon, norm_in_stabiliser=norm_in_stabiliser)


class Performer(RandomFeatures):
    """FAVOR+ with a fixed projection per layer, shared by its heads; see `kernel_attention`."""

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
        norm_in_stabiliser: bool = True,
        chunk_size: int = 128,
        block_size: int = 256,
        block_above: int = 2**26,
    ) -> None:
        """norm_in_stabiliser: see `Exponential`; the others: see `RandomFeatures`."""
        super().__init__(
            num_heads=num_heads,
            head_dim=head_dim,
            layer=layer,
            seed=seed,
            num_features=num_features,
            orthogonal=orthogonal,
            epsilon=epsilon,
            chunk_size=chunk_size,
            block_size=block_size,
            block_above=block_above,
        )
        self.norm_in_stabiliser = norm_in_stabiliser

    def feature_map(self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None) -> Exponential:
        """The same for all q, k."""
        return favor_map(self.projection, epsilon=self.epsilon, norm_in_stabiliser=self.norm_in_stabiliser)

"""Linear attention through feature maps, and FAVOR+, whose random features estimate the kernel of softmax attention.

Katharopoulos et al. 2020, "Transformers are RNNs": with weights phi(q).phi(k), attention is phi(Q) (phi(K)^T V),
divided by phi(Q) (phi(K)^T 1), and needs no N x N matrix. Choromanski et al. 2021, "Rethinking Attention with
Performers": exp(q.k) is the mean over w ~ N(0, I) of phi(q) phi(k) with phi(x) = exp(w.x - |x|^2 / 2), which is
positive.

A new kernel mechanism is a subclass of `KernelAttention` with its own `features`. Masks between tokens and the bias:
`favor_masked.py`; faster versions for each device: `kernels/`.
Letters: B batch, H heads, N tokens, D head dimension, M features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xcls.attention.base import Attention, Masks, full_dtype, mix, zero_padding
from xcls.attention.favor_masked import chunked_sums, dense_sums
from xcls.attention.kernels import favor_products, favor_triton, is_compiling
from xcls.attention.operations import Shape, Work

MIN_NORMALISER = 1e-30  # below it, a row has nothing to attend to


def linear_attention(phi_q: Tensor, phi_k: Tensor, v: Tensor, masks: Masks, *, chunk_size: int = 128) -> Tensor:
    """sum_j w_ij v_j / sum_j w_ij with w_ij = phi_q[i].phi_k[j] exp(bias): the attention of features phi.

    phi_q, phi_k [B, H, N, M], v [B, H, N, D] -> [B, H, N, D], computed in the dtype of phi, returned in that of v.
    Linear in N without `pairs`, with a causal mask, and with a bias; any other `pairs` needs the N x N kernel matrix.
    Features of padding tokens have no effect, but must be finite.
    """
    # [v, 1]: sums and their normaliser
    values = zero_padding(F.pad(v.to(phi_q.dtype), (0, 1), value=1.0), masks.padding)
    factor = None  # exp(bias) up to a constant per head, which cancels
    if masks.bias is not None:
        factor = (masks.bias - masks.bias.detach().amax(dim=-1, keepdim=True)).to(phi_q.dtype).exp()
    if masks.pairs is not None and not masks.causal:
        sums = dense_sums(phi_q, phi_k, values, factor, masks)
    elif masks.causal or factor is not None:
        sums = chunked_sums(phi_q, phi_k, values, factor, causal=masks.causal, chunk_size=chunk_size)
    else:
        sums = phi_q @ (phi_k.transpose(-1, -2) @ values)
    return normalised(sums).to(v.dtype)


def normalised(sums: Tensor) -> Tensor:
    """Sums of weights x [v, 1] -> weighted means of v: [..., D+1] -> [..., D], zero where all weights are zero."""
    total = sums[..., -1:]
    return sums[..., :-1] / total.masked_fill(total < MIN_NORMALISER, 1.0)


class KernelAttention(Attention):
    """`linear_attention` with the features that subclasses give."""

    def __init__(self, *, chunk_size: int = 128, **shape: int) -> None:
        """chunk_size: tokens per chunk under a causal mask and with a relative bias; it changes only the cost."""
        super().__init__(**shape)
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
        self.chunk_size = chunk_size

    def features(self, q: Tensor, k: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """phi(q) and phi(k): [B, H, N, D] -> [B, H, N, M] in fp32 (fp64 for fp64 input), not negative, always finite.

        phi(q) may be scaled per query, and phi(k) per (example, head): the normalisation cancels both. Padding tokens
        must not change the features of other tokens.
        """
        raise NotImplementedError

    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        """q, k, v [B, H, N, D] -> [B, H, N, D]."""
        dtype = full_dtype(q)
        phi_q, phi_k = self.features(q.to(dtype), k.to(dtype), masks)
        return linear_attention(phi_q, phi_k, v, masks, chunk_size=self.chunk_size)


def draw_projection(num_features: int, head_dim: int, *, orthogonal: bool, generator: torch.Generator) -> Tensor:
    """Random directions w [M, D], fp32: Gaussian rows, in blocks of D orthogonal ones if `orthogonal`.

    Choromanski et al. 2021, section 3. Orthogonal rows get the norms of independent Gaussian ones (chi with D degrees
    of freedom), so that each row by itself is N(0, I) and the estimate stays unbiased. The directions must be uniform
    on the sphere. QR alone does not give that (LAPACK always makes the first entry of the first row negative), so each
    one is multiplied by the sign of its diagonal entry in the triangle.
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


def query_features(q: Tensor, directions: Tensor, offset: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """phi_m(q) = exp(w_m.q + c_m - |q|^2 / (2 sqrt D)), divided by the row maximum; also the log of that divisor.

    q [B, H, N, D] -> [B, H, N, M], [B, H, N, 1]. directions: w [B|1, H|1, M, D], which includes the scale D^(-1/4) of
    q and of k; offset: c [B|1, H|1, 1, M]. The divisor keeps exp finite and cancels in the output; gradients treat it
    as a constant. |q|^2 cancels too, so that only the log includes it.
    """
    exponent = q @ directions.to(q.dtype).transpose(-1, -2)
    exponent = exponent if offset is None else exponent.add_(offset)
    peak = exponent.detach().amax(dim=-1, keepdim=True)
    return exp_plus(exponent.sub_(peak), 0.0), peak - half_norm(q)


def key_features(
    k: Tensor, directions: Tensor, offset: Tensor | None = None, *, padding: Tensor | None = None, epsilon: float = 0.0
) -> tuple[Tensor, Tensor]:
    """As `query_features`, divided by the maximum over all real tokens of the (example, head); its log is [B, H, 1, 1].

    epsilon is added to the features after the division, so the largest is 1 + epsilon. Padding tokens do not count in
    the maximum, and get the feature epsilon.
    """
    exponent = k @ directions.to(k.dtype).transpose(-1, -2)
    exponent = exponent if offset is None else exponent.add_(offset)
    exponent = exponent.sub_(half_norm(k))
    if padding is not None:
        exponent = exponent.masked_fill_(padding[:, None, :, None], -torch.inf)
    peak = exponent.detach().amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(k.dtype).min)
    return exp_plus(exponent.sub_(peak), epsilon), peak


def half_norm(x: Tensor) -> Tensor:
    """|x|^2 / (2 sqrt D), which is |x D^(-1/4)|^2 / 2: [B, H, N, D] -> [B, H, N, 1]."""
    return x.square().sum(dim=-1, keepdim=True) * (0.5 * x.shape[-1] ** -0.5)


class ExpPlus(torch.autograd.Function):
    """exp(x) + epsilon, written over x. Plain autograd would keep both the exponential and the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        """x [...] -> [...]; overwrites x."""
        ctx.epsilon = epsilon
        ctx.mark_dirty(x)
        x.exp_().add_(epsilon)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """d exp(x) = exp(x) dx."""
        (features,) = ctx.saved_tensors
        return (features - ctx.epsilon).mul_(grad), None


def exp_plus(x: Tensor, epsilon: float) -> Tensor:
    """exp(x) + epsilon: [...] -> [...]; may overwrite x. Under torch.compile the plain formula is fused anyway."""
    return x.exp() + epsilon if is_compiling() else ExpPlus.apply(x, epsilon)


class RandomFeatures(KernelAttention):
    """Kernel attention with random directions, fixed per layer and shared by its heads."""

    projection: Tensor

    def __init__(
        self, *, num_features: int = 128, orthogonal: bool = True, epsilon: float = 1e-12, **shape: int
    ) -> None:
        """num_features: M; orthogonal: see `draw_projection`; epsilon: added to features; see each mechanism."""
        super().__init__(**shape)
        if num_features < 1 or epsilon < 0:
            raise ValueError(f"num_features must be at least 1, epsilon at least 0, not {num_features}, {epsilon}")
        self.num_features = num_features
        self.orthogonal = orthogonal
        self.epsilon = epsilon
        self.register_buffer("projection", torch.empty(num_features, self.head_dim))
        self.redraw(torch.Generator().manual_seed(mix(self.seed, self.layer)))

    def draw(self, generator: torch.Generator) -> Tensor:
        """Directions [M, D] from `generator` (a CPU one)."""
        return draw_projection(self.num_features, self.head_dim, orthogonal=self.orthogonal, generator=generator)

    def redraw(self, generator: torch.Generator) -> None:
        """A new projection from `generator` (a CPU one)."""
        self.projection.copy_(self.draw(generator))

    def operations(self, shape: Shape) -> tuple[Work, Work]:
        """Forward: 4 products, Q W^T, K W^T, phi(K)^T V and phi(Q) (phi(K)^T V).

        Backward: 1 each for the first two (W has no gradient), 2 each for the last two; so training has 10.
        """
        product = 2.0 * shape.vectors * self.num_features
        return Work(4 * product, shape.moved), Work(10 * product, 3 * shape.moved)


class Performer(RandomFeatures):
    """FAVOR+. epsilon is added to the features of keys, whose largest is 1. Queries need none: their largest is 1."""

    def directions(self, q: Tensor, k: Tensor, masks: Masks) -> tuple[Tensor, Tensor | None]:
        """The w [B|1, H|1, M, D] and c [B|1, H|1, 1, M] or None of `query_features`."""
        return self.projection[None, None] * self.head_dim**-0.25, None

    def features(self, q: Tensor, k: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """phi(q), phi(k): [B, H, N, D] -> [B, H, N, M]."""
        directions = self.directions(q, k, masks)
        phi_k, _ = key_features(k, *directions, padding=masks.padding, epsilon=self.epsilon)
        return query_features(q, *directions)[0], phi_k

    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        """q, k, v [B, H, N, D] -> [B, H, N, D]: the formula, or a faster version if there is no mask and no bias."""
        if masks.pairs is not None or masks.bias is not None:
            return super().attend(q, k, v, masks)
        directions, offset = self.directions(q, k, masks)
        shared = offset is None and q.dtype == k.dtype == v.dtype
        if shared and favor_triton.available(q, self.num_features):
            return favor_triton.favor(q, k, v, directions[0, 0].float(), masks.padding, self.epsilon)
        if is_compiling():  # torch.compile fuses the formula itself
            return super().attend(q, k, v, masks)
        return favor_products.favor(q, k, v, directions, offset, masks.padding, self.epsilon)

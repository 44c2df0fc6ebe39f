"""Linear attention through feature maps, and FAVOR+: the map whose kernel estimates that of softmax attention.

Katharopoulos et al. 2020, "Transformers are RNNs": with weights phi(q).phi(k), attention is phi(Q) (phi(K)^T V),
divided by the same of ones: no N x N matrix. Choromanski et al. 2021, "Rethinking Attention with Performers": exp(q.k)
is the mean over w ~ N(0, I) of phi(q) phi(k) with phi(x) = exp(w.x - |x|^2 / 2), which is positive.

A mechanism of its own needs a subclass of `KernelAttention` with `features`. What is quicker for a device: `kernels/`.
Letters: B batch, H heads, N tokens, D head width, M features, W window of the relative bias, C tokens of a chunk, n
chunks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xcls.attention.base import Attention, Masks, by_query_blocks, distance_matrix, full_dtype, mix, zero_padding
from xcls.attention.kernels import favor_products, favor_triton, is_compiling
from xcls.attention.kernels.favor_chunks import AddBand
from xcls.attention.operations import Shape, Work

DEAD = 1e-30  # a normaliser below this is that of a row with nothing to attend to


def linear_attention(phi_q: Tensor, phi_k: Tensor, v: Tensor, masks: Masks, *, chunk_size: int = 128) -> Tensor:
    """sum_j w_ij v_j / sum_j w_ij with w_ij = phi_q[i].phi_k[j] exp(bias): phi [B, H, N, M], v [B, H, N, D] -> [B, H,
    N, D].

    Linear in N without `pairs`, with a causal mask, and with a bias; any other `pairs` takes the dense kernel, exact.
    Computed in the dtype of phi, returned in that of v. Features of pads count for nothing, but must be finite.
    """
    values = zero_padding(
        F.pad(v.to(phi_q.dtype), (0, 1), value=1.0), masks.padding
    )  # [v, 1]: sums and their normaliser
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
    """Sums of weights x [v, 1] -> weighted means of v: [..., D+1] -> [..., D], zeros where no weight is."""
    total = sums[..., -1:]
    return sums[..., :-1] / total.masked_fill(total < DEAD, 1.0)


class KernelAttention(Attention):
    """`linear_attention` with the features that subclasses give."""

    def __init__(self, *, chunk_size: int = 128, **shape: int) -> None:
        """chunk_size: tokens per chunk under a causal mask and with a relative bias; it changes the cost alone."""
        super().__init__(**shape)
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
        self.chunk_size = chunk_size

    def features(self, q: Tensor, k: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """phi(q) and phi(k), [B, H, N, D] -> [B, H, N, M], in fp32 (fp64 for fp64 input), not negative, finite in pads
        too.

        A factor per query, or per head of an example for keys, cancels. Pads must not reach the features of other
        tokens.
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


def query_features(q: Tensor, directions: Tensor, offset: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """phi_m(q) = exp(w_m.q + c_m - |q|^2 / (2 sqrt D)), each row divided by its largest, and the log of that: [B, H,
    N, D]
    -> [B, H, N, M], [B, H, N, 1].

    directions: w [B|1, H|1, M, D], with the scale D^(-1/4) of q and of k in it; offset: c [B|1, H|1, 1, M].
    Stabilisers cancel in the output; gradients hold them constant. |q|^2 cancels too, and is in the log alone.
    """
    exponent = q @ directions.to(q.dtype).transpose(-1, -2)
    exponent = exponent if offset is None else exponent.add_(offset)
    peak = exponent.detach().amax(dim=-1, keepdim=True)
    return exp_plus(exponent.sub_(peak), 0.0), peak - half_norm(q)


def key_features(
    k: Tensor, directions: Tensor, offset: Tensor | None = None, *, padding: Tensor | None = None, epsilon: float = 0.0
) -> tuple[Tensor, Tensor]:
    """As `query_features`, divided by the largest of all real tokens of the example and head; the log of that is [B,
    H, 1, 1].

    epsilon is added to the features, of which the largest is 1. The maximum is over real keys alone: otherwise padding
    would reach the stabiliser. In pads the features are epsilon.
    """
    exponent = k @ directions.to(k.dtype).transpose(-1, -2)
    exponent = exponent if offset is None else exponent.add_(offset)
    exponent = exponent.sub_(half_norm(k))
    if padding is not None:
        exponent = exponent.masked_fill_(padding[:, None, :, None], -torch.inf)
    peak = exponent.detach().amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(k.dtype).min)
    return exp_plus(exponent.sub_(peak), epsilon), peak


def half_norm(x: Tensor) -> Tensor:
    """|x|^2 / (2 sqrt D), that is |x|^2 / 2 of the scaled vector: [B, H, N, D] -> [B, H, N, 1]."""
    return x.square().sum(dim=-1, keepdim=True) * (0.5 * x.shape[-1] ** -0.5)


class ExpPlus(torch.autograd.Function):
    """exp(x) + epsilon in the memory of x: plain autograd would keep both the exponential and the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        """x [...] -> [...], x is overwritten."""
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
    """exp(x) + epsilon: [...] -> [...]; x may be overwritten. The compiler fuses the plain formula by itself."""
    return x.exp() + epsilon if is_compiling() else ExpPlus.apply(x, epsilon)


class RandomFeatures(KernelAttention):
    """Kernel attention with random directions, fixed per layer and shared by its heads."""

    projection: Tensor

    def __init__(
        self, *, num_features: int = 128, orthogonal: bool = True, epsilon: float = 1e-12, **shape: int
    ) -> None:
        """num_features: M; orthogonal: see `draw_projection`; epsilon: added to features, as each mechanism says."""
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
        """Q W^T and K W^T, phi(K)^T V and phi(Q) of it; backward two products for each of the last two, and one for
        each of the first, since the directions need no gradient.
        """
        product = 2.0 * shape.vectors * self.num_features
        return Work(4 * product, shape.moved), Work(10 * product, 3 * shape.moved)


class Performer(RandomFeatures):
    """FAVOR+. epsilon is added to the features of keys, of which the largest is 1; a query has a feature of 1
    anyway."""

    def directions(self, q: Tensor, k: Tensor, masks: Masks) -> tuple[Tensor, Tensor | None]:
        """w [B|1, H|1, M, D] with the scale D^(-1/4) of q and of k in it, and c [B|1, H|1, 1, M] or None: see
        `query_features`."""
        return self.projection[None, None] * self.head_dim**-0.25, None

    def features(self, q: Tensor, k: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """phi(q), phi(k): [B, H, N, D] -> [B, H, N, M]."""
        directions = self.directions(q, k, masks)
        phi_k, _ = key_features(k, *directions, padding=masks.padding, epsilon=self.epsilon)
        return query_features(q, *directions)[0], phi_k

    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        """The formula, or what is quicker on this device where nothing stands between tokens."""
        if masks.pairs is not None or masks.bias is not None:
            return super().attend(q, k, v, masks)
        directions, offset = self.directions(q, k, masks)
        shared = offset is None and q.dtype == k.dtype == v.dtype
        if shared and favor_triton.available(q, self.num_features):
            return favor_triton.favor(q, k, v, directions[0, 0].float(), masks.padding, self.epsilon)
        if is_compiling():  # the compiler fuses the formula by itself
            return super().attend(q, k, v, masks)
        return favor_products.favor(q, k, v, directions, offset, masks.padding, self.epsilon)


# Masks between tokens, and a relative bias


def dense_sums(phi_q: Tensor, phi_k: Tensor, values: Tensor, factor: Tensor | None, masks: Masks) -> Tensor:
    """The kernel matrix written out: (phi_q phi_k^T x factor, zero where `masks.pairs`) values -> [B, H, N, D+1].

    In blocks of query rows, computed again in the backward pass, where the whole does not fit.
    """
    pairs: Any = masks.pairs

    def rows(block: Tensor, start: int) -> Tensor:
        kernel = block @ phi_k.transpose(-1, -2)
        if factor is not None:
            kernel = kernel * distance_matrix(factor, rows=kernel.shape[2], columns=kernel.shape[3], offset=-start)
        return kernel.masked_fill(pairs[:, :, start : start + kernel.shape[2]], 0.0) @ values

    return by_query_blocks(rows, phi_q, masks.layers)


def chunked_sums(
    phi_q: Tensor, phi_k: Tensor, values: Tensor, factor: Tensor | None, *, causal: bool, chunk_size: int
) -> Tensor:
    """sum over j (j <= i if causal) of phi_q[i].phi_k[j] factor[clip(j - i)] values[j]: -> [B, H, N, D+1].

    Beyond distance W the factor [H, 2W+1] is one constant on each side. So tokens are cut into chunks of at least W: a
    query meets its own chunk and its neighbours pair by pair (the band), and all others through sums of phi(k) values^T
    over whole chunks, running from the left and from the right (the far field).
    """
    batch, heads, length, _ = phi_q.shape
    reach = 0 if factor is None else 1  # neighbouring chunks in the band, on either side
    size = min(chunk_size if factor is None else max(chunk_size, factor.shape[-1] // 2), length)
    near = phi_q.new_ones(1, 1, size, size)  # the factor between a chunk and one in the band, [1|2|3, 1|H, C, C]
    if factor is not None:
        near = distance_matrix(factor, rows=size, columns=3 * size, offset=-size).unflatten(-1, (3, size)).movedim(2, 0)
    if causal:
        near = torch.cat((near[:reach], near[reach : reach + 1].tril()))
    q, k, values = to_chunks(phi_q, size, 0), to_chunks(phi_k, size, reach), to_chunks(values, size, reach)
    far = q @ far_field(k, values, factor, (batch, heads), causal=causal, reach=reach)
    return from_chunks(add_band(far, q, k, values, near, batch * heads), (batch, heads), length)


def add_band(out: Tensor, q: Tensor, k: Tensor, values: Tensor, near: Tensor, step: int) -> Tensor:
    """out + sum over the R chunks of a band of (q k^T x near) values: [n step, C, D+1], in the memory of `out`.

    q [n step, C, M]; k, values: the same with the neighbours of the first chunks before and those of the last behind
    them; near [R, 1|H, C, C]; step = B H, the distance to the next chunk of a sequence.
    """
    if not is_compiling():
        return AddBand.apply(out, q, k, values, near, step)
    for number, factor in enumerate(near):
        other = slice(number * step, number * step + len(q))
        kernel = (q @ k[other].transpose(1, 2)).unflatten(0, (-1, len(factor))) * factor
        out = out + kernel.flatten(0, 1) @ values[other]
    return out


def to_chunks(x: Tensor, size: int, beside: int) -> Tensor:
    """[B, H, N, F] -> [(n + 2 beside) B H, C, F]: the first chunks of all sequences, the second ones, …, with `beside`
    chunks of zeros at either end. So what lies B H further on is the next chunk of the same sequence, never another
    sequence.
    """
    behind = -x.shape[2] % size
    x = F.pad(x, (0, 0, 0, behind)) if behind else x
    x = x.unflatten(2, (-1, size)).permute(2, 0, 1, 3, 4)  # [n, B, H, C, F]
    x = F.pad(x, (0, 0) * 4 + (beside, beside)) if beside else x
    return x.reshape(-1, size, x.shape[-1])


def from_chunks(x: Tensor, heads: tuple[int, int], length: int) -> Tensor:
    """[n B H, C, F] -> [B, H, N, F], heads = (B, H)."""
    return x.unflatten(0, (-1, *heads)).permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :length]


def far_field(
    k: Tensor, values: Tensor, factor: Tensor | None, heads: tuple[int, int], *, causal: bool, reach: int
) -> Tensor:
    """For each chunk the sum of phi(k) values^T over all keys outside its band, times their constant factor: [n B H,
    M, D+1].

    k, values: chunks with `reach` empty ones at either end; heads = (B, H).
    """
    real = slice(reach * heads[0] * heads[1], len(k) - reach * heads[0] * heads[1])
    summed = (k[real].transpose(1, 2) @ values[real]).unflatten(0, (-1, *heads))  # [n, B, H, M, D+1]
    left = before(summed, reach + 1)
    right = None if causal else before(summed.flip(0), reach + 1).flip(0)
    if factor is not None:
        left = left * factor[:, 0, None, None]
        right = None if right is None else right * factor[:, -1, None, None]
    return (left if right is None else left + right).flatten(0, 2)


def before(summed: Tensor, distance: int) -> Tensor:
    """For each chunk the sum over all that lie `distance` or more before it: [n, B, H, M, F] -> the same."""
    kept = max(0, len(summed) - distance)
    return F.pad(summed[:kept].cumsum(dim=0), (0, 0) * 4 + (len(summed) - kept, 0))

"""FAVOR+: softmax attention through positive random features, linear in the number of tokens.

Choromanski et al. 2021, "Rethinking Attention with Performers": exp(q.k) is the mean over w ~ N(0, I) of
phi(q) phi(k) with phi(x) = exp(w.x - |x|^2 / 2), so that phi(Q) (phi(K)^T V) needs no N x N matrix.
Letters: B batch, H heads, N tokens, D head width, M random features, W window of the relative bias.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from xcls.attention.base import (
    Attention,
    by_query_blocks,
    check_attn_mask,
    distance_matrix,
    full_dtype,
    is_causal,
    mix,
    zero_padding,
)
from xcls.attention.performer_chunks import banded_products

DEAD = 1e-30  # a normaliser below this is that of a row with nothing to attend to


def draw_projection(num_features: int, head_dim: int, *, orthogonal: bool, generator: torch.Generator) -> Tensor:
    """Random directions w [M, D], fp32: Gaussian rows, in blocks of D orthogonal ones if `orthogonal` (section 3).

    Orthogonal rows get the norms of independent Gaussian ones (chi with D degrees of freedom), so that each row by
    itself is N(0, I) and the estimate stays unbiased. That needs directions uniform on the sphere: the signs that QR
    leaves to the algorithm (LAPACK makes the first entry of the first row negative, always) are drawn too.
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


def query_features(q: Tensor, projection: Tensor, *, epsilon: float, norm_in_stabiliser: bool = True) -> Tensor:
    """phi(q) / its largest feature + epsilon: q [B, H, N, D], projection [M, D] -> [B, H, N, M].

    The stabiliser is the row's own maximum, a factor that cancels in the normalised output. It is over the whole
    exponent, of which |q|^2 / 2 then drops out; with `norm_in_stabiliser` false it is over w.q alone, as in
    performer-pytorch, and features of long queries underflow to epsilon. 1 / sqrt(M) cancels as well.
    """
    exponent = q @ (projection.T * q.shape[-1] ** -0.25)
    peak = exponent.detach().amax(dim=-1, keepdim=True)
    if not norm_in_stabiliser:
        peak = peak + q.square().sum(dim=-1, keepdim=True) * (0.5 * q.shape[-1] ** -0.5)
    return ExpPlus.apply(exponent.sub_(peak), epsilon)


def key_features(
    k: Tensor,
    projection: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    epsilon: float,
    norm_in_stabiliser: bool = True,
) -> Tensor:
    """phi(k) / the largest feature of the example and head + epsilon, zero in pads: [B, H, N, D] -> [B, H, N, M].

    The maximum is over real keys alone, and pads are zeroed after the map, since the map of zero is not zero:
    otherwise padding would reach the stabiliser and the normaliser.
    """
    exponent = k @ (projection.T * k.shape[-1] ** -0.25)
    half_norm = k.square().sum(dim=-1, keepdim=True) * (0.5 * k.shape[-1] ** -0.5)
    pads = None if key_padding_mask is None else key_padding_mask[:, None, :, None]
    if norm_in_stabiliser:
        exponent = exponent.sub_(half_norm)
    if pads is not None:
        exponent = exponent.masked_fill(pads, -torch.inf)
    peak = exponent.detach().amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(k.dtype).min)
    features = ExpPlus.apply(exponent.sub_(peak if norm_in_stabiliser else half_norm + peak), epsilon)
    return features if pads is None else features.masked_fill(pads, 0.0)


def normalised(products: Tensor) -> Tensor:
    """sum of weights x [v, 1] -> weighted mean of v: [B, H, N, D+1] -> [B, H, N, D], zeros where no weight is."""
    total = products[..., -1:]
    return products[..., :-1] / total.masked_fill(total < DEAD, 1.0)


def dense_products(
    phi_q: Tensor, phi_k: Tensor, values: Tensor, *, factor: Tensor | None = None, blocked: Tensor | None = None
) -> Tensor:
    """The kernel matrix written out: (phi_q phi_k^T x factor, zero where blocked) values.

    phi_q [B, H, rows, M], phi_k [B, H, N, M], values [B, H, N, D+1], factor [H, rows, N],
    blocked bool [1|B, 1|H, rows, N] -> [B, H, rows, D+1].
    """
    kernel = phi_q @ phi_k.transpose(-1, -2)
    if factor is not None:
        kernel = kernel * factor
    if blocked is not None:
        kernel = kernel.masked_fill(blocked, 0.0)
    return kernel @ values


def favor(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projection: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    relative_bias: Tensor | None = None,
    epsilon: float = 1e-12,
    norm_in_stabiliser: bool = True,
    chunk_size: int = 128,
    block_size: int = 256,
    block_above: int = 2**26,
    dense: bool = False,
) -> Tensor:
    """FAVOR+ attention: q, k, v [B, H, N, D], projection [M, D] -> [B, H, N, D].

    Masks and bias as in `Attention.forward`. Linear in N without attn_mask, with a causal one, and with
    relative_bias; any other attn_mask takes the dense kernel, exact, in blocks of `block_size` query rows above
    `block_above` entries. `dense` asks for that everywhere: it is the oracle of the other paths.
    Features and normaliser are fp32 (fp64 for fp64 input), outside autocast; the output has the dtype of v.
    """
    batch, heads, length, _ = q.shape
    attn_mask = check_attn_mask(attn_mask)
    dtype = full_dtype(q)
    with torch.autocast(q.device.type, enabled=False):
        q, k, values = (zero_padding(x, key_padding_mask).to(dtype) for x in (q, k, v))
        projection = projection.to(dtype)
        phi_q = query_features(q, projection, epsilon=epsilon, norm_in_stabiliser=norm_in_stabiliser)
        phi_k = key_features(
            k,
            projection,
            key_padding_mask=key_padding_mask,
            epsilon=epsilon,
            norm_in_stabiliser=norm_in_stabiliser,
        )
        values = F.pad(values, (0, 1), value=1.0)  # [B, H, N, D+1]: the normaliser is the sum for a value of one
        factor = None  # exp(bias) up to a constant per head, which cancels
        if relative_bias is not None:
            factor = (relative_bias - relative_bias.detach().amax(dim=-1, keepdim=True)).to(dtype).exp()
        causal = attn_mask is not None and not dense and is_causal(attn_mask)

        def rows(block: Tensor, start: int) -> Tensor:
            size = block.shape[2]
            matrix = None if factor is None else distance_matrix(factor, rows=size, columns=length, offset=-start)
            mask = None if attn_mask is None else attn_mask[:, :, start : start + size]
            return dense_products(block, phi_k, values, factor=matrix, blocked=mask)

        if dense:
            products = rows(phi_q, 0)
        elif attn_mask is not None and not causal:
            whole = batch * heads * length * length <= block_above
            products = rows(phi_q, 0) if whole else by_query_blocks(rows, phi_q, block_size)
        elif causal or factor is not None:
            products = banded_products(phi_q, phi_k, values, factor=factor, causal=causal, chunk_size=chunk_size)
        else:
            products = phi_q @ (phi_k.transpose(-1, -2) @ values)
        return zero_padding(normalised(products), key_padding_mask).to(v.dtype)


class Performer(Attention):
    """FAVOR+ with a fixed projection per layer, shared by its heads; see `favor`."""

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
        """num_features: M; orthogonal, epsilon, norm_in_stabiliser: see `draw_projection` and `query_features`.

        chunk_size: tokens per chunk of the prefix sums; block_size, block_above: for a general attn_mask, see `favor`.
        """
        super().__init__(num_heads=num_heads, head_dim=head_dim, layer=layer, seed=seed)
        if min(num_features, chunk_size, block_size) < 1 or epsilon < 0:
            raise ValueError("num_features, chunk_size and block_size must be at least 1, epsilon at least 0")
        self.num_features = num_features
        self.orthogonal = orthogonal
        self.epsilon = epsilon
        self.norm_in_stabiliser = norm_in_stabiliser
        self.chunk_size = chunk_size
        self.block_size = block_size
        self.block_above = block_above
        self.register_buffer("projection", torch.empty(num_features, head_dim))
        self.redraw(torch.Generator().manual_seed(mix(seed, layer)))

    def redraw(self, generator: torch.Generator) -> None:
        """A new projection from `generator` (a CPU one)."""
        drawn = draw_projection(
            self.num_features, self.head_dim, orthogonal=self.orthogonal, generator=generator
        )
        self.projection.copy_(drawn)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        relative_bias: Tensor | None = None,
        rotate: Callable[[Tensor], Tensor] | None = None,
        context: dict | None = None,
    ) -> Tensor:
        """q, k, v [B, H, N, D] -> [B, H, N, D]; arguments as in `Attention.forward`."""
        return self._attend(q, k, v, key_padding_mask, attn_mask, relative_bias, dense=False)

    def oracle(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        relative_bias: Tensor | None = None,
        rotate: Callable[[Tensor], Tensor] | None = None,
        context: dict | None = None,
    ) -> Tensor:
        """phi(Q) phi(K)^T written out, whatever the mask: [B, H, N, D] -> [B, H, N, D]."""
        return self._attend(q, k, v, key_padding_mask, attn_mask, relative_bias, dense=True)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        relative_bias: Tensor | None,
        *,
        dense: bool,
    ) -> Tensor:
        return favor(
            q,
            k,
            v,
            self.projection,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            relative_bias=relative_bias,
            epsilon=self.epsilon,
            norm_in_stabiliser=self.norm_in_stabiliser,
            chunk_size=self.chunk_size,
            block_size=self.block_size,
            block_above=self.block_above,
            dense=dense,
        )

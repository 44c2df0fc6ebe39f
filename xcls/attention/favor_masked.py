"""Linear attention with a mask between tokens or a relative bias: the sums that `favor.linear_attention` divides.

`dense_sums` takes any mask and writes the kernel matrix out. `chunked_sums` takes the causal mask and the bias, and is
linear in N. Where a bias changes with the distance, up to W, pairs are computed one by one (near); all keys further
away have the same bias, so that one sum over whole chunks serves them (far). For a query in chunk 2:

    chunk                 0     1     2     3     4
    bias                  far   near  near  near  far
    causal mask           far   far   near  -     -
    causal mask and bias  far   near  near  -     -

Letters: B batch, H heads, N tokens, D head dimension, M features, W window of the relative bias, C tokens of a chunk, n
chunks, F columns of a tensor.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xcls.attention.base import Masks, by_query_blocks, distance_matrix
from xcls.attention.kernels import is_compiling
from xcls.attention.kernels.favor_chunks import AddBand


def dense_sums(phi_q: Tensor, phi_k: Tensor, values: Tensor, factor: Tensor | None, masks: Masks) -> Tensor:
    """The kernel matrix written out: (phi_q phi_k^T x factor, zero where `masks.pairs`) values -> [B, H, N, D+1].

    Where the matrix does not fit, it is made in blocks of query rows, each computed again in the backward pass.
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

    Beyond distance W the factor [H, 2W+1] is one constant on each side. So tokens are cut into chunks of at least W
    tokens. A query meets its own chunk and the two beside it pair by pair (the band), and all others through running
    sums of phi(k) values^T over whole chunks, from the left and from the right (the far field).
    """
    batch, heads, length, _ = phi_q.shape
    reach = 0 if factor is None else 1  # chunks of the band on each side of the query's own
    size = min(chunk_size if factor is None else max(chunk_size, factor.shape[-1] // 2), length)
    near = phi_q.new_ones(1, 1, size, size)  # the factor of each pair, per chunk of the band: [1|2|3, 1|H, C, C]
    if factor is not None:
        near = distance_matrix(factor, rows=size, columns=3 * size, offset=-size).unflatten(-1, (3, size)).movedim(2, 0)
    if causal:
        near = torch.cat((near[:reach], near[reach : reach + 1].tril()))
    q, k, values = to_chunks(phi_q, size, 0), to_chunks(phi_k, size, reach), to_chunks(values, size, reach)
    far = q @ far_field(k, values, factor, (batch, heads), causal=causal, reach=reach)
    return from_chunks(add_band(far, q, k, values, near, batch * heads), (batch, heads), length)


def add_band(out: Tensor, q: Tensor, k: Tensor, values: Tensor, near: Tensor, step: int) -> Tensor:
    """out + sum over the R chunks of a band of (q k^T x near) values: [n step, C, D+1], in the memory of `out`.

    q [n step, C, M]; k, values: as q, with the empty chunks that `to_chunks` adds at both ends; near [R, 1|H, C, C];
    step = B H, the rows between two chunks of a sequence.
    """
    if not is_compiling():
        return AddBand.apply(out, q, k, values, near, step)
    for number, factor in enumerate(near):
        other = slice(number * step, number * step + len(q))
        kernel = (q @ k[other].transpose(1, 2)).unflatten(0, (-1, len(factor))) * factor
        out = out + kernel.flatten(0, 1) @ values[other]
    return out


def to_chunks(x: Tensor, size: int, beside: int) -> Tensor:
    """[B, H, N, F] -> [(n + 2 beside) B H, C, F]: the first chunk of every sequence, then the second of every one, ….

    `beside` chunks of zeros stand at each end. So the next chunk of the same sequence always lies B H rows further on.
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
    """The sum of phi(k) values^T over all keys outside the band of each chunk, times their constant factor.

    k, values: chunks with `reach` empty ones at each end; heads = (B, H) -> [n B H, M, D+1].
    """
    real = slice(reach * heads[0] * heads[1], len(k) - reach * heads[0] * heads[1])
    summed = (k[real].transpose(1, 2) @ values[real]).unflatten(0, (-1, *heads))  # [n, B, H, M, D+1]
    left = sums_before(summed, reach + 1)
    right = None if causal else sums_before(summed.flip(0), reach + 1).flip(0)
    if factor is not None:
        left = left * factor[:, 0, None, None]
        right = None if right is None else right * factor[:, -1, None, None]
    return (left if right is None else left + right).flatten(0, 2)


def sums_before(summed: Tensor, distance: int) -> Tensor:
    """For each chunk the sum over all chunks `distance` or more before it: [n, B, H, M, F] -> the same shape."""
    kept = max(0, len(summed) - distance)
    return F.pad(summed[:kept].cumsum(dim=0), (0, 0) * 4 + (len(summed) - kept, 0))

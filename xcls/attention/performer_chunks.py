"""Kernel attention with a causal mask or a clipped relative bias, in time and memory linear in the tokens.

Beyond distance W the factor exp(bias) is one constant per side. So the tokens are cut into chunks of at least W:
a query meets its own chunk and the two beside it pair by pair (the band), and all the others through sums of
phi(k) v^T over whole chunks, running from the left and from the right (the far field). The sums exist once per
chunk, never per token. The dense kernel x factor in `performer.py` is the oracle.
Letters: B batch, H heads, N tokens, D head width, M random features, C tokens of a chunk, W window of the bias.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xcls.attention.base import distance_matrix


def banded_products(
    phi_q: Tensor, phi_k: Tensor, values: Tensor, *, factor: Tensor | None, causal: bool, chunk_size: int
) -> Tensor:
    """sum over j of phi_q[i].phi_k[j] factor[clip(j - i)] values[j], over j <= i only if causal.

    phi_q, phi_k [B, H, N, M] (phi_k zero in pads), values [B, H, N, D+1], factor [H, 2W+1] or None (all ones)
    -> [B, H, N, D+1].
    """
    batch, heads, length, _ = phi_q.shape
    reach = 0 if factor is None else 1  # neighbouring chunks in the band, on either side
    chunk = chunk_size if factor is None else max(chunk_size, factor.shape[-1] // 2)
    near, left, right = _factors(factor, causal, chunk, reach, phi_q)

    # [B, H, N, .] -> [B*H*chunks, C, .], with `reach` chunks of zeros behind each sequence: so the neighbours of a
    # chunk are the ones beside it in one long list, and the neighbours of an end are empty.
    chunks = -(-length // chunk) + reach
    fill = chunks * chunk - length
    q, k, values = (F.pad(x, (0, 0, 0, fill)).reshape(-1, chunk, x.shape[-1]) for x in (phi_q, phi_k, values))

    shape = (batch, heads, chunks)
    summed = (k.transpose(1, 2) @ values).view(*shape, k.shape[-1], values.shape[-1])  # [B, H, chunks, M, D+1]
    far = _running_sum(summed, reach) * left
    if right is not None:
        far = far + _running_sum(summed.flip(2), reach).flip(2) * right
    products = q @ far.flatten(0, 2)

    kernel = q @ _windows(k, reach).transpose(1, 2)  # [B*H*chunks, C, (2 reach + 1) C]
    kernel = (kernel.view(*shape, *kernel.shape[1:]) * near).flatten(0, 2)
    products = products + kernel @ _windows(values, reach)
    return products.view(batch, heads, chunks * chunk, -1)[:, :, :length]


def _factors(
    factor: Tensor | None, causal: bool, chunk: int, reach: int, like: Tensor
) -> tuple[Tensor, Tensor | float, Tensor | float | None]:
    """The band's factors [H|1, 1, C, (2 reach + 1) C], and those of the far field on the left and on the right."""
    columns = (2 * reach + 1) * chunk
    if factor is None:
        near, left, right = like.new_ones(1, chunk, columns), 1.0, 1.0
    else:
        near = distance_matrix(factor, rows=chunk, columns=columns, offset=-reach * chunk)
        left, right = factor[:, 0, None, None, None], factor[:, -1, None, None, None]  # [H, 1, 1, 1]
    if causal:
        near, right = near.tril(reach * chunk), None
    return near[:, None], left, right


def _running_sum(summed: Tensor, reach: int) -> Tensor:
    """For each chunk the sum over all chunks more than `reach` before it: [B, H, chunks, M, D+1], same shape."""
    chunks, skip = summed.shape[2], reach + 1
    return F.pad(summed.cumsum(dim=2), (0, 0, 0, 0, skip, 0))[:, :, :chunks]


def _windows(x: Tensor, reach: int) -> Tensor:
    """Each chunk with its neighbours: [chunks, C, F] -> [chunks, (2 reach + 1) C, F], without copying them."""
    chunks, size, width = x.shape
    if reach == 0:
        return x
    flat = F.pad(x.reshape(-1, width), (0, 0, reach * size, reach * size))
    return flat.unfold(0, (2 * reach + 1) * size, size).transpose(1, 2)

"""Kernel attention with a causal mask or a clipped relative bias, in time and memory linear in the tokens.

Beyond distance W the factor exp(bias) is one constant per side. So the tokens are cut into chunks of at least W:
a query meets its own chunk and the two beside it pair by pair (the band), and all the others through sums of
phi(k) v^T over whole chunks, running from the left and from the right (the far field). The sums exist once per
chunk, never per token. The dense kernel x factor in `kernel.py` is the oracle.
Letters: B batch, H heads, N tokens, D head width, M random features, C tokens of a chunk, W window of the bias.
"""

from __future__ import annotations

from torch import Tensor

from xcls.attention.base import distance_matrix
from xcls.attention.chunks import from_chunks, running_sum, to_chunks, windows


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
    columns = (2 * reach + 1) * chunk
    near = phi_q.new_ones(1, chunk, columns)
    if factor is not None:
        near = distance_matrix(factor, rows=chunk, columns=columns, offset=-reach * chunk)  # [H, C, 3C]
    if causal:
        near = near.tril(reach * chunk)

    q, k, values = (to_chunks(x, chunk, reach) for x in (phi_q, phi_k, values))
    shape = (batch, heads, q.shape[0] // (batch * heads))
    products = q @ far_field(k, values, shape, factor=factor, causal=causal, reach=reach)
    kernel = q @ windows(k, reach).transpose(1, 2)  # [B*H*chunks, C, (2 reach + 1) C]
    kernel = (kernel.view(*shape, *kernel.shape[1:]) * near[:, None]).flatten(0, 2)
    return from_chunks(products + kernel @ windows(values, reach), batch, heads, length)


def far_field(
    k: Tensor, values: Tensor, shape: tuple[int, int, int], *, factor: Tensor | None, causal: bool, reach: int
) -> Tensor:
    """For each chunk the sum of phi(k) values^T over all keys outside its band, times their constant factor.

    k [B*H*chunks, C, M], values [B*H*chunks, C, F], shape (B, H, chunks), factor [H, 2W+1] -> [B*H*chunks, M, F].
    """
    summed = (k.transpose(1, 2) @ values).view(*shape, k.shape[-1], values.shape[-1])  # [B, H, chunks, M, F]
    left, right = 1.0, 1.0
    if factor is not None:
        left, right = factor[:, 0, None, None, None], factor[:, -1, None, None, None]  # [H, 1, 1, 1]
    far = running_sum(summed, reach) * left
    if not causal:
        far = far + running_sum(summed.flip(2), reach).flip(2) * right
    return far.flatten(0, 2)

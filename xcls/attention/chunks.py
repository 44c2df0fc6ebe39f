"""Sequences cut into chunks, each beside its neighbours: what banded attention of every kind is made of.

Letters: B batch, H heads, N tokens, C tokens of a chunk, F any width. `reach` is the number of neighbours in the band
on either side. Chunks are [B*H*chunks, C, F], `reach` chunks of zeros behind each sequence: so the neighbours of a
chunk are the ones beside it in one long list, and those of an end are empty.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def chunk_count(length: int, chunk: int, reach: int) -> int:
    """Chunks of a sequence of `length` tokens, the empty ones behind it included."""
    return -(-length // chunk) + reach


def to_chunks(x: Tensor, chunk: int, reach: int) -> Tensor:
    """[B, H, N, F] -> [B*H*chunks, C, F], zeros behind the tokens."""
    fill = chunk_count(x.shape[2], chunk, reach) * chunk - x.shape[2]
    return F.pad(x, (0, 0, 0, fill)).reshape(-1, chunk, x.shape[-1])


def from_chunks(x: Tensor, batch: int, heads: int, length: int) -> Tensor:
    """[B*H*chunks, C, F] -> [B, H, N, F]."""
    return x.reshape(batch, heads, -1, x.shape[-1])[:, :, :length]


def windows(x: Tensor, reach: int) -> Tensor:
    """Each chunk with its neighbours: [chunks, C, F] -> [chunks, (2 reach + 1) C, F], without copying them."""
    size, width = x.shape[1:]
    if reach == 0:
        return x
    flat = F.pad(x.reshape(-1, width), (0, 0, reach * size, reach * size))
    return flat.unfold(0, (2 * reach + 1) * size, size).transpose(1, 2)


def running_sum(summed: Tensor, reach: int) -> Tensor:
    """For each chunk the sum over all chunks more than `reach` before it: [B, H, chunks, M, F], same shape."""
    chunks, skip = summed.shape[2], reach + 1
    return F.pad(summed.cumsum(dim=2), (0, 0, 0, 0, skip, 0))[:, :, :chunks]


def outside_windows(key_padding_mask: Tensor | None, like: Tensor, chunk: int, reach: int) -> Tensor:
    """Which places of each chunk's window hold no real token of its sequence, like [B, H, N, F]:
    bool [B|1, 1, chunks, 1, (2 reach + 1) C].
    """
    length = like.shape[2]
    outside = like.new_zeros(1, length, dtype=bool) if key_padding_mask is None else key_padding_mask
    behind = (chunk_count(length, chunk, reach) + reach) * chunk - length
    outside = F.pad(outside, (reach * chunk, behind), value=True)
    return outside.unfold(1, (2 * reach + 1) * chunk, chunk)[:, None, :, None]


def mask_windows(attn_mask: Tensor, chunk: int, reach: int) -> Tensor:
    """The part of attn_mask [1|B, 1|H, N, N] in each chunk's window: [1|B, 1|H, chunks, C, (2 reach + 1) C].

    A view of the mask with blocked tokens around it.
    """
    length = attn_mask.shape[-1]
    chunks, columns = chunk_count(length, chunk, reach), (2 * reach + 1) * chunk
    below, behind = chunks * chunk - length, (chunks + reach) * chunk - length
    mask = F.pad(attn_mask, (reach * chunk, behind, 0, below), value=True)
    batch, heads, row, column = mask.stride()
    shape = (*mask.shape[:2], chunks, chunk, columns)
    return mask.as_strided(shape, (batch, heads, chunk * (row + column), row, column))

"""LSH attention's hashing and sorting.

Letters: B batch, H heads, N tokens, D head width, R rounds, G = B x H sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 2**20  # entries hashed at a time: larger buffers cost more in page faults than the products in them


def columns_in_use(
    x: Tensor, rotations: Tensor, bucket_size: int, key_padding_mask: Tensor | None
) -> tuple[int, Tensor | None]:
    """How many columns of the rotations any example needs, and which of these an example may not use.

    x [B, H, N, D], rotations [R, H, D, most / 2] -> (width, bool [B, 1, 1, width], or None without a mask).
    """
    most = rotations.shape[-1]
    width = min(most, -(-x.shape[2] // (2 * bucket_size)))  # no example needs more than its padded length does
    if key_padding_mask is None:
        return width, None
    real = (~key_padding_mask).sum(dim=-1)
    half = ((real + 2 * bucket_size - 1) // (2 * bucket_size)).clamp(1, most)
    return width, torch.arange(width, device=x.device) >= half[:, None, None, None]


@torch.no_grad()
def lsh_buckets(x: Tensor, rotations: Tensor, *, bucket_size: int, key_padding_mask: Tensor | None = None) -> Tensor:
    """argmax([xR; -xR]) for each round (Andoni et al. 2015): x [B, H, N, D], rotations [R, H, D, most / 2] ->
    [B, H, R, N].

    An example has as many buckets as it has real tokens / bucket_size, rounded up to an even number, `most` at the
    most, and uses that many of the rotation's columns: how far it is padded does not show. int64, computed in the
    dtype of the rotations, outside autocast.
    """
    width, spare = columns_in_use(x, rotations, bucket_size, key_padding_mask)
    buckets = torch.empty((*x.shape[:2], len(rotations), x.shape[2]), dtype=torch.int64, device=x.device)
    for examples, tokens in _pieces(x, max(width, x.shape[3])):
        piece = x[examples, :, tokens].to(rotations.dtype)
        closed = None if spare is None else spare[examples]
        for number, rotation in enumerate(rotations):
            rotated = piece @ rotation[..., :width]
            size = rotated.abs()
            if closed is not None:
                size.masked_fill_(closed, -1.0)
            best = size.argmax(dim=-1)
            negative = rotated.gather(-1, best[..., None]).squeeze(-1) < 0
            half = width if closed is None else (~closed).sum(dim=-1)  # [b, 1, 1]
            buckets[examples, :, number, tokens] = best + negative * half
    return buckets


def _pieces(x: Tensor, width: int) -> list[tuple[slice, slice]]:
    """Cut x [B, H, N, D] into examples and tokens such that H x tokens x width stays in the cache."""
    batch, heads, length, _ = x.shape
    most = max(1, PIECE // (heads * width))  # tokens of all examples of a piece
    tokens = min(length, most)
    examples = max(1, most // length)
    firsts = ((b, n) for b in range(0, batch, examples) for n in range(0, length, tokens))
    return [(slice(b, b + examples), slice(n, n + tokens)) for b, n in firsts]


@torch.no_grad()
def sorted_rows(buckets: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """Each sequence's rows (b N + n) H + h, sorted by (bucket, position), pads last: [B, H, R, N] -> [R, G, N].

    One flat stable sort of whole numbers per round, which PyTorch does by radix, and in which position is the order
    of the rows themselves.
    """
    batch, heads, rounds, length = buckets.shape
    pads = buckets.amax() + 1
    if key_padding_mask is not None:
        buckets = torch.where(key_padding_mask[:, None, None, :], pads, buckets)
    sequence = torch.arange(batch * heads, device=buckets.device).view(batch, heads, 1, 1)
    keys = (buckets + sequence * (pads + 1)).permute(2, 0, 3, 1).reshape(rounds, -1)  # [R, B N H]
    return torch.stack([key.argsort(stable=True) for key in keys]).view(rounds, batch * heads, length)

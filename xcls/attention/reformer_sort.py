"""LSH attention's hashing and sorting: which token sits in which chunk of which round.

Letters: B batch, H heads, N tokens, D head width, R rounds, C tokens of a chunk, G = B x H sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def lsh_buckets(x: Tensor, rotations: Tensor, *, bucket_size: int, key_padding_mask: Tensor | None = None) -> Tensor:
    """argmax([xR; -xR]) for each round (Andoni et al. 2015): x [B, H, N, D], rotations [R, H, D, most / 2] ->
    [B, H, R, N].

    An example has as many buckets as it has real tokens / bucket_size, rounded up to an even number, `most` at the
    most, and uses that many of the rotation's columns: how far it is padded does not show. int64, in x's dtype.
    """
    length = x.shape[2]
    most = rotations.shape[-1]
    width = min(most, -(-length // (2 * bucket_size)))  # no example needs more columns than its padded length does
    half: Tensor | int = width
    if key_padding_mask is not None:
        real = (~key_padding_mask).sum(dim=-1)
        half = ((real + 2 * bucket_size - 1) // (2 * bucket_size)).clamp(1, most)[:, None, None]  # [B, 1, 1]
    buckets = []
    for rotation in rotations:  # one round at a time: [B, H, N, width] is the largest tensor in here
        rotated = x @ rotation[..., :width]
        size = rotated.abs()
        if key_padding_mask is not None:
            spare = torch.arange(width, device=x.device) >= half[..., None]  # [B, 1, 1, width]
            size.masked_fill_(spare, -1.0)
        best = size.argmax(dim=-1)
        negative = rotated.gather(-1, best[..., None]).squeeze(-1) < 0
        buckets.append(best + negative * half)
    return torch.stack(buckets, dim=2)


@dataclass(frozen=True)
class Layout:
    """Where each token goes in each round. Sequences lie one behind the other, chunk after chunk, in one long list.

    take: [R, slots], for each slot of the list its token (row of [G x N]); slots without one name some row as well.
    give: [R, G x N], for each token its slot.
    chunk_of: [R, G x N], int32, the token's chunk within its sequence.
    real: [slots], whether the slot holds a real token, the same in all rounds, since pads sort behind.
    chunks: chunks per sequence, with enough empty ones at the end that no neighbour is in another sequence's tokens.
    """

    take: Tensor
    give: Tensor
    chunk_of: Tensor
    real: Tensor
    chunks: int


@torch.no_grad()
def chunk_layout(
    buckets: Tensor, *, key_padding_mask: Tensor | None, bucket_size: int, chunks_before: int, chunks_after: int
) -> Layout:
    """Sort by (bucket, position), pads behind, and cut into chunks: buckets [B, H, R, N] -> Layout.

    The list of slots has `chunks_before` chunks more at its front and `chunks_after` at its end, so that every chunk
    has its whole window. Chunks start at the first real token: the layout depends on real tokens alone.
    """
    batch, heads, rounds, length = buckets.shape
    if key_padding_mask is not None:
        buckets = buckets.masked_fill(key_padding_mask[:, None, None, :], torch.iinfo(buckets.dtype).max)
    order = buckets.permute(2, 0, 1, 3).reshape(rounds, -1, length).argsort(dim=-1, stable=True)  # [R, G, N]
    position = torch.arange(length, device=buckets.device)
    rank = torch.empty_like(order).scatter_(-1, order, position.expand_as(order))

    chunks = -(-length // bucket_size) + max(chunks_before, chunks_after)
    slots = chunks * bucket_size
    sequence = torch.arange(batch * heads, device=buckets.device)[:, None]
    ends = (chunks_before * bucket_size, chunks_after * bucket_size)
    take = F.pad(order, (0, slots - length)) + sequence * length
    give = rank + sequence * slots + ends[0]

    if key_padding_mask is None:
        real = (torch.arange(slots, device=buckets.device) < length).expand(batch * heads, -1)
    else:
        count = (~key_padding_mask).sum(dim=-1, keepdim=True).repeat_interleave(heads, dim=0)  # [G, 1]
        real = torch.arange(slots, device=buckets.device) < count
    return Layout(
        take=F.pad(take.flatten(1), ends),
        give=give.flatten(1),
        chunk_of=(rank // bucket_size).to(torch.int32).flatten(1),
        real=F.pad(real.flatten(), ends),
        chunks=chunks,
    )


class ToSlots(torch.autograd.Function):
    """Tokens to slots: x [G x N, F] -> x[take] [slots, F]; the gradient of a token is that of its slot, x'[give].

    Plain indexing would add gradients up row by row; but slots that hold no token of their own have none to give.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, take: Tensor, give: Tensor) -> Tensor:
        """x [G x N, F], take [slots], give [G x N] -> [slots, F]."""
        ctx.save_for_backward(give)
        return x.index_select(0, take)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        """[slots, F] -> [G x N, F]."""
        (give,) = ctx.saved_tensors
        return grad.index_select(0, give), None, None


class ToTokens(torch.autograd.Function):
    """Slots back to tokens: x [slots, F] -> x[give] [G x N, F]; slots that hold no token get a gradient of zero."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, give: Tensor) -> Tensor:
        """x [slots, F], give [G x N] -> [G x N, F]."""
        ctx.save_for_backward(give)
        ctx.slots = x.shape[0]
        return x.index_select(0, give)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        """[G x N, F] -> [slots, F]."""
        (give,) = ctx.saved_tensors
        return grad.new_zeros(ctx.slots, grad.shape[1]).index_copy_(0, give, grad.contiguous()), None

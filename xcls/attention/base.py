"""What every attention mechanism has in common: the contract, and the helpers for masks and clipped distances.

Letters: B batch, H heads, N tokens, D head width, W window of the relative bias.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

is_compiling = getattr(torch.compiler, "is_compiling", lambda: False)  # torch >= 2.3


class Attention(nn.Module):
    """One attention mechanism of one layer: hyperparameters and random buffers, no trained weights.

    `ties_qk`: the mechanism has one projection for queries and keys; the caller then passes k = q.
    `wants_unrotated`: the caller passes q and k before the rotary embedding, and the rotation as `rotate`.
    `reads_qk`: false where q and k are not looked at; the caller then builds no projections for them and passes v.
    """

    ties_qk: bool = False
    wants_unrotated: bool = False
    reads_qk: bool = True

    def __init__(self, *, num_heads: int, head_dim: int, layer: int, seed: int) -> None:
        """Keep the shape facts; subclasses add their hyperparameters."""
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.layer = layer
        self.seed = seed

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
        """Attend: q, k, v [B, H, N, D] -> [B, H, N, D].

        key_padding_mask: bool [B, N], True = a pad, which nobody attends to; its own output row is zero.
        attn_mask: bool [N, N] or [B, 1|H, N, N], True = query i (rows) may not attend to key j (columns).
        relative_bias: [H, 2W+1], adds relative_bias[h, clip(j - i, -W, W) + W] to the logit of i and j.
        rotate: the rotary embedding [B, H, N, D] -> [B, H, N, D], given only where `wants_unrotated`.
        context: a dict that lives for one forward pass of the encoder, for what one layer leaves to the next.
        """
        raise NotImplementedError

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
        """The same result from the whole N x N kernel, slow and readable: [B, H, N, D] -> [B, H, N, D]."""
        raise NotImplementedError

    def redraw(self, generator: torch.Generator) -> None:
        """Draw the random buffers anew from `generator`; nothing to do where there are none."""


def mix(seed: int, layer: int) -> int:
    """A well-spread 63-bit seed for one layer, so that layers and neighbouring seeds share no random stream.

    The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
    """
    mask = (1 << 64) - 1
    z = (seed * 0x9E3779B97F4A7C15 + layer + 1) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 1


def full_dtype(x: Tensor) -> torch.dtype:
    """The dtype for hashing, feature maps, softmax and normalisers: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a matrix product of x comes out here: that of autocast where it is on, else x's own."""
    return (x.new_empty(1, 0) @ x.new_empty(0, 1)).dtype


class _Zeroed(torch.autograd.Function):
    """x [B, H, N, D] where `kept`, of its width in bits, is -1 (all bits), zero where it is 0; the gradient likewise."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        return (x.view(kept.dtype) & kept).view(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (grad.view(kept.dtype) & kept).view(grad.dtype), None


BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers by the bytes of an element


def zero_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x [B, H, N, D] with zeros where `rows`, bool [1|B, 1|H, 1|N, 1], is true: NaN and Inf go too, and so do gradients.

    On a CPU an `and` of the bits, which takes an eighth of the time of masked_fill.
    """
    if x.device.type != "cpu" or is_compiling():
        return x.masked_fill(rows, 0.0)
    return _Zeroed.apply(x, rows.to(BITS[x.element_size()]) - 1)


def zero_padding(x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """x [B, H, N, D] with zeros in padded rows, as `zero_rows` makes them."""
    return x if key_padding_mask is None else zero_rows(x, key_padding_mask[:, None, :, None])


def broken_sequences(
    key_padding_mask: Tensor | None, *inputs: Tensor, shown: tuple[Tensor, ...] | None = None
) -> Tensor | None:
    """Which sequences have a real token with a NaN or an Inf in one of `inputs` [B, H, N, D]: bool [B, H, 1, 1].

    None where that is known to be none. On a CPU sums over dimension 2 tell, the cheapest pass there is: what is not
    finite shows in them. Elsewhere everything is looked at, so that nobody waits for an answer.
    shown: tensors [B, H, *, *] to sum instead, smaller ones in which every such number shows.
    """
    if inputs[0].device.type == "cpu" and not is_compiling():
        if all(x.detach().sum(dim=2).isfinite().all() for x in shown or inputs):
            return None
    finite = torch.stack([x.detach().isfinite().all(dim=-1) for x in inputs]).all(dim=0)  # [B, H, N]
    if key_padding_mask is not None:
        finite = finite | key_padding_mask[:, None]
    return ~finite.all(dim=-1)[..., None, None]


class _Isolated(torch.autograd.Function):
    """x [B, H, N, D] with zeros where `broken` [B, H, 1, 1]; the gradient has NaN there."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, broken: Tensor) -> Tensor:
        ctx.save_for_backward(broken)
        return x.masked_fill(broken, 0.0)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (broken,) = ctx.saved_tensors
        return grad.masked_fill(broken, torch.nan), None


def isolated(x: Tensor, broken: Tensor | None) -> Tensor:
    """x [B, H, N, D] with zeros in broken sequences, where neighbours in memory could meet them: 0 times NaN is NaN."""
    return x if broken is None else _Isolated.apply(x, broken)


def spoiled(out: Tensor, broken: Tensor | None) -> Tensor:
    """out [B, H, N, D] with NaN in the sequences that `isolated` has zeroed, so that the example itself shows them."""
    return out if broken is None else out.masked_fill(broken, torch.nan)


def check_attn_mask(attn_mask: Tensor | None) -> Tensor | None:
    """attn_mask [N, N] or [B, 1|H, N, N] as [1|B, 1|H, N, N]. Raises on another rank and on a mask that is not bool."""
    if attn_mask is None:
        return None
    if attn_mask.dtype != torch.bool:
        raise TypeError(f"attn_mask must be bool (True = may not be attended), not {attn_mask.dtype}")
    if attn_mask.dim() not in (2, 4):
        raise ValueError(f"attn_mask must be [N, N] or [B, 1|H, N, N], not {list(attn_mask.shape)}")
    return attn_mask if attn_mask.dim() == 4 else attn_mask[None, None]


def blocked_pairs(key_padding_mask: Tensor | None, attn_mask: Tensor | None) -> Tensor | None:
    """Both masks as one, bool [1|B, 1|H, 1|rows, N], True = may not be attended; None if there is none.

    attn_mask is [1|B, 1|H, rows, N] here, whole or a block of its rows.
    """
    if key_padding_mask is None:
        return attn_mask
    pads = key_padding_mask[:, None, None, :]
    return pads if attn_mask is None else pads | attn_mask


def is_causal(attn_mask: Tensor) -> bool:
    """Whether attn_mask [..., N, N] is exactly the causal one: every j > i blocked, everything else free."""
    length = attn_mask.shape[-1]
    if attn_mask[..., -1, :].any() or not attn_mask[..., 0, 1:].all():  # two rows tell most others apart
        return False
    position = torch.arange(length, device=attn_mask.device)
    return bool((attn_mask == (position > position[:, None])).all())


def distance_matrix(bias: Tensor, *, rows: int, columns: int, offset: int = 0) -> Tensor:
    """The clipped relative bias as a matrix: [H, 2W+1] -> [H, rows, columns], with
    out[h, i, j] = bias[h, clip(j - i + offset, -W, W) + W].

    A gather per entry would make the gradient a scatter of rows x columns values. One diagonal vector, repeated
    and read with rows one entry shorter, shifts by one in each row instead, and its gradient is a plain sum.
    """
    window = bias.shape[-1] // 2
    size = columns + rows
    distance = torch.arange(size, device=bias.device)
    distance = torch.where(distance < columns, distance, distance - size) + offset  # 0 .. columns-1, -rows .. -1
    diagonals = bias.index_select(1, distance.clamp(-window, window) + window)  # [H, size]
    repeated = diagonals[:, None, :].expand(-1, rows, -1).reshape(-1, rows * size)
    return repeated[:, : rows * (size - 1)].view(-1, rows, size - 1)[:, :, :columns]


def kept_whole(batch: int, heads: int, length: int, block_above: int) -> bool:
    """Is an N x N matrix per head small enough to be kept: at most `block_above` entries in all, and a quarter of that
    in each example? The second bound keeps a long document in blocks where a batch of several would have them: else
    a smaller micro-batch could take more memory.
    """
    entries = heads * length * length
    return batch * entries <= block_above and entries <= block_above // 4


def by_query_blocks(attend: Callable[[Tensor, int], Tensor], q: Tensor, block_size: int) -> Tensor:
    """attend(block of q [B, H, block, D], its first row) for all blocks of rows, joined to [B, H, N, D].

    Each block is computed again in the backward pass, so that nothing of size N x N outlives its block.
    """
    outputs, start = [], 0
    for block in q.split(block_size, dim=2):
        outputs.append(checkpoint(attend, block, start, use_reentrant=False, preserve_rng_state=False))
        start += block.shape[2]
    return torch.cat(outputs, dim=2)

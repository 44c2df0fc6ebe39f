"""What every attention mechanism has in common: the contract, the masks, and helpers for clipped distances.

A mechanism is a subclass of `Attention` with one method, `attend`. What all share is done once, in `Attention.forward`.
Letters: B batch, H heads, N tokens, D head width, W window of the relative bias.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xcls.attention.kernels import is_compiling
from xcls.attention.operations import Shape, Work

HEADROOM = 16.0  # fp16 ends at 65,504, and q.k of large activations does not: products are smaller by this factor


@dataclass(frozen=True, eq=False)
class Masks:
    """What a query may attend to, and where tokens are. Make it with `Masks.make`, which checks its arguments.

    padding: bool [B, N], True = a pad, which nobody attends to.
    pairs: bool [1|B, 1|H, N, N], True = query i (row) may not attend to key j (column).
    bias: [H, 2W+1], adds bias[h, clip(j - i, -W, W) + W] to the logit of query i and key j.
    rotate: the rotary embedding [B, H, N, D] -> [B, H, N, D], given only where the mechanism `wants_unrotated`.
    causal: `pairs` is exactly the causal mask: every j > i blocked, everything else free.
    finite: the caller promises that pads hold finite numbers and reads no output of theirs (the encoder does), so that
        neither is zeroed.
    layers: how many layers keep their tensors for one backward pass; what decides whether N x N matrices fit.
    context: lives for one forward pass of the encoder, for what one layer leaves to the next.
    """

    padding: Tensor | None = None
    pairs: Tensor | None = None
    bias: Tensor | None = None
    rotate: Callable[[Tensor], Tensor] | None = None
    causal: bool = False
    finite: bool = False
    layers: int = 1
    context: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        relative_bias: Tensor | None = None,
        rotate: Callable[[Tensor], Tensor] | None = None,
        finite: bool = False,
        layers: int = 1,
    ) -> Masks:
        """Masks of `key_padding_mask` [B, N] and `attn_mask` [N, N] or [B, 1|H, N, N], as for PyTorch's
        MultiheadAttention.

        Raises TypeError where a mask is not bool, ValueError where attn_mask has another rank. Waits for the device
        once where there is an attn_mask, to tell whether it is causal.
        """
        for name, mask in (("key_padding_mask", key_padding_mask), ("attn_mask", attn_mask)):
            if mask is not None and mask.dtype != torch.bool:
                raise TypeError(f"{name} must be bool (True = may not be attended), not {mask.dtype}")
        if attn_mask is not None and attn_mask.dim() not in (2, 4):
            raise ValueError(f"attn_mask must be [N, N] or [B, 1|H, N, N], not {list(attn_mask.shape)}")
        pairs = attn_mask[None, None] if attn_mask is not None and attn_mask.dim() == 2 else attn_mask
        causal = pairs is not None and is_causal(pairs)
        return cls(key_padding_mask, pairs, relative_bias, rotate, causal, finite, layers)

    def with_(self, **changes: Any) -> Masks:
        """A copy with other values."""
        return replace(self, **changes)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """make(), called by the first layer of a forward pass and shared by the others; compiled code calls it
        again.
        """
        if key not in self.context or is_compiling():
            self.context[key] = make()
        return self.context[key]

    def blocked(self, rows: slice = slice(None)) -> Tensor | None:
        """Padding and pairs as one mask for some rows of queries: bool [1|B, 1|H, 1|rows, N], True = may not be
        attended."""
        pairs = None if self.pairs is None else self.pairs[:, :, rows]
        if self.padding is None:
            return pairs
        pads = self.padding[:, None, None, :]
        return pads if pairs is None else pads | pairs


class Attention(nn.Module):
    """One attention mechanism of one layer: hyperparameters and random buffers, and trained weights if it has any.

    `ties_qk`: the mechanism has one projection for queries and keys; the caller then passes k = q.
    `wants_unrotated`: the caller passes q and k before the rotary embedding, and the rotation as `masks.rotate`.
    `reads_qk`: false where q and k are not looked at; the caller then builds no projections for them and passes v.
    `path`: how the last call computed, where a mechanism has several ways ("whole", "blocks", "fused").
    """

    ties_qk: bool = False
    wants_unrotated: bool = False
    reads_qk: bool = True
    path: str | None = None

    def __init__(self, *, num_heads: int, head_dim: int, layer: int, seed: int) -> None:
        """Keep the shape facts; subclasses add their hyperparameters."""
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.layer = layer
        self.seed = seed

    def forward(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks | None = None) -> Tensor:
        """`attend` with what all mechanisms share: q, k, v [B, H, N, D] -> [B, H, N, D] in the dtype of v.

        Pads are zeroed, so that NaN and Inf in them reach nothing, and their output is zero, unless `masks.finite`.
        A row with nothing to attend to is zero. Products run in the dtype of q, k, v as they come, outside autocast.
        """
        masks = Masks() if masks is None else masks
        padding = None if masks.finite else masks.padding
        q, k, v = (zero_padding(x, padding) for x in (q, k, v))
        with torch.autocast(v.device.type, enabled=False):
            out = self.attend(q, k, v, masks)
        blocked = None if masks.pairs is None else masks.blocked()
        if blocked is not None:
            out = out.masked_fill(blocked.all(dim=-1, keepdim=True), 0.0)  # [1|B, 1|H, 1|N, 1]
        return zero_padding(out, padding)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        """The mechanism: q, k, v [B, H, N, D] -> [B, H, N, D] in the dtype of v.

        Pads hold finite numbers, and must not be attended to. Rows of pads, and rows with nothing to attend to, may
        come out as anything finite with a finite gradient. No output or gradient of an example may depend on another
        example, NaN and Inf included. Softmax, feature maps, hashes and normalisers are computed in fp32 at least.
        """
        raise NotImplementedError

    def operations(self, shape: Shape) -> tuple[Work, Work] | None:
        """What inference and training (forward and backward) must compute and move, without masks and projections.

        None where the mechanism gives no formula: `mode=bench` then has PyTorch's count alone.
        """
        return None

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


def zero_padding(x: Tensor, padding: Tensor | None) -> Tensor:
    """x [B, H, N, D] with zeros in padded rows, padding bool [B, N]: NaN and Inf go too, and so do gradients."""
    return x if padding is None else x.masked_fill(padding[:, None, :, None], 0.0)


def is_causal(pairs: Tensor) -> bool:
    """Whether pairs [..., N, N] is exactly the causal mask: every j > i blocked, everything else free."""
    length = pairs.shape[-1]
    if pairs[..., -1, :].any() or not pairs[..., 0, 1:].all():  # two rows tell most others apart
        return False
    position = torch.arange(length, device=pairs.device)
    return bool((pairs == (position > position[:, None])).all())


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


UNKNOWN = 16 * 2**30  # bytes, where a system does not tell its memory
MACHINE = (
    os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else UNKNOWN
)  # once: it can't be compiled


def memory_of(device: torch.device) -> int:
    """The memory of a device, bytes: of the card, or of the machine. A constant, so that runs decide alike."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return MACHINE if device.type == "cpu" else UNKNOWN


BLOCK_ROWS = 256  # query rows of a block, where N x N matrices do not fit
WORKING = (
    4  # matrices of a layer that exist at once beside those kept for the backward pass: scores, mask, their gradients
)


def fits(q: Tensor, layers: int = 1) -> bool:
    """Do N x N matrices in the dtype of q [B, H, N, D], one kept by each of `layers`, fit into half the memory of a
    card, or a quarter of the machine's, which other jobs use too?
    """
    batch, heads, length, _ = q.shape
    share = 4 if q.device.type == "cpu" else 2
    matrix = batch * heads * length * length * q.element_size()
    return matrix * (layers + WORKING) <= memory_of(q.device) // share


def by_query_blocks(attend: Callable[[Tensor, int], Tensor], q: Tensor, layers: int = 1) -> Tensor:
    """attend(rows of q [B, H, N, D], the first of them) -> [B, H, rows, D], for all rows at once where N x N matrices
    fit, else for blocks of BLOCK_ROWS: joined to [B, H, N, D].

    Each block is computed again in the backward pass, so that nothing of size N x N outlives its block.
    """
    if fits(q, layers):
        return attend(q, 0)
    outputs, start = [], 0
    for block in q.split(BLOCK_ROWS, dim=2):
        outputs.append(checkpoint(attend, block, start, use_reentrant=False, preserve_rng_state=False))
        start += block.shape[2]
    return torch.cat(outputs, dim=2)

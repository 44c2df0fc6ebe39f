"""The base of every attention mechanism: the contract, the masks, and helpers for clipped distances.

A mechanism is a subclass of `Attention` with one method, `attend`. `Attention.forward` does what all of them share.
Letters: B batch, H heads, N tokens, D head dimension, W window of the relative bias.
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

HEADROOM = 16.0  # fp16 ends at 65,504, which q.k may exceed: its products are computed divided by this factor


@dataclass(frozen=True, eq=False)
class Masks:
    """Which tokens a query may attend to, and the position encoding. Create it with `Masks.make`.

    padding: bool [B, N], True = a padding token, to which no query attends.
    pairs: bool [1|B, 1|H, N, N], True = query i (row) may not attend to key j (column).
    bias: [H, 2W+1], adds bias[h, clip(j - i, -W, W) + W] to the logit of query i and key j.
    rotate: the rotary embedding [B, H, N, D] -> [B, H, N, D], given only where the mechanism `wants_unrotated`.
    causal: `pairs` is exactly the causal mask: every j > i blocked, everything else free.
    finite: the caller (the encoder) promises that padding tokens hold finite numbers, and does not read their output;
        so neither is set to zero.
    layers: how many layers keep tensors for one backward pass; it decides whether N x N matrices fit (`fits`).
    context: values that a layer shares with later layers in one forward pass of the encoder.
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

        Raises TypeError where a mask is not bool, ValueError where attn_mask has another rank. With an attn_mask it
        waits for the device once, to test whether the mask is causal.
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
        """make(), called by the first layer of a forward pass and shared by the others; compiled, by each layer."""
        if key not in self.context or is_compiling():
            self.context[key] = make()
        return self.context[key]

    def blocked(self, rows: slice = slice(None)) -> Tensor | None:
        """Padding and pairs as one mask for some query rows: bool [1|B, 1|H, 1|rows, N], True = may not be attended."""
        pairs = None if self.pairs is None else self.pairs[:, :, rows]
        if self.padding is None:
            return pairs
        pads = self.padding[:, None, None, :]
        return pads if pairs is None else pads | pairs


class Attention(nn.Module):
    """One attention mechanism of one layer: hyperparameters and random buffers, and trained weights if it has any.

    `ties_qk`: the mechanism has one projection for queries and keys; the caller then passes k = q.
    `wants_unrotated`: the caller passes q and k before the rotary embedding, and the rotation as `masks.rotate`.
    `reads_qk`: false where the mechanism does not use q and k; the caller then passes v, without projections.
    `path`: which implementation the last call used, where there are several ("whole", "blocks", "fused").
    """

    ties_qk: bool = False
    wants_unrotated: bool = False
    reads_qk: bool = True
    path: str | None = None

    def __init__(self, *, num_heads: int, head_dim: int, layer: int, seed: int) -> None:
        """Stores the shape; subclasses add their hyperparameters."""
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.layer = layer
        self.seed = seed

    def forward(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks | None = None) -> Tensor:
        """`attend` with what all mechanisms share: q, k, v [B, H, N, D] -> [B, H, N, D] in the dtype of v.

        Padding tokens are set to zero before and after, so that NaN and Inf in them reach nothing, unless
        `masks.finite`. A row with nothing to attend to is zero. Runs outside autocast, in the dtype of q, k, v.
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

        Padding tokens hold finite numbers, and must not be attended to. Their output, and that of rows with nothing to
        attend to, may be anything finite with a finite gradient. No output or gradient of an example may depend on
        another example, NaN and Inf included. Softmax, feature maps, hashes and normalisers are computed in fp32 at
        least.
        """
        raise NotImplementedError

    def operations(self, shape: Shape) -> tuple[Work, Work] | None:
        """The work of inference and of training (forward and backward), without masks and projections.

        Optional: None where the mechanism gives no formula; `mode=bench` then shows only PyTorch's count.
        """
        return None

    def redraw(self, generator: torch.Generator) -> None:
        """Draws new random buffers from `generator`; does nothing where there are none."""


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
    if pairs[..., -1, :].any() or not pairs[..., 0, 1:].all():  # two rows suffice to reject most other masks
        return False
    position = torch.arange(length, device=pairs.device)
    return bool((pairs == (position > position[:, None])).all())


def distance_matrix(bias: Tensor, *, rows: int, columns: int, offset: int = 0) -> Tensor:
    """The clipped relative bias as a matrix: [H, 2W+1] -> [H, rows, columns], with
    out[h, i, j] = bias[h, clip(j - i + offset, -W, W) + W].

    A gather per entry would have a slow gradient, a scatter of rows x columns values. Instead one vector holds all
    diagonals. It is repeated, and read as rows that are one entry shorter; so each row is shifted by one, and the
    gradient is a plain sum.
    """
    window = bias.shape[-1] // 2
    size = columns + rows
    distance = torch.arange(size, device=bias.device)
    distance = torch.where(distance < columns, distance, distance - size) + offset  # 0 .. columns-1, -rows .. -1
    diagonals = bias.index_select(1, distance.clamp(-window, window) + window)  # [H, size]
    repeated = diagonals[:, None, :].expand(-1, rows, -1).reshape(-1, rows * size)
    return repeated[:, : rows * (size - 1)].view(-1, rows, size - 1)[:, :, :columns]


UNKNOWN = 16 * 2**30  # bytes, assumed where a system does not report its memory
# Once: it can't be compiled
MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else UNKNOWN


def memory_of(device: torch.device) -> int:
    """The total memory of the GPU or of the machine, bytes. It is constant, so that all runs decide alike."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return MACHINE if device.type == "cpu" else UNKNOWN


BLOCK_ROWS = 256  # query rows of a block, where N x N matrices do not fit
WORKING = (
    4  # matrices of a layer that exist at once beside those kept for the backward pass: scores, mask, their gradients
)


def fits(q: Tensor, layers: int = 1) -> bool:
    """Whether N x N matrices in the dtype of q [B, H, N, D], one kept by each of `layers`, fit into memory.

    They may take half the memory of a GPU, or a quarter of the machine's, which other jobs use too.
    """
    batch, heads, length, _ = q.shape
    share = 4 if q.device.type == "cpu" else 2
    matrix = batch * heads * length * length * q.element_size()
    return matrix * (layers + WORKING) <= memory_of(q.device) // share


def by_query_blocks(attend: Callable[[Tensor, int], Tensor], q: Tensor, layers: int = 1) -> Tensor:
    """Calls attend(rows of q, number of the first row) -> [B, H, rows, D] and joins the results to [B, H, N, D].

    All rows at once where N x N matrices fit, else BLOCK_ROWS rows at a time. Each block is computed again in the
    backward pass, so that nothing of size N x N is kept.
    """
    if fits(q, layers):
        return attend(q, 0)
    outputs, start = [], 0
    for block in q.split(BLOCK_ROWS, dim=2):
        outputs.append(checkpoint(attend, block, start, use_reentrant=False, preserve_rng_state=False))
        start += block.shape[2]
    return torch.cat(outputs, dim=2)

"""Sliding-window attention: exact softmax over the tokens at most `window` away, and nothing beyond. A control.

What the approximations must beat: text is local, and this sees what is local exactly, in linear time and memory.
Letters: B batch, H heads, N tokens, D head width, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xcls.attention.base import (
    Attention,
    broken_sequences,
    check_attn_mask,
    distance_matrix,
    isolated,
    spoiled,
    zero_padding,
)
from xcls.attention.chunks import chunk_count, from_chunks, mask_windows, outside_windows, to_chunks, windows
from xcls.attention.sdpa import dense_softmax, softmax_rows


def beyond(rows: int, columns: int, window: int, offset: int, device: torch.device) -> Tensor:
    """Whether |j - i + offset| > window, bool [rows, columns]."""
    distance = torch.arange(columns, device=device) - torch.arange(rows, device=device)[:, None] + offset
    return distance.abs() > window


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    relative_bias: Tensor | None = None,
) -> Tensor:
    """softmax over |i - j| <= window: q, k, v [B, H, N, D] -> [B, H, N, D].

    Masks and bias as in `Attention.forward`. Chunks of `window` tokens each meet themselves and their two neighbours.
    """
    batch, heads, length, width = q.shape
    attn_mask = check_attn_mask(attn_mask)
    chunk = min(window, length)
    shape = (batch, heads, chunk_count(length, chunk, 1))
    bias = None
    if relative_bias is not None:
        bias = distance_matrix(relative_bias, rows=chunk, columns=3 * chunk, offset=-chunk)[:, None]  # [H, 1, C, 3C]
    blocked = beyond(chunk, 3 * chunk, window, -chunk, q.device) | outside_windows(key_padding_mask, q, chunk, 1)
    if attn_mask is not None:
        blocked = blocked | mask_windows(attn_mask, chunk, 1)  # [1|B, 1|H, chunks, C, 3C]
    # The empty chunk behind a sequence sees the next one, which gradients alone could tell: its own output is dropped.
    broken = broken_sequences(key_padding_mask, q, k, v) if torch.is_grad_enabled() else None
    q, k, v = (to_chunks(isolated(zero_padding(x, key_padding_mask), broken), chunk, 1) for x in (q, k, v))
    k, v = (windows(x, 1).view(*shape, 3 * chunk, width) for x in (k, v))
    out = softmax_rows(q.view(*shape, chunk, width), k, v, blocked=blocked, bias=bias)
    return zero_padding(spoiled(from_chunks(out, batch, heads, length), broken), key_padding_mask)


class Window(Attention):
    """Sliding-window attention; see `window_attention`."""

    def __init__(self, *, num_heads: int, head_dim: int, layer: int, seed: int, window: int = 64) -> None:
        """window: the distance up to which a token sees others, on either side."""
        super().__init__(num_heads=num_heads, head_dim=head_dim, layer=layer, seed=seed)
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self.window = window

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
        return window_attention(
            q,
            k,
            v,
            window=self.window,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            relative_bias=relative_bias,
        )

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
        """The whole softmax with distant pairs blocked: [B, H, N, D] -> [B, H, N, D]."""
        distant = beyond(q.shape[2], q.shape[2], self.window, 0, q.device)[None, None]
        attn_mask = check_attn_mask(attn_mask)
        return dense_softmax(
            q,
            k,
            v,
            key_padding_mask=key_padding_mask,
            attn_mask=distant if attn_mask is None else distant | attn_mask,
            relative_bias=relative_bias,
        )

    def operations(self, shape: Any) -> tuple[tuple[float, float], tuple[float, float]]:
        """Operations and bytes of inference and of training: q k^T and p v over three chunks, twice that backward.

        Of whole chunks, the empty one behind the tokens included.
        """
        chunk = min(self.window, shape.length)
        slots = shape.batch * shape.heads * chunk_count(shape.length, chunk, 1) * chunk
        products, moved = 4.0 * slots * 3 * chunk * shape.head_dim, 4.0 * shape.itemsize * shape.vectors
        return (products, moved), (3 * products, 3 * moved)

"""Multi-head attention: projections, split and merge of heads, around any mechanism of `xcls.attention`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xcls.attention.base import Attention, Masks
from xcls.model.linear import Linear
from xcls.position import rope_triton
from xcls.position.rope import Rotation


class MultiHeadAttention(nn.Module):
    """Projects to heads, applies the mechanism, merges the heads, projects back (Vaswani et al. 2017, 3.2.2).

    A mechanism that ties q and k has no key projection, and one that reads neither has no projection of q and k; so no
    unused parameters are counted. There is no dropout on attention probabilities: linear and hashed attention have no
    such matrix, and all mechanisms are trained alike.
    """

    def __init__(self, *, embed_dim: int, num_heads: int, attention: Attention) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide embed_dim={embed_dim}")
        self.num_heads = num_heads
        self.attention = attention
        self.q_proj = Linear(embed_dim, embed_dim) if attention.reads_qk else None
        self.k_proj = Linear(embed_dim, embed_dim) if attention.reads_qk and not attention.ties_qk else None
        self.v_proj = Linear(embed_dim, embed_dim)
        self.out_proj = Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, masks: Masks | None = None, *, rows: Tensor | None = None) -> Tensor:
        """x [B, N, E] -> [B, N, E], or [K, E] for the tokens `rows` [K] of the B * N.

        `masks.rotate` is applied here unless the mechanism does it itself. Raises ValueError if the output of the
        mechanism has another shape than v.
        """
        masks = Masks() if masks is None else masks
        rotates = masks.rotate is not None and not self.attention.wants_unrotated
        *qk, v = self._heads(x, masks.rotate if rotates else None)
        masks = masks.with_(rotate=None) if rotates else masks
        q, k = qk if len(qk) == 2 else (*qk, *qk) if qk else (v, v)
        out = self.attention(q, k, v, masks)
        if out.shape != v.shape:
            name = f"{type(self.attention).__module__}.{type(self.attention).__name__}"
            raise ValueError(f"{name}: its output is {list(out.shape)}, and must be of the shape of v, {list(v.shape)}")
        out = out.transpose(1, 2).flatten(2)  # [B, H, N, D] -> [B, N, E]
        return self.out_proj(out if rows is None else out.flatten(0, 1).index_select(0, rows))

    def _heads(self, x: Tensor, rotate: Callable[[Tensor], Tensor] | None) -> list[Tensor]:
        """Those of q, k, v that the mechanism reads, q and k rotated: x [B, N, E] -> [B, H, N, D] each.

        One matrix product computes all, so that x is read once and its gradient is summed within the product. Layers
        with hooks (the search for the first non-finite number sets them) are computed one by one.
        """
        layers = [layer for layer in (self.q_proj, self.k_proj, self.v_proj) if layer is not None]
        if any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers):
            parts = [layer(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for layer in layers]
        else:
            weight, bias = (torch.cat(parts) for parts in zip(*[layer.operands for layer in layers]))
            projected = F.linear(x, weight, bias).unflatten(2, (len(layers), self.num_heads, -1))  # [B, N, 1..3, H, D]
            if rope_triton.available(projected) and isinstance(rotate, (Rotation, type(None))):
                cos, sin = (None, None) if rotate is None else (rotate.cos, rotate.sin)
                return list(rope_triton.split_heads(projected, cos, sin, 0 if rotate is None else len(layers) - 1))
            parts = [part.transpose(1, 2) for part in projected.unbind(2)]
        return parts if rotate is None else [*map(rotate, parts[:-1]), parts[-1]]

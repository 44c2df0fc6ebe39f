"""Multi-head attention: the projections and the head split around any mechanism of `xcls.attention`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from torch import Tensor, nn

if TYPE_CHECKING:
    from xcls.attention.base import Attention

Rotate = Callable[[Tensor], Tensor]


class MultiHeadAttention(nn.Module):
    """Projects to heads, applies the mechanism, merges the heads, projects back (Vaswani et al. 2017, 3.2.2).

    A mechanism that ties q and k gets no key projection, and one that reads neither gets none at all, so that parameter
    counts are true. There is no dropout on attention probabilities: linear and hashed attention have no such matrix,
    and one recipe must fit all of them.
    """

    def __init__(self, *, embed_dim: int, num_heads: int, attention: Attention) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide embed_dim={embed_dim}")
        self.num_heads = num_heads
        self.attention = attention
        self.q_proj = nn.Linear(embed_dim, embed_dim) if attention.reads_qk else None
        self.k_proj = nn.Linear(embed_dim, embed_dim) if attention.reads_qk and not attention.ties_qk else None
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(
        self,
        x: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        relative_bias: Tensor | None = None,
        rotate: Rotate | None = None,
        context: dict[str, Any] | None = None,
    ) -> Tensor:
        """x [B, N, E] -> [B, N, E]. Masks are True where nothing may be attended: [B, N], and [N, N] or [B, 1|H, N, N].

        `relative_bias` [H, 2W+1] is this layer's; `rotate` maps [B, H, N, D] to the same shape; `context` is shared by
        the layers of one forward pass.
        """
        v = self._split(self.v_proj(x))
        q = v if self.q_proj is None else self._split(self.q_proj(x))
        rotate_here = None if self.attention.wants_unrotated else rotate
        if self.q_proj is None:
            k = v
        elif self.k_proj is None:
            q = k = q if rotate_here is None else rotate_here(q)
        else:
            k = self._split(self.k_proj(x))
            if rotate_here is not None:
                q, k = rotate_here(q), rotate_here(k)
        out = self.attention(
            q,
            k,
            v,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            relative_bias=relative_bias,
            rotate=rotate if self.attention.wants_unrotated else None,
            context=context,
        )
        return self.out_proj(out.transpose(1, 2).flatten(2))  # [B, H, N, D] -> [B, N, E]

    def _split(self, x: Tensor) -> Tensor:
        """[B, N, E] -> [B, H, N, D]."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

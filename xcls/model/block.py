"""One block of the encoder: attention and feed-forward, each with a norm and a residual."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from xcls.model.dropout import Dropout
from xcls.model.linear import Linear
from xcls.model.multihead import MultiHeadAttention

if TYPE_CHECKING:
    from xcls.attention.base import Attention, Masks


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them (Hendrycks & Gimpel 2016).

    gated: GeGLU (Shazeer 2020, section 2), whose width is 2/3 of `feed_forward`, so the parameter count stays the same.
    """

    def __init__(self, *, embed_dim: int, feed_forward: int, gated: bool = False) -> None:
        super().__init__()
        hidden = max(1, round(feed_forward * 2 / 3)) if gated else feed_forward
        self.gate = Linear(embed_dim, hidden) if gated else None
        self.up = Linear(embed_dim, hidden)
        self.down = Linear(hidden, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, E] -> [B, N, E]."""
        return self.down(F.gelu(self.up(x)) if self.gate is None else F.gelu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention and feed-forward with residuals; a norm before each (`pre`) or after each residual (`post`: BERT)."""

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        feed_forward: int,
        norm: str,
        activation: str,
        dropout: float,
        attention: Attention,
    ) -> None:
        super().__init__()
        if norm not in ("pre", "post") or activation not in ("gelu", "geglu"):
            raise ValueError(f"norm={norm}, activation={activation}: pre or post, gelu or geglu are known")
        self.pre_norm = norm == "pre"
        self.attention = MultiHeadAttention(embed_dim=embed_dim, num_heads=num_heads, attention=attention)
        self.feed_forward = FeedForward(embed_dim=embed_dim, feed_forward=feed_forward, gated=activation == "geglu")
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.feed_forward_norm = nn.LayerNorm(embed_dim)
        self.dropout = Dropout(rate=dropout)

    def forward(self, x: Tensor, masks: Masks | None = None, *, rows: Tensor | None = None) -> Tensor:
        """x [B, N, E] -> [B, N, E]; masks and rows are those of `MultiHeadAttention.forward`.

        With `rows` [K] the result is [K, E]: after the attention, each token is computed by itself.
        """
        whole = x
        attended = self.attention(self.attention_norm(x) if self.pre_norm else x, masks, rows=rows)
        if rows is not None:
            x = x.flatten(0, 1).index_select(0, rows)
        x = _sum(x, self.dropout(attended, rows, whole))
        if self.pre_norm:
            return _sum(x, self.dropout(self.feed_forward(self.feed_forward_norm(x)), rows, whole))
        x = self.attention_norm(x)
        return self.feed_forward_norm(_sum(x, self.dropout(self.feed_forward(x), rows, whole)))


def _sum(x: Tensor, y: Tensor) -> Tensor:
    """x + y in the dtype of x, both [..., E]. On a CPU, a sum of two dtypes is three times as slow as cast and sum."""
    return x + (y.to(x.dtype) if x.device.type == "cpu" else y)

"""The encoder: token ids to one vector per token, with any attention and any position encoding."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xcls.attention.base import Masks
from xcls.config.schema import UserError
from xcls.model.block import Block
from xcls.model.dropout import Dropout
from xcls.model.linear import cast_weights
from xcls.model.weights import initialise

if TYPE_CHECKING:
    from xcls.attention.base import Attention
    from xcls.position.base import Position


class Encoder(nn.Module):
    """Embeddings, then blocks. `make_attention(layer)` is called once per layer, so that layers share no instance.

    `gradient_checkpointing` recomputes each block in the backward pass (Chen et al. 2016): less memory, more time, the
    same gradients.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        seq_len: int,
        num_layers: int,
        embed_dim: int,
        num_heads: int,
        feed_forward: int,
        norm: str,
        activation: str,
        dropout: float,
        position: Position,
        make_attention: Callable[[int], Attention],
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.seq_len = seq_len
        self.embed_dim = embed_dim
        self.gradient_checkpointing = gradient_checkpointing
        self.token_embedding = nn.Embedding(vocab_size, embed_dim)
        self.embedding_norm = nn.LayerNorm(embed_dim)
        self.dropout = Dropout(rate=dropout)
        self.blocks: Any = nn.ModuleList(
            Block(
                embed_dim=embed_dim,
                num_heads=num_heads,
                feed_forward=feed_forward,
                norm=norm,
                activation=activation,
                dropout=dropout,
                attention=make_attention(layer),
            )
            for layer in range(num_layers)
        )
        self.final_norm = nn.LayerNorm(embed_dim) if norm == "pre" else nn.Identity()
        initialise(self)
        self.position = position  # after `initialise`, as it initialises its own parameters

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """input_ids [B, N], attention_mask bool [B, N] (True = real token; None: nothing is padded) -> [B, N, E].

        `attn_mask` ([N, N] or [B, 1|H, N, N], True = may not be attended) goes to every layer. Rows of padding are
        finite and do not change other rows. With `rows` [K], numbers of B * N tokens, the result is [K, E]: only these
        tokens, which saves work in the last layer. Raises UserError when N is greater than `seq_len`.
        """
        length = input_ids.shape[1]
        if length > self.seq_len:
            raise UserError(
                f"A sequence of {length} tokens is longer than the limit of {self.seq_len}. "
                f"Set seq_len={length} or more, or let the texts be truncated."
            )
        padding = None if attention_mask is None else ~attention_mask
        x = self.position.embed(self.token_embedding(input_ids))
        if padding is not None:  # removes NaN and Inf in the embedding of [PAD]
            x = x.masked_fill(padding.unsqueeze(-1), 0.0)
        x = self.dropout(self.embedding_norm(x))
        recomputes = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        masks = Masks.make(
            key_padding_mask=padding,
            attn_mask=attn_mask,
            rotate=self.position.rotation(length, x.device),
            finite=True,
            layers=len(self.blocks) if torch.is_grad_enabled() and not recomputes else 1,
        )
        with self._weights(x, recomputes):
            x = self._blocks(x, masks, rows, recomputes)
        return self.final_norm(x)

    def _blocks(self, x: Tensor, masks: Masks, rows: Tensor | None, recomputes: bool) -> Tensor:
        for layer, block in enumerate(self.blocks):
            masks = masks.with_(bias=self.position.bias(layer))
            last = rows if layer == len(self.blocks) - 1 else None
            x = _recomputed(block, x, masks, last) if recomputes else block(x, masks, rows=last)
        return x

    def _weights(self, x: Tensor, recomputes: bool) -> AbstractContextManager[None]:
        """On a GPU, casts all weights of the blocks to the dtype of autocast at once.

        Compiled or recomputed blocks cast their weights themselves.
        """
        compiled = getattr(self.blocks[0], "_compiled_call_impl", None) is not None
        if x.device.type == "cpu" or recomputes or compiled:
            return nullcontext()
        return cast_weights(self.blocks, (x.new_empty(1, 0) @ x.new_empty(0, 1)).dtype)

    def redraw(self, generator: torch.Generator) -> None:
        """Draws new random features or rotations for every layer, in order, from one CPU generator."""
        for block in self.blocks:
            block.attention.attention.redraw(generator)


def _recomputed(block: Block, x: Tensor, masks: Masks, rows: Tensor | None) -> Tensor:
    """`block` under gradient checkpointing, x [B, N, E] -> [B, N, E].

    The recomputation starts from `masks.context` as it was before this layer; later layers have changed it since.
    """
    before = dict(masks.context)

    def run(hidden: Tensor) -> Tensor:
        inner = masks.with_(context=dict(before))
        out = block(hidden, inner, rows=rows)
        masks.context.update(inner.context)
        return out

    return checkpoint(run, x, use_reentrant=False)

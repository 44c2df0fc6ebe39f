"""The initial weights of a model."""

from __future__ import annotations

import zlib

import torch
from torch import nn

STD = 0.02  # BERT (Devlin et al. 2019)


def initialise(module: nn.Module) -> None:
    """Fills the linear layers, embeddings and norms of `module` as BERT does: normal with 0.02, biases 0, norms 1.

    Each weight depends only on `torch.initial_seed()` and its name, not on earlier draws. So models with different
    attention, with or without a key projection, start with the same weights in all layers that they share.
    """
    for name, child in module.named_modules():
        if isinstance(child, (nn.Linear, nn.Embedding)):
            seed = (torch.initial_seed() * 1_000_003 + zlib.crc32(name.encode())) % 2**63
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                child.weight.copy_(torch.randn(child.weight.shape, generator=generator) * STD)
        if isinstance(child, nn.LayerNorm):
            nn.init.ones_(child.weight)
        if isinstance(child, (nn.Linear, nn.LayerNorm)) and child.bias is not None:
            nn.init.zeros_(child.bias)

"""Adapters for other implementations of the same mechanisms, with our settings and one common interface.

A package is imported when its adapter is built, so if one is missing, only its rows fail.

Letters: B batch, H heads, N tokens, D head dimension, E model width.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, Callable

from torch import Tensor, nn

PERFORMER, REFORMER = "xcls.attention.favor.Performer", "xcls.attention.lsh.Reformer"
FEATURES, BUCKET = 128, 64  # num_features and bucket_size of all adapters


@dataclass(frozen=True)
class Rival:
    """One implementation. `parts`: module or core -> its node; `rival_of`: `_target_` and settings of our mechanism."""

    name: str
    package: str
    parts: dict[str, dict[str, Any]]
    rival_of: dict[str, Any]

    @property
    def installed(self) -> bool:
        """Is its package installed?"""
        return importlib.util.find_spec(self.package.replace("-", "_")) is not None


def performer_module(*, width: int, num_heads: int, num_features: int) -> nn.Module:
    """performer-pytorch's SelfAttention, with its projections: x [B, N, E] -> [B, N, E]."""
    from performer_pytorch import SelfAttention

    return SelfAttention(width, heads=num_heads, dim_head=width // num_heads, nb_features=num_features)


def performer_core(*, width: int, num_heads: int, num_features: int) -> nn.Module:
    """performer-pytorch's FastAttention: q, k, v [B, H, N, D] -> [B, H, N, D]."""
    from performer_pytorch import FastAttention

    return FastAttention(width // num_heads, nb_features=num_features)


def reformer_module(*, width: int, num_heads: int, bucket_size: int, num_hashes: int) -> nn.Module:
    """reformer-pytorch's LSHSelfAttention, with its projections: x [B, N, E] -> [B, N, E]."""
    from reformer_pytorch import LSHSelfAttention

    return LSHSelfAttention(width, heads=num_heads, bucket_size=bucket_size, n_hashes=num_hashes)


class ReformerCore(nn.Module):
    """reformer-pytorch's LSHAttention."""

    ties_qk = True

    def __init__(self, *, width: int, num_heads: int, bucket_size: int, num_hashes: int) -> None:
        super().__init__()
        from reformer_pytorch import LSHAttention

        self.inner = LSHAttention(bucket_size=bucket_size, n_hashes=num_hashes)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, v [B, H, N, D] -> [B, H, N, D]. k equals q and is not read."""
        return self.inner(q.flatten(0, 1), v.flatten(0, 1))[0].view(q.shape)


class TransformersModule(nn.Module):
    """transformers' LSHSelfAttention with an output projection, which is another class there."""

    def __init__(self, *, width: int, num_heads: int, bucket_size: int, num_hashes: int) -> None:
        super().__init__()
        from transformers import ReformerConfig
        from transformers.models.reformer.modeling_reformer import LSHSelfAttention

        config = ReformerConfig(
            hidden_size=width,
            num_attention_heads=num_heads,
            attention_head_size=width // num_heads,
            lsh_attn_chunk_length=bucket_size,
            num_hashes=num_hashes,
            num_buckets=None,  # chosen from the length, as its documentation recommends
            lsh_attention_probs_dropout_prob=0.0,
            hash_seed=None,
            is_decoder=False,
            max_position_embeddings=16_384,
            axial_pos_embds=False,
        )
        self.inner = LSHSelfAttention(config)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, E] -> [B, N, E]."""
        return self.out_proj(self.inner(hidden_states=x).hidden_states)


def rivals() -> list[Rival]:
    """All known implementations, installed or not; LSH with one and with four hash rounds."""

    def made(name: str, package: str, target: str, settings: dict[str, int], *adapters: Callable[..., Any]) -> Rival:
        nodes = [{"_target_": f"{__name__}.{adapter.__name__}", **settings} for adapter in adapters]
        return Rival(name, package, dict(zip(("module", "core"), nodes)), {"_target_": target, **settings})

    package, settings = "performer-pytorch", {"num_features": FEATURES}
    found = [made(package, package, PERFORMER, settings, performer_module, performer_core)]
    for rounds, word in ((1, "1 round"), (4, "4 rounds")):
        package, settings = "reformer-pytorch", {"bucket_size": BUCKET, "num_hashes": rounds}
        found.append(made(f"{package}, {word}", package, REFORMER, settings, reformer_module, ReformerCore))
        found.append(made(f"transformers LSH, {word}", "transformers", REFORMER, settings, TransformersModule))
    return found


def rivals_of(node: dict[str, Any]) -> list[str]:
    """The names of the implementations with the same mechanism and settings as our node."""
    return [rival.name for rival in rivals() if rival.rival_of.items() <= node.items()]

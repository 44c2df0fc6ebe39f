"""Other implementations of the same mechanisms, at the settings of ours, behind one constructor and one call.

Each adapter imports its package when it is built, so that a missing one costs a row and not the bench. Letters: B
batch, H heads, N tokens, D head width, E model width.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

PERFORMER, REFORMER = "xcls.attention.favor.Performer", "xcls.attention.lsh.Reformer"
FEATURES, BUCKET = 128, 64  # of all of them


@dataclass(frozen=True)
class Other:
    """One implementation. `rival_of`: the `_target_` and settings of ours that it is compared with."""

    name: str
    package: str
    parts: dict[str, dict[str, Any]]  # part -> node
    rival_of: dict[str, Any]

    @property
    def installed(self) -> bool:
        """Whether its package can be found."""
        return importlib.util.find_spec(self.package.replace("-", "_")) is not None


class PerformerModule(nn.Module):
    """performer-pytorch's SelfAttention, with its projections."""

    ties_qk = False

    def __init__(self, *, width: int, num_heads: int, num_features: int) -> None:
        super().__init__()
        from performer_pytorch import SelfAttention

        head_dim = width // num_heads
        self.inner = SelfAttention(width, heads=num_heads, dim_head=head_dim, nb_features=num_features)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, E] -> [B, N, E]."""
        return self.inner(x)


class PerformerCore(nn.Module):
    """performer-pytorch's FastAttention."""

    ties_qk = False

    def __init__(self, *, width: int, num_heads: int, num_features: int) -> None:
        super().__init__()
        from performer_pytorch import FastAttention

        self.inner = FastAttention(width // num_heads, nb_features=num_features)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [B, H, N, D] -> [B, H, N, D]."""
        return self.inner(q, k, v)


class ReformerModule(nn.Module):
    """reformer-pytorch's LSHSelfAttention, with its projections."""

    ties_qk = True

    def __init__(self, *, width: int, num_heads: int, bucket_size: int, num_hashes: int) -> None:
        super().__init__()
        from reformer_pytorch import LSHSelfAttention

        self.inner = LSHSelfAttention(width, heads=num_heads, bucket_size=bucket_size, n_hashes=num_hashes)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, E] -> [B, N, E]."""
        return self.inner(x)


class ReformerCore(nn.Module):
    """reformer-pytorch's LSHAttention."""

    ties_qk = True

    def __init__(self, *, width: int, num_heads: int, bucket_size: int, num_hashes: int) -> None:
        super().__init__()
        from reformer_pytorch import LSHAttention

        self.inner = LSHAttention(bucket_size=bucket_size, n_hashes=num_hashes)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (k is the same, and is not read), v [B, H, N, D] -> [B, H, N, D]."""
        out, _, _ = self.inner(q.flatten(0, 1), v.flatten(0, 1))
        return out.view(q.shape)


class TransformersModule(nn.Module):
    """transformers' LSHSelfAttention, with the output projection that it leaves to another class."""

    ties_qk = True

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
            num_buckets=None,  # set by the length, as its documentation recommends
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


def _node(adapter: type[nn.Module], settings: dict[str, int]) -> dict[str, Any]:
    return {"_target_": f"{__name__}.{adapter.__name__}", **settings}


def _reformers() -> list[Other]:
    """The two LSH implementations at one and at four rounds."""
    found = []
    for rounds, word in ((1, "1 round"), (4, "4 rounds")):
        settings = {"bucket_size": BUCKET, "num_hashes": rounds}
        rival = {"_target_": REFORMER, **settings}
        parts = {"module": _node(ReformerModule, settings), "core": _node(ReformerCore, settings)}
        found.append(Other(f"reformer-pytorch, {word}", "reformer-pytorch", parts, rival))
        parts = {"module": _node(TransformersModule, settings)}
        found.append(Other(f"transformers LSH, {word}", "transformers", parts, rival))
    return found


def others() -> list[Other]:
    """Every implementation that the bench knows, installed or not."""
    settings = {"num_features": FEATURES}
    parts = {"module": _node(PerformerModule, settings), "core": _node(PerformerCore, settings)}
    performer = Other("performer-pytorch", "performer-pytorch", parts, {"_target_": PERFORMER, **settings})
    return [performer, *_reformers()]


def rivals(node: dict[str, Any]) -> list[str]:
    """The names of the implementations that a node of ours is compared with: same mechanism, same settings."""
    return [other.name for other in others() if all(node.get(key) == value for key, value in other.rival_of.items())]

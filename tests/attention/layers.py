"""What the tests of the contract share: every mechanism of conf/attention within its smallest surroundings, and
masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch

from tests.attention.oracles import oracle as dense
from tests.samples import ATTENTIONS, POSITIONS, from_yaml  # noqa: F401 - POSITIONS: for the tests
from xcls.attention import base
from xcls.attention.base import Attention, Masks
from xcls.position.base import Position

HEADS, WIDTH = 2, 4
DEVICE = torch.device("cpu")  # where layers compute; the tests' own tensors stay on the CPU
# So that a dozen tokens already fill several chunks, where a mechanism has such a setting.
SMALL = {"bucket_size": 4, "chunk_size": 4, "num_features": 8, "num_hashes": 2, "window": 3}
BLOCKS = ":blocks"  # ends the name of a mechanism whose N x N matrices do not fit, so that it takes blocks of four rows
PATHS = ATTENTIONS + [name + BLOCKS for name in ATTENTIONS if name.startswith(("sdpa", "performer", "mean"))]


def build(group: str, file: str | type, small: bool = True, **facts: Any) -> Any:
    """The object of conf/<group>/<file>.yaml, with the sizes of SMALL; or of a class that has no file."""
    kind, values = (file, {}) if isinstance(file, type) else from_yaml(group, file)
    return kind(**values | ({key: SMALL[key] for key in values if key in SMALL} if small else {}) | facts)


@contextmanager
def in_blocks() -> Iterator[None]:
    """Here no N x N matrix fits, and a block has four rows."""
    with patch.object(base, "memory_of", lambda device: 0), patch.object(base, "BLOCK_ROWS", 4):
        yield


class Layer(torch.nn.Module):
    """Embedding with positions, fixed projections, attention: what stands around a mechanism, at its smallest."""

    def __init__(
        self,
        attention_file: str | type,
        position_file: str,
        *,
        seq_len: int = 160,
        small: bool = True,
        width: int = WIDTH,
        **changes: Any,
    ) -> None:
        """changes: other settings of the mechanism."""
        super().__init__()
        self.device = DEVICE
        self.width, self.in_blocks = width, str(attention_file).endswith(BLOCKS)
        mechanism = attention_file.removesuffix(BLOCKS) if isinstance(attention_file, str) else attention_file
        torch.manual_seed(3)
        self.weights = torch.randn(3, HEADS * width, HEADS * width, dtype=torch.float64) / width**0.5
        facts = {"num_heads": HEADS, "head_dim": width}
        self.attention: Attention = build("attention", mechanism, small, **{"layer": 0, "seed": 1, **facts, **changes})
        facts |= {"embed_dim": HEADS * width, "num_layers": 1, "seq_len": seq_len}
        self.position: Position = build("position", position_file, small, **facts)
        self.weights = self.weights.to(self.device)
        self.double().to(self.device)

    def forward(self, x: torch.Tensor, *, oracle: bool = False, **masks: torch.Tensor | None) -> torch.Tensor:
        x = self.position.embed(x.to(self.device))
        shape = (*x.shape[:2], HEADS, self.width)
        q, k, v = ((x @ weight.to(x.dtype)).view(shape).transpose(1, 2) for weight in self.weights)
        k = q if self.attention.ties_qk else k
        rotate = self.position.rotation(x.shape[1], x.device)
        if rotate is not None and not self.attention.wants_unrotated:
            q, k, rotate = rotate(q), rotate(k), None
        k = q if self.attention.ties_qk else k
        masks = {name: None if mask is None else mask.to(self.device) for name, mask in masks.items()}
        given = Masks.make(relative_bias=self.position.bias(0), rotate=rotate, **masks)
        if oracle:
            return dense(self.attention, q, k, v, given).cpu()
        with in_blocks() if self.in_blocks else nullcontext():
            return self.attention(q, k, v, given).cpu()

    def outputs(self, x: torch.Tensor, **arguments) -> list[torch.Tensor]:
        """The result, and the gradients of a weighted sum of it: in x and in every weight of the position."""
        x = x.detach().clone().requires_grad_()
        inputs = [x, *self.position.parameters()]
        with in_blocks() if self.in_blocks else nullcontext():  # a block is computed again in the backward pass
            out = self(x, **arguments)
            grads = torch.autograd.grad(
                (out * weight_like(out)).sum(), inputs, allow_unused=True, materialize_grads=True
            )
        return [out.detach(), *grads]


def weight_like(out: torch.Tensor) -> torch.Tensor:
    """Weights [N, D] of a loss, the same for the same position whatever the length and the batch."""
    return torch.arange(out.shape[-2] * out.shape[-1], dtype=out.dtype).view(out.shape[-2:]).cos()


def inputs(length: int, batch: int = 2, seed: int = 0, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(batch, length, HEADS * width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def padding(length: int, *real: int) -> torch.Tensor:
    return torch.arange(length) >= torch.tensor(real)[:, None]


def masks_of(kind: str, length: int) -> dict[str, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(5)
    position = torch.arange(length)
    pads = padding(length, length - 4, length)
    causal = position > position[:, None]
    cases = {
        "none": (None, None),
        "padding": (pads, None),
        "causal": (None, causal),
        "padding+causal": (pads, causal),
        "blocks": (None, position // 5 != position[:, None] // 5),
        "random": (None, torch.rand(2, 1, length, length, generator=generator) < 0.5),
        "padding+per head": (pads, torch.rand(2, HEADS, length, length, generator=generator) < 0.5),
    }
    key_padding_mask, attn_mask = cases[kind]
    return {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask}


MASKS = ["none", "padding", "causal", "padding+causal", "blocks", "random", "padding+per head"]

"""What the tests of the contract share: every mechanism of conf/attention within its smallest surroundings, and masks."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
import yaml

from xcls.attention.base import Attention
from xcls.position.base import Position

CONF = Path(__file__).resolve().parents[2] / "conf"
ATTENTIONS = sorted(path.stem for path in (CONF / "attention").glob("*.yaml"))
POSITIONS = sorted(path.stem for path in (CONF / "position").glob("*.yaml"))
HEADS, WIDTH = 2, 4
SMALL = {  # so that a dozen tokens already fill several chunks and blocks, where a mechanism has such a setting
    "block_above": 8,
    "block_size": 4,
    "bucket_size": 4,
    "chunk_size": 4,
    "num_features": 8,
    "num_hashes": 2,
    "window": 3,
}
WHOLE = ":whole"  # ends the name of a mechanism whose N x N matrix is kept whole, as that of short texts is
BLOCKED = [name for name in ATTENTIONS if "block_above" in (CONF / "attention" / f"{name}.yaml").read_text()]
PATHS = ATTENTIONS + [name + WHOLE for name in BLOCKED]
every_attention = pytest.mark.parametrize("attention_file", ATTENTIONS)


def build(group: str, file: str, small: bool = True, **facts: int) -> torch.nn.Module:
    """The object of conf/<group>/<file>.yaml, with the sizes of SMALL; `file` may end in WHOLE."""
    file, whole = file.removesuffix(WHOLE), file.endswith(WHOLE)
    node = yaml.safe_load((CONF / group / f"{file}.yaml").read_text())
    module, _, name = node.pop("_target_").rpartition(".")
    node.pop("name")
    if small:
        node = {key: SMALL.get(key, value) for key, value in node.items()}
    if whole:
        node["block_above"] = 2**26
    return getattr(importlib.import_module(module), name)(**facts, **node)


class Layer(torch.nn.Module):
    """Embedding with positions, fixed projections, attention: what stands around a mechanism, at its smallest."""

    def __init__(
        self, attention_file: str, position_file: str, *, seq_len: int = 160, small: bool = True, width: int = WIDTH
    ) -> None:
        super().__init__()
        self.width = width
        torch.manual_seed(3)
        self.weights = torch.randn(3, HEADS * width, HEADS * width, dtype=torch.float64) / width**0.5
        self.attention: Attention = build(
            "attention", attention_file, small, num_heads=HEADS, head_dim=width, layer=0, seed=1
        )
        self.position: Position = build(
            "position",
            position_file,
            small,
            embed_dim=HEADS * width,
            num_heads=HEADS,
            head_dim=width,
            num_layers=1,
            seq_len=seq_len,
        )
        self.double()

    def forward(self, x: torch.Tensor, *, oracle: bool = False, **masks: torch.Tensor | None) -> torch.Tensor:
        x = self.position.embed(x)
        shape = (*x.shape[:2], HEADS, self.width)
        q, k, v = ((x @ weight.to(x.dtype)).view(shape).transpose(1, 2) for weight in self.weights)
        k = q if self.attention.ties_qk else k
        rotate = self.position.rotation(x.shape[1], x.device)
        if rotate is not None and not self.attention.wants_unrotated:
            q, k, rotate = rotate(q), rotate(k), None
        k = q if self.attention.ties_qk else k
        run = self.attention.oracle if oracle else self.attention
        return run(q, k, v, relative_bias=self.position.bias(0), rotate=rotate, context={}, **masks)

    def outputs(self, x: torch.Tensor, **arguments) -> list[torch.Tensor]:
        """The result, and the gradients of a weighted sum of it: in x and in every weight of the position."""
        x = x.detach().clone().requires_grad_()
        out = self(x, **arguments)
        inputs = [x, *self.position.parameters()]
        grads = torch.autograd.grad((out * weight_like(out)).sum(), inputs, allow_unused=True, materialize_grads=True)
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

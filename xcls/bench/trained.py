"""Queries, keys and values of a trained run's layers on real text: where approximations meet what they are used for.

Letters: B batch, H heads, N tokens, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from torch import Tensor, nn

from xcls.attention.base import Masks
from xcls.bench.cases import make
from xcls.bench.error import attend, error_row, errors_of, exact
from xcls.bench.worker import Channel, cause_of
from xcls.build import make_encoder
from xcls.config.renamed import current
from xcls.config.schema import Config, Size, UserError, unflatten
from xcls.data.encode import encode
from xcls.data.tokenizer import from_json
from xcls.model.encoder import Encoder
from xcls.train.checkpoint import find_checkpoint, load_for_use

DOCUMENTS, CONSIDERED = 4, 512  # the longest of the first so many training texts


@dataclass
class Caught:
    """What one layer attends with: q, k, v [B, H, N, D] before any rotation; `rotate` [B, H, N, D] -> the same, or
    None; `bias` [H, 2W+1] or None; `tied`: q and k are one projection.
    """

    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    rotate: Callable[[Tensor], Tensor] | None
    bias: Tensor | None
    tied: bool

    def rotated(self) -> tuple[Tensor, Tensor]:
        """q and k as exact attention has them."""
        return (self.q, self.k) if self.rotate is None else (self.rotate(self.q), self.rotate(self.k))

    def given(self, attention: nn.Module) -> tuple[Tensor, Tensor, Masks]:
        """q, k and settings as `MultiHeadAttention` hands them to `attention`: LSH may hash before the rotation."""
        unrotated = attention.wants_unrotated
        q, k = (self.q, self.k) if unrotated else self.rotated()
        return q, k, Masks(bias=self.bias, rotate=self.rotate if unrotated else None)


def checkpoint_of(folder: Path) -> Path:
    """The best checkpoint of a run, else the last. Raises UserError where there is none."""
    for name in ("best", "last"):
        try:
            return find_checkpoint(folder, name)
        except UserError:
            continue
    raise UserError(f"bench.trained={folder}: no checkpoint of a run there. Name the folder of a trained run.")


def load_encoder(payload: dict[str, Any]) -> tuple[Encoder, dict[str, Any]]:
    """The trained encoder of a checkpoint, and its configuration."""
    config = unflatten(current(payload["config"]))
    weights = {k.removeprefix("encoder."): v for k, v in payload["model"].items() if k.startswith("encoder.")}
    typed = Config(
        seed=config["seed"],
        seq_len=config["seq_len"],
        attention=config["attention"],
        position=config["position"],
        size=Size(**config["size"]),
    )
    encoder = make_encoder(typed, vocab_size=weights["token_embedding.weight"].shape[0])
    encoder.load_state_dict(weights)
    return encoder.eval(), config


def real_text(payload: dict[str, Any], config: dict[str, Any]) -> Tensor:
    """Ids [B, N] of the longest training texts of the run, cut to the shortest of them: no padding."""
    data = config["dataset"]
    source = make(data["source"], path=data.get("path"), text=data["text"], label=data["label"])
    texts = [text for text in source.load().train[:CONSIDERED]["text"] if text]
    encoded = encode(texts, from_json(payload["tokenizer"]), seq_len=config["seq_len"])
    rows = np.argsort(-encoded.lengths, kind="stable")[:DOCUMENTS]
    length = int(encoded.lengths[rows].min())
    return torch.from_numpy(np.stack([encoded[row][:length] for row in rows]).astype(np.int64))


@torch.no_grad()
def catch(encoder: Encoder, ids: Tensor) -> list[Caught]:
    """Runs the encoder on ids [B, N] and keeps what each layer's projections give.

    Taken at the projections and not at the mechanism, which may get q and k rotated already.
    """
    caught: list[Caught] = []

    def keep(module: Any, inputs: tuple[Any, ...]) -> None:
        x, masks = inputs

        def heads(projection: nn.Module) -> Tensor:
            return projection(x).unflatten(2, (module.num_heads, -1)).transpose(1, 2)

        v = heads(module.v_proj)
        q = v if module.q_proj is None else heads(module.q_proj)
        k = q if module.k_proj is None else heads(module.k_proj)
        caught.append(Caught(len(caught), q, k, v, masks.rotate, masks.bias, module.attention.ties_qk))

    blocks: Any = encoder.blocks
    hooks = [block.attention.register_forward_pre_hook(keep) for block in blocks]
    try:
        encoder(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return caught


def trained_inputs(folder: Path, device: str) -> tuple[list[Caught], dict[str, Any]]:
    """What the layers of the run in `folder` attend with, on its own text, and its configuration."""
    payload = load_for_use(folder, checkpoint_of(folder).name)
    encoder, config = load_encoder(payload)
    return catch(encoder.to(device), real_text(payload, config).to(device)), config


def layer_errors(node: dict[str, Any], layers: list[Caught]) -> dict[str, Any]:
    """The part of a row with the errors in each of a trained run's layers.

    One context for all layers, as in a forward pass: what a layer leaves to the next is part of the mechanism. Raises
    ValueError for a mechanism that ties q and k where the run does not.
    """
    errors, shared = [], False
    context: dict[str, Any] = {}
    for layer in layers:
        heads, width = layer.q.shape[1], layer.q.shape[3]
        attention = make(node, num_heads=heads, head_dim=width, layer=layer.layer, seed=0).to(layer.q.device)
        shared = attention.ties_qk
        if shared and not layer.tied:
            raise ValueError("it ties q and k, and the run does not")
        q, k, masks = layer.given(attention)
        out = attend(attention, q, k, layer.v, masks.with_(context=context))
        reference = exact(*layer.rotated(), layer.v, shared=shared, bias=layer.bias)
        errors.append(errors_of(out, reference, layer.v))
    by_layer = " ".join(f"{error:.4f}" for error, _ in errors)
    return {**error_row(errors, shared=shared), "error_by_layer": by_layer}


def measure_trained(channel: Channel, *, folder: str, device: str, nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A task of worker.py: the error on the q, k, v of a trained run's layers, mean and deviation over layers, fp32.

    Trained rotations are measured as they are first drawn: those of the run belong to its own mechanism. `cause`: why
    there is none.
    """
    layers, config = trained_inputs(Path(folder), device)
    about = {
        "seq_len": layers[0].q.shape[2],
        "batch": layers[0].q.shape[0],
        "position": config["position"]["name"],
        "trained_attention": config["attention"]["name"],
    }
    found = []
    for place, node in enumerate(nodes):
        channel.send("at", place)
        try:
            found.append({**about, **layer_errors(node, layers)})
        except Exception as error:
            found.append({**about, "cause": cause_of(error)})
    return found

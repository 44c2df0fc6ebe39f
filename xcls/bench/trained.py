"""The error of mechanisms on queries, keys and values of a trained model and real text.

Letters: B batch, H heads, N tokens, D head dimension.
"""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from xcls.attention.base import Attention, Masks
from xcls.bench.cases import make
from xcls.bench.error import error_row, errors_of, exact
from xcls.bench.worker import cause_of
from xcls.build import make_encoder
from xcls.config.renamed import current
from xcls.config.schema import Config, Size, UserError, unflatten
from xcls.data.encode import encode
from xcls.data.tokenizer import from_json
from xcls.model.encoder import Encoder
from xcls.model.multihead import MultiHeadAttention
from xcls.train.checkpoint import find_checkpoint, load_for_use

DOCUMENTS, CONSIDERED = 4, 512  # the DOCUMENTS longest of the first CONSIDERED training texts


class Layer(NamedTuple):
    """One layer of a trained run, and its input x [B, N, E]."""

    module: MultiHeadAttention
    x: Tensor
    masks: Masks

    def attend(self, attention: Attention, context: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Runs the layer with `attention` as its mechanism: (its output, the values), [B, H, N, D] each."""
        caught: list[tuple[Tensor, Tensor]] = []
        hook = attention.eval().register_forward_hook(lambda module, inputs, out: caught.append((out, inputs[2])))
        own, self.module.attention = self.module.attention, attention
        try:
            self.module(self.x, self.masks.with_(context=context))
        finally:
            self.module.attention = own
            hook.remove()
        return caught[0]


class Exact(Attention):
    """The exact attention that a mechanism approximates: softmax, or shared-QK softmax if it ties q and k."""

    def __init__(self, *, like: Attention) -> None:
        """like: the mechanism."""
        super().__init__(num_heads=like.num_heads, head_dim=like.head_dim, layer=like.layer, seed=0)
        self.ties_qk = like.ties_qk

    def attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        """q, k, v [B, H, N, D] -> [B, H, N, D]."""
        return exact(q, k, v, shared=self.ties_qk, bias=masks.bias)


def checkpoint_of(folder: Path) -> Path:
    """The best checkpoint of a run, else the last. Raises UserError if there is none."""
    for name in ("best", "last"):
        try:
            return find_checkpoint(folder, name)
        except UserError:
            continue
    raise UserError(f"bench.trained={folder}: this folder has no checkpoint. Name the folder of a trained run.")


def load_encoder(checkpoint: dict[str, Any]) -> tuple[Encoder, dict[str, Any]]:
    """The trained encoder of a checkpoint, and its configuration."""
    config = unflatten(current(checkpoint["config"]))
    weights = {k.removeprefix("encoder."): v for k, v in checkpoint["model"].items() if k.startswith("encoder.")}
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


def real_text(checkpoint: dict[str, Any], config: dict[str, Any]) -> Tensor:
    """Ids [B, N] of the longest training texts of the run, all cut to the shortest of them: no padding."""
    data = config["dataset"]
    source = make(data["source"], path=data.get("path"), text=data["text"], label=data["label"])
    texts = [text for text in source.load().train["text"][:CONSIDERED] if text]
    encoded = encode(texts, from_json(checkpoint["tokenizer"]), seq_len=config["seq_len"])
    rows = np.argsort(-encoded.lengths, kind="stable")[:DOCUMENTS]
    length = int(encoded.lengths[rows].min())
    return torch.from_numpy(np.stack([encoded[row][:length] for row in rows]).astype(np.int64))


@torch.no_grad()
def layers_of(encoder: Encoder, ids: Tensor) -> list[Layer]:
    """The layers of an encoder with their inputs, when it runs on ids [B, N]."""
    found: list[Layer] = []
    blocks: Any = encoder.blocks
    hooks = [
        block.attention.register_forward_pre_hook(lambda module, inputs: found.append(Layer(module, *inputs)))
        for block in blocks
    ]
    encoder(ids)
    for hook in hooks:
        hook.remove()
    return found


def trained_layers(folder: Path, device: str) -> tuple[list[Layer], dict[str, Any]]:
    """The layers of the run in `folder` on its own text, and its configuration."""
    checkpoint = load_for_use(folder, checkpoint_of(folder).name)
    encoder, config = load_encoder(checkpoint)
    return layers_of(encoder.to(device), real_text(checkpoint, config).to(device)), config


@torch.no_grad()
def layer_errors(node: dict[str, Any], layers: list[Layer]) -> dict[str, Any]:
    """The part of a row with the errors in each layer of a trained run.

    All layers share one context, as in a forward pass: values that a layer passes on are part of the mechanism. Raises
    ValueError for a mechanism that ties q and k if the run does not.
    """
    errors, shared = [], False
    context: dict[str, Any] = {}
    for number, layer in enumerate(layers):
        sizes = {"num_heads": layer.module.num_heads, "head_dim": layer.x.shape[2] // layer.module.num_heads}
        attention = make(node, **sizes, layer=number, seed=0).to(layer.x.device)
        shared = attention.ties_qk
        if shared and not layer.module.attention.ties_qk:
            raise ValueError("it ties q and k, but the run does not")
        out, v = layer.attend(attention, context)
        errors.append(errors_of(out, layer.attend(Exact(like=attention), {})[0], v))
    by_layer = " ".join(f"{error:.4f}" for error, _ in errors)
    return {**error_row(errors, shared=shared), "error_by_layer": by_layer}


def measure_trained(
    connection: Connection, *, folder: str, device: str, nodes: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """A task of worker.py: the error on q, k, v of the layers of a trained run, mean and deviation over layers, fp32.

    Trained rotations are measured at their random initial values: those of the run belong to its own mechanism.
    `cause`: why there is no error.
    """
    layers, config = trained_layers(Path(folder), device)
    about = {
        "seq_len": layers[0].x.shape[1],
        "batch": layers[0].x.shape[0],
        "position": config["position"]["name"],
        "trained_attention": config["attention"]["name"],
    }
    found = []
    for place, node in enumerate(nodes):
        connection.send(("at", place))
        try:
            found.append({**about, **layer_errors(node, layers)})
        except Exception as error:
            found.append({**about, "cause": cause_of(error)})
    return found

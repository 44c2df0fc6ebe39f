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
from xcls.bench.make import make
from xcls.config.renamed import current
from xcls.config.schema import UserError, unflatten
from xcls.data.encode import encode
from xcls.data.tokenizer import from_json
from xcls.model.encoder import Encoder
from xcls.train.checkpoint import find_checkpoint, load_for_use

DOCUMENTS, CONSIDERED = 4, 512  # the longest of the first so many training texts


@dataclass
class Caught:
    """What one layer attends with: q, k, v [B, H, N, D] before any rotation; `rotate` [B, H, N, D] -> the same, or None;
    `bias` [H, 2W+1] or None; `tied`: q and k are one projection.
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
    try:
        return find_checkpoint(folder, "best")
    except UserError:
        try:
            return find_checkpoint(folder, "last")
        except UserError as error:
            raise UserError(
                f"bench.trained={folder}: no checkpoint of a run there. Name the folder of a trained run."
            ) from error


def load_encoder(payload: dict[str, Any]) -> tuple[Encoder, dict[str, Any]]:
    """The trained encoder of a checkpoint, and its configuration."""
    config = unflatten(current(payload["config"]))
    size, seed = config["size"], config["seed"]
    weights = {k.removeprefix("encoder."): v for k, v in payload["model"].items() if k.startswith("encoder.")}
    heads, width = size["num_heads"], size["width"]
    sizes = {"num_heads": heads, "head_dim": width // heads}
    encoder = Encoder(
        vocab_size=weights["token_embedding.weight"].shape[0],
        seq_len=config["seq_len"],
        num_layers=size["num_layers"],
        embed_dim=width,
        num_heads=heads,
        feed_forward=size["feed_forward"],
        norm=size["norm"],
        activation=size["activation"],
        dropout=size["dropout"],
        position=make(
            config["position"],
            {**sizes, "embed_dim": width, "num_layers": size["num_layers"], "seq_len": config["seq_len"]},
        ),
        make_attention=lambda layer: make(config["attention"], {**sizes, "layer": layer, "seed": seed}),
    )
    encoder.load_state_dict(weights)
    return encoder.eval(), config


def real_text(payload: dict[str, Any], config: dict[str, Any]) -> Tensor:
    """Ids [B, N] of the longest training texts of the run, cut to the shortest of them: no padding."""
    data = config["dataset"]
    source = make(data["source"], {"path": data.get("path"), "text": data["text"], "label": data["label"]})
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

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x, masks = inputs

        def heads(projection: nn.Module) -> Tensor:
            return projection(x).unflatten(2, (module.num_heads, -1)).transpose(1, 2)

        v = heads(module.v_proj)
        q = v if module.q_proj is None else heads(module.q_proj)
        k = q if module.k_proj is None else heads(module.k_proj)
        caught.append(Caught(len(caught), q, k, v, masks.rotate, masks.bias, module.attention.ties_qk))

    hooks = [block.attention.register_forward_pre_hook(keep) for block in encoder.blocks]
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

"""Small models and texts for tests, built from the real YAML files of `conf/`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from xcls.config.schema import Hardware, Training, Wandb
from xcls.data.encode import Encoded
from xcls.data.tokenizer import ByteTokenizer
from xcls.model.encoder import Encoder
from xcls.model.heads import Classifier, MaskedLanguageModel, MLMHead, TextClassifier
from xcls.runs.record import Record
from xcls.stages.texts import ClassificationData, Labelled, LanguageData
from xcls.train.amp import Amp
from xcls.train.precision import Precision
from xcls.train.run_logger import RunLogger

CONF = Path(__file__).resolve().parent.parent / "conf"
ATTENTIONS = sorted(path.stem for path in (CONF / "attention").glob("*.yaml"))
POSITIONS = sorted(path.stem for path in (CONF / "position").glob("*.yaml"))
WIDTH, HEADS, LAYERS, SEQ_LEN = 16, 2, 2, 24
CPU = Precision(device="cpu", dtype="fp32")
HARDWARE = Hardware(device="cpu", dtype="fp32")


def from_yaml(group: str, name: str) -> tuple[type, dict[str, Any]]:
    """The class that a file of `conf/` names, and its hyperparameters."""
    values = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
    module, _, attribute = values.pop("_target_").rpartition(".")
    values.pop("name")
    return getattr(importlib.import_module(module), attribute), values


def make_encoder(attention: str = "sdpa", position: str = "rope", *, seed: int = 0, **changes: Any) -> Encoder:
    """A tiny encoder; `changes` are arguments of Encoder, `width`, `heads`, or `attention_changes`, `position_changes`.

    Its linear layers are `sharpness` times larger than first weights are, or attention would be all but uniform.
    """
    sharpness = changes.pop("sharpness", 10.0)
    torch.manual_seed(seed)
    cls, values = from_yaml("attention", attention)
    values.update(changes.pop("attention_changes", {}))
    position_cls, position_values = from_yaml("position", position)
    position_values.update(changes.pop("position_changes", {}))
    layers, seq_len = changes.pop("num_layers", LAYERS), changes.pop("seq_len", SEQ_LEN)
    shape = {"embed_dim": changes.pop("width", WIDTH), "num_heads": changes.pop("heads", HEADS)}
    settings = {"vocab_size": 40, "feed_forward": 32, "norm": "pre", "activation": "gelu", "dropout": 0.0, **changes}
    heads = {"num_heads": shape["num_heads"], "head_dim": shape["embed_dim"] // shape["num_heads"]}
    encoder = Encoder(
        seq_len=seq_len,
        num_layers=layers,
        position=position_cls(
            embed_dim=shape["embed_dim"], **heads, num_layers=layers, seq_len=seq_len, **position_values
        ),
        make_attention=lambda layer: cls(**heads, layer=layer, seed=seed, **values),
        **shape,
        **settings,
    )
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(sharpness)
    return encoder


def make_classifier(
    attention: str = "sdpa",
    position: str = "rope",
    *,
    classes: int = 3,
    pooling: str = "mean",
    seed: int = 0,
    **changes: Any,
) -> TextClassifier:
    """A tiny classifier."""
    encoder = make_encoder(attention, position, seed=seed, **changes)
    head = Classifier(embed_dim=WIDTH, num_classes=classes, pooling=pooling, dropout=changes.get("dropout", 0.0))
    return TextClassifier(encoder=encoder, head=head)


def make_mlm(attention: str = "sdpa", position: str = "rope", *, seed: int = 0, **changes: Any) -> MaskedLanguageModel:
    """A tiny masked language model."""
    encoder = make_encoder(attention, position, seed=seed, **changes)
    vocab_size = encoder.token_embedding.num_embeddings
    return MaskedLanguageModel(encoder=encoder, head=MLMHead(embed_dim=WIDTH, vocab_size=vocab_size))


def make_batch(lengths: list[int], *, width: int | None = None, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids and their mask (True = real), both [B, N]."""
    generator = torch.Generator().manual_seed(seed)
    width = width or max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    ids = torch.zeros(len(lengths), width, dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, 40, (length,), generator=generator)
        ids[row, 0] = 2
    return ids, mask


def make_encoded(rows: int, *, seed: int, vocab_size: int = 40, longest: int = SEQ_LEN) -> tuple[Encoded, np.ndarray]:
    """Documents whose class (of 3) shows in their tokens, and the labels."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, 3, rows)
    parts = []
    for label in labels:
        words = draws.integers(5, vocab_size, draws.integers(3, longest - 2))
        words[draws.random(len(words)) < 0.5] = 5 + label
        parts.append(np.concatenate([[2], words, [3]]).astype(np.int32))
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return Encoded(np.concatenate(parts), offsets), labels.astype(np.int64)


def make_data(rows: int = 40) -> ClassificationData:
    """A classification in three classes that a tiny model learns."""
    splits = {}
    for number, name in enumerate(("train", "validation", "test")):
        encoded, labels = make_encoded(rows if name == "train" else 17, seed=number)
        splits[name] = Labelled(encoded=encoded, labels=labels, ids=[f"{name}/{row}" for row in range(len(encoded))])
    return ClassificationData(**splits, classes=["a", "b", "c"])


def make_language_data(rows: int = 40) -> LanguageData:
    """Text for MLM."""
    return LanguageData(train=make_encoded(rows, seed=5)[0], validation=make_encoded(11, seed=6)[0])


class TinyTokenizer(ByteTokenizer):
    """Bytes, as far as the tiny vocabulary goes."""

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size = 40
        self.continues = self.continues[:40]


def make_training(**changes: Any) -> Training:
    """Few steps, small batches, evaluation and checkpoint in the middle."""
    settings = {
        "batch_size": 8,
        "epochs": 2.0,
        "lr": 3e-3,
        "embedding_lr_factor": 1.0,
        "min_steps": 0,
        "eval_batch_size": 6,
        "eval_every_epochs": None,
        "eval_every_steps": 4,
        "checkpoint_every_epochs": None,
        "checkpoint_every_steps": 3,
        "checkpoint_every_minutes": None,
        **changes,
    }
    return Training(**settings)


def make_logger(folder: Path, *, mode: str = "finetune", wandb: str = "disabled") -> RunLogger:
    """A logger in `folder`."""
    what = {"run": "r", "mode": mode, "status": "running", "hash": "ab" * 32, "choices": {"size": "tiny"}}
    record = Record(**what, seed=0, seq_len=SEQ_LEN)
    return RunLogger(folder=folder, record=record, wandb=Wandb(mode=wandb))


def make_amp() -> Amp:
    """The CPU in fp32."""
    return Amp(precision=CPU, hardware=HARDWARE)

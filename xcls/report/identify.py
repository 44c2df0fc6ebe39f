"""Which runs are alike: what of a record is compared, without its seed and what follows from the seed."""

from __future__ import annotations

from typing import Any

from xcls.identity import NOT_SHAPING
from xcls.record import Record

GROUPS = ("dataset", "attention", "position", "size", "tokenizer")  # the choices that name a run
DEVICE = ("kind", "name", "dtype", "compile", "micro_batch", "micro_tokens", "gradient_checkpointing", "threads")
# Names, places and switches that shape no result; the seeds; and the mode, which is in the record itself.
NOT_COMPARED = {
    "mode", "seed", "pretrain_seed", "exp", "study", "sweep", "pretrain", "resume", "retry_failed", "template", "split",
    "input", "output", "text", "checkpoint", "dataset.path", "dataset.extra", "tokenizer.path",
}  # fmt: skip
NOT_COMPARED_NODES = ("reading.", "wandb.", "claims.", "hardware.", "dataset.source.", "hydra.", "bench.")
OF_MODE = {  # the nodes that only these modes read
    "pretraining.": ("pretrain",),
    "masking.": ("pretrain",),
    "finetuning.": ("finetune",),
    "head.": ("finetune",),
    "baseline.": ("baseline",),
}
ENCODER = ("attention.", "position.", "size.", "tokenizer.", "seq_len")


def attention_name(record: Record) -> str:
    """`attention.name` of the configuration (`performer_favor`), else the chosen file; '' for a baseline."""
    if record.mode == "baseline":
        return ""
    return str(record.config.get("attention.name") or record.choices.get("attention") or "")


def settings(record: Record, parents: dict[str, Record], depth: int = 0) -> dict[str, Any]:
    """What two runs of a group share, flat: choices, configuration, code, data, and the same of the run they started from."""
    key: dict[str, Any] = {
        "mode": record.mode,
        "data": record.data.get("fingerprint"),
        "rows": record.data.get("train_rows_hash"),
    }
    encoder = record.mode != "baseline"
    key.update({f"choice.{group}": record.choices.get(group) for group in (GROUPS if encoder else GROUPS[:1])})
    for name, value in record.config.items():
        if name in NOT_COMPARED or name.startswith(NOT_COMPARED_NODES) or (not encoder and name.startswith(ENCODER)):
            continue
        node, _, leaf = name.partition(".")
        modes = OF_MODE.get(node + ".")
        if modes is None or (record.mode in modes and leaf not in NOT_SHAPING):
            key[name] = value
    if encoder:
        key["seq_len"] = record.seq_len
        key.update({f"{part}.code": digest[:12] for part, digest in record.code.items()})
        key["hardware.gradient_checkpointing"] = record.config.get("hardware.gradient_checkpointing")
    if record.pretrain is not None:
        key["checkpoint"] = record.config.get("checkpoint")
        key.update({f"pretrained.{name}": value for name, value in _origin(record, parents, depth).items()})
    return key


def _origin(record: Record, parents: dict[str, Record], depth: int) -> dict[str, Any]:
    """The settings of the run that `record` started from; its own `pretraining.*` where that is not at hand."""
    parent = parents.get(str((record.pretrain or {}).get("hash")))
    if parent is not None and depth < 8:  # a chain of fine-tunings is short; a circle would be a forged record
        return {**settings(parent, parents, depth + 1), "dtype": parent.device.get("dtype")}
    nodes = ("pretraining.", "masking.")
    own = {name: value for name, value in record.config.items() if name.startswith(nodes)}
    return {name: value for name, value in own.items() if name.partition(".")[2] not in NOT_SHAPING}


def device_of(record: Record) -> dict[str, Any]:
    """What must be equal for two costs to be compared; nothing for a baseline, whose costs are in no claim."""
    return {} if record.mode == "baseline" else {name: record.device.get(name) for name in DEVICE}


def without_attention(key: dict[str, Any]) -> dict[str, Any]:
    """`settings` without the mechanism, its own and its pretraining run's: what a reference must share."""
    return {name: value for name, value in key.items() if "attention" not in name.split(".")}

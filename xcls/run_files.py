"""The YAML files of a run: flat keys, one a line, that a person can edit and a later run reads again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from xcls.record import Record, plain, write_atomic
from xcls.schema import Config, flatten

PRETRAINING = ("seed", "seq_len", "attention", "position", "size", "dataset", "tokenizer", "masking", "pretraining", "hardware", "wandb")
GROUPS = ("attention", "position", "size", "dataset", "tokenizer", "hardware", "wandb")


def pretraining_values(config: Config, choices: dict[str, str]) -> dict[str, Any]:
    """What `pretrain/<exp>/config.yaml` holds: the choices of the groups, then every value that pretraining uses."""
    values: dict[str, Any] = {f"choices.{group}": choices[group] for group in GROUPS if group in choices}
    values.update({key: value for key, value in flatten(asdict(config)).items() if key.split(".")[0] in PRETRAINING})
    return values


def resolved_values(config: Config, choices: dict[str, str], precision: Any, record: Record) -> dict[str, Any]:
    """What `resolved_config.yaml` holds: choices, the whole configuration, and under `resolved.` what followed from it."""
    values: dict[str, Any] = {f"choices.{group}": choice for group, choice in choices.items()}
    values.update(flatten(asdict(config)))
    found = {"device": precision.device, "dtype": precision.dtype, "hash": record.hash, "data_fingerprint": record.data["fingerprint"],
             "pretrain": record.pretrain, "versions": record.versions, "commit": record.commit}
    values.update(flatten({"resolved": plain(found)}))
    return values


def write_values(path: Path, values: dict[str, Any], title: str) -> None:
    """Writes flat `values` as YAML, a blank line between nodes."""
    lines, last = [f"# {title}"], None
    for key, value in values.items():
        head = key.split(".")[0]
        if head != last:
            lines.append("")
            last = head
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000).strip()
        lines.append(f"{key}: {text.removesuffix('...').strip()}")
    write_atomic(path, "\n".join(lines) + "\n")

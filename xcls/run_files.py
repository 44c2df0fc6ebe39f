"""The YAML files of a run: flat keys, one a line, that a person can edit and a later run reads again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from xcls.record import Record, plain, write_atomic
from xcls.schema import Config, UserError, flatten

PRETRAINING = ("seed", "seq_len", "attention", "position", "size", "dataset", "tokenizer", "masking", "pretraining", "hardware", "wandb")
BASELINE = ("seed", "study", "dataset", "baseline", "wandb")
GROUPS = ("attention", "position", "size", "dataset", "tokenizer", "hardware", "wandb")


def pretraining_values(config: Config, choices: dict[str, str]) -> dict[str, Any]:
    """What `pretrain/<exp>/config.yaml` holds: the choices of the groups, then every value that pretraining uses."""
    return _values(config, choices, PRETRAINING)


def baseline_values(config: Config, choices: dict[str, str]) -> dict[str, Any]:
    """What a baseline that a sweep makes for itself is composed of."""
    return _values(config, choices, BASELINE)


def _values(config: Config, choices: dict[str, str], nodes: tuple[str, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {f"choices.{group}": choices[group] for group in GROUPS if group in choices}
    values.update({key: value for key, value in flatten(asdict(config)).items() if key.split(".")[0] in nodes})
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


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as flat keys. Raises UserError where it cannot be read as a mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {error}") from error
    if content is None:
        content = {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path}: 'key: value' lines are needed, not {type(content).__name__}.")
    return flatten(content)

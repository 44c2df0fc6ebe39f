"""The fields of the schema: their valid values, and their defaults, which are read from conf/.

Standard library only, and PyYAML once a configuration is made.
"""

from __future__ import annotations

import copy
from dataclasses import MISSING, Field, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Callable

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS = {  # of conf/, each a dataclass of the schema -> the option that has all of its keys
    "size": "tiny",
    "dataset": "pydocs",
    "tokenizer": "wordpiece",
    "bench": "attention",
    "hardware": "auto",
    "wandb": "offline",
}


def one_of(*choices: str) -> Any:
    """A field that takes one of these strings."""
    return field(metadata={"choices": choices})


def within(low: float | None = None, high: float | None = None, default: Any = MISSING) -> Any:
    """A numeric field with inclusive limits; None is allowed where the annotation is Optional."""
    return field(default=default, metadata={"low": low, "high": high})


def free() -> Any:
    """A field of any value of its type."""
    return field()


def from_conf(node: str | None = None) -> Callable[[type], type]:
    """Gives the fields of a dataclass the defaults of conf/ below `node`, or at the top level."""

    def decorate(cls: type) -> type:
        for name, item in vars(cls).items():
            if isinstance(item, Field) and item.default is MISSING and item.default_factory is MISSING:
                item.default_factory = partial(_default, node, name)
        return cls

    return decorate


def _default(node: str | None, name: str) -> Any:
    values = shipped() if node is None else shipped()[node]
    if name not in values:
        from xcls.config.schema import UserError

        file, key = (f"{node}/{GROUPS[node]}", name) if node in GROUPS else ("config", f"{node}.{name}")
        raise UserError(f"{CONF / file}.yaml: the key {key} is missing. Its default stands in this file: put it back.")
    return copy.copy(values[name])  # so that objects do not share a list


@lru_cache(maxsize=1)
def shipped() -> dict[str, Any]:
    """conf/config.yaml, and of each group in `GROUPS` the file that has the defaults."""
    import yaml  # `make status` runs without packages

    def read(name: str) -> dict[str, Any]:
        with open(CONF / f"{name}.yaml", encoding="utf-8") as file:  # PyYAML's errors name an open file
            return yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}

    nodes = {group: read(f"{group}/{option}") for group, option in GROUPS.items()}
    return {**read("config"), **nodes, "mode": "finetune"}

"""The fields of the schema: their valid values, and their defaults, which are read from conf/.

Standard library only, and PyYAML once a configuration is made.
"""

from __future__ import annotations

import copy
from dataclasses import MISSING, Field, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Callable

GROUPS = (
    "size",
    "dataset",
    "tokenizer",
    "bench",
    "hardware",
    "wandb",
)  # groups of conf/ with a dataclass in the schema


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
    return copy.copy(values[name])  # so that objects do not share a list


@lru_cache(maxsize=1)
def shipped() -> dict[str, Any]:
    """conf/config.yaml with the default files of its groups."""
    import yaml  # `make status` runs without packages

    def read(name: str) -> dict[str, Any]:
        text = (Path(__file__).resolve().parents[2] / "conf" / f"{name}.yaml").read_text(encoding="utf-8")
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))

    tree = read("config")
    options = {group: option for entry in tree["defaults"] if entry != "_self_" for group, option in entry.items()}
    nodes = {group: read(f"{group}/{options[group]}") for group in GROUPS}
    return {**tree, **nodes, "mode": options["mode"]}

"""From a node of YAML to an object, without Hydra: the processes that measure get their nodes as JSON."""

from __future__ import annotations

import importlib
from typing import Any

import yaml

from xcls.config.schema import UserError, nearest
from xcls.config.targets import check_node

BUILDER_GIVES = {
    "attention": ("name", "num_heads", "head_dim", "layer", "seed"),
    "position": ("name", "embed_dim", "num_heads", "head_dim", "num_layers", "seq_len"),
}


def make(node: dict[str, Any], given: dict[str, Any]) -> Any:
    """The object of a node: its `_target_`, called with `given` and with the node's own values but for `name`."""
    module, _, name = node["_target_"].rpartition(".")
    own = {key: value for key, value in node.items() if key not in ("_target_", "name")}
    return getattr(importlib.import_module(module), name)(**given, **own)


def choose(group: str, entry: str, nodes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The node that an entry names: a file of conf/<group>, with changes after a colon (`reformer:num_hashes=4`).

    Raises UserError for an unknown file, an unknown setting or a value of the wrong type.
    """
    name, _, changes = entry.partition(":")
    key = f"bench.{group}s"
    if name not in nodes:
        raise UserError(
            f"{key}: {name}: no such file in conf/{group}.{nearest(name, list(nodes))} There is: {', '.join(nodes)}."
        )
    node = dict(nodes[name])
    for change in filter(None, changes.split(",")):
        setting, equals, value = change.partition("=")
        if not equals:
            raise UserError(f'{key}: {entry}: write changes as name=value, separated by commas: "{name}:setting=1".')
        node[setting.strip()] = yaml.safe_load(value)
    try:
        check_node(group, node, BUILDER_GIVES[group])
    except UserError as error:
        raise UserError(f"{key}: {entry}: {error}") from error
    return node

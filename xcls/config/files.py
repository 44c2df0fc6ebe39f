"""The YAML files of a run: flat keys, one per line, which a person can edit and a later run reads."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from xcls.config.schema import Config, UserError, flatten
from xcls.runs.record import Record, plain, write_atomic
from xcls.runs.redact import without_secrets

MOST_BYTES, DEEPEST = 1_000_000, 20  # limits for a YAML file: size, nesting


UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def check_texts(flat: dict[str, Any]) -> None:
    """Refuses texts that a run's files cannot contain (control characters, invalid UTF-8, `${`). Raises UserError."""
    for key, value in flat.items():
        for text in (key, *(value if isinstance(value, list) else [value])):
            if UNWRITABLE.search(str(text)):
                shown = repr(f"{key}={text}")[1:-1]
                raise UserError(f"{shown}: control characters or invalid UTF-8. Write it without them.")
            if "${" in str(text):
                raise UserError(
                    f"{key}={text}: '${{' is only for conf/ and the command line; a run file needs plain values."
                )


def resolved_values(config: Config, choices: dict[str, str], precision: Any, record: Record) -> dict[str, Any]:
    """The content of `resolved_config.yaml`: choices, the configuration, and under `resolved.` what follows from it."""
    values: dict[str, Any] = {f"choices.{group}": choice for group, choice in choices.items()}
    values.update(flatten(asdict(config)))
    found = {
        "device": precision.device,
        "dtype": precision.dtype,
        "hash": record.hash,
        "data_fingerprint": record.data["fingerprint"],
        "code": record.code,
        "pretrain": record.pretrain,
        "versions": record.versions,
        "commit": record.commit,
    }
    values.update(flatten({"resolved": plain(found)}))
    return values


def yaml_text(values: dict[str, Any], title: str) -> str:
    """Flat `values` as YAML, a blank line between nodes, secrets as `***`."""
    lines, last = [f"# {title}"], None
    for key, value in values.items():
        head = key.split(".")[0]
        if head != last:
            lines.append("")
            last = head
        text = yaml.dump(value, Dumper=PlainDumper, default_flow_style=True, allow_unicode=True, width=10**9).strip()
        lines.append(f"{key}: {text.removesuffix('...').strip()}")
    return without_secrets("\n".join(lines) + "\n")


def write_values(path: Path, values: dict[str, Any], title: str) -> None:
    """Writes flat `values` as YAML."""
    write_atomic(path, yaml_text(values, title))


class PlainLoader(yaml.SafeLoader):
    """Safe YAML for run files: no key twice, no tags, no aliases (a few lines of them can expand to gigabytes)."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuses an alias, and nesting deeper than DEEPEST."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or self.depth == DEEPEST:
            raise yaml.MarkedYAMLError(
                problem="aliases and deep nesting are not allowed", problem_mark=event.start_mark
            )
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
        """A mapping with unique text keys."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(problem="a key must be a text", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"'{key.value}' is here twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


KINDS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}
PlainLoader.yaml_constructors = {
    tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in KINDS or tag is None
}
PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag in KINDS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class PlainDumper(yaml.SafeDumper):
    """Writes values so that PlainLoader reads the same values."""


for kind in (PlainLoader, PlainDumper):  # 1e-3 is a text in YAML 1.1 but a number in Hydra
    kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as flat keys. Raises UserError if it cannot be read as a mapping."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: a file is needed, not a folder or a device.")
        if path.stat().st_size > MOST_BYTES:
            raise UserError(
                f"{path}: {path.stat().st_size:,} bytes are too many for a run file, which has a few thousand."
            )
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=PlainLoader)
    except (
        OSError,
        ValueError,
        LookupError,
        AttributeError,
        yaml.YAMLError,
    ) as error:  # errors of PyYAML's constructors too
        raise UserError(f"{path}: cannot be read as YAML: {error}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"{path}: 'key: value' lines are needed, not {type(content).__name__}.")
    flat = flatten(content)
    if len(flat) != _leaves(content):
        raise UserError(f"{path}: a key is there twice, once with dots (size.width) and once nested (size, width).")
    return flat


def _leaves(tree: dict[str, Any]) -> int:
    return sum(_leaves(value) if isinstance(value, dict) else 1 for value in tree.values())

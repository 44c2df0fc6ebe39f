"""The overrides of `report.py` that make the same report again: every setting that was typed or is not the default."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Sequence

import yaml

from xcls.paths import at
from xcls.quoting import quoted
from xcls.report.settings import Settings
from xcls.schema import flatten

DEFAULTS = Path(__file__).parents[2] / "conf" / "report.yaml"
NAMED = ("claims.families", "originals", "cost.devices")  # nodes that hold names of the user's own
REMOTE = "wandb:"


def inside(settings: Settings, root: Path) -> Settings:
    """The settings with every path that lies in the project relative to `root`, as another clone has it."""
    runs = sorted({_relative(path, root) for path in settings.runs})
    return replace(settings, runs=runs, out=_relative(settings.out, root))


def _relative(path: str, root: Path) -> str:
    if str(path).startswith(REMOTE):
        return str(path)
    path = str(at(path))
    whole = Path(os.path.abspath(root))
    for place, base in (
        (Path(os.path.abspath(whole / path)), whole),
        (Path(os.path.realpath(whole / path)), Path(os.path.realpath(whole))),
    ):
        if place.is_relative_to(base):
            return place.relative_to(base).as_posix()
    return str(path)


def overrides(settings: Settings, typed: Sequence[str] = ()) -> list[str]:
    """Words for the command line. `typed`: keys under `claims.` that were typed, which win over an experiment's own.

    They are given again also where they say what the default says.
    """
    used, default = flatten(asdict(settings)), _defaults()
    words = [f"{name}={quoted(used.pop(name))}" for name in ("runs", "out", "rank_by")]
    gone = {key for key in default if key not in used and key not in ("runs", "out", "rank_by")}
    words += [f"~{node}" for node in sorted({_node(key, used) for key in gone})]
    devices = {name: asdict(price) for name, price in settings.cost.devices.items()}
    for key, value in sorted(used.items()):
        if not key.startswith("cost.devices.") and (value != default.get(key) or _typed(key, typed, default)):
            words.append(f"{'' if key in default else '++'}{key}={quoted(value)}")
    if devices:  # as one dictionary: a device's name may have blanks, which a key cannot
        words.append(f"++cost.devices={quoted(devices)}")
    return words


@lru_cache(maxsize=1)
def _defaults() -> dict[str, Any]:
    """`conf/report.yaml`, flat; of an installation without it what the classes say, so that more is spelt out."""
    if not DEFAULTS.is_file():
        return flatten(asdict(Settings()))
    stated = flatten(yaml.safe_load(DEFAULTS.read_text(encoding="utf-8")))
    return {key: value for key, value in stated.items() if key.split(".")[0] not in ("defaults", "hydra")}


def _typed(key: str, typed: Sequence[str], default: dict[str, Any]) -> bool:
    """Whether the user typed this key under `claims.`, or a node of it; what no file says and nobody set is left out."""
    node, _, rest = key.partition(".")
    named = node == "claims" and any(rest == word or rest.startswith(f"{word}.") or not word for word in typed)
    return named and (key in default or any(f"claims.{word}" == key for word in typed))


def _node(key: str, used: dict[str, Any]) -> str:
    """What to delete where `key` is gone: the name under one of `NAMED` where nothing else of it is left."""
    for node in NAMED:
        if key.startswith(f"{node}."):
            name = f"{node}.{key.removeprefix(f'{node}.').partition('.')[0]}"
            return key if any(other.startswith(f"{name}.") for other in used) else name
    return key

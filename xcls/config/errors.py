"""The messages for a refused configuration: the key, what is wrong and the nearest valid key.

Hydra's and OmegaConf's errors are recognised by the package of their class: this module imports neither.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Sequence

from xcls.config.files import read_yaml
from xcls.config.schema import Config, UserError, flatten, nearest


def describe(error: Exception, words: Sequence[str], conf: Path) -> str | None:
    """The message for an error on the command line or in a file; None for a fault of the program.

    words: the command line. conf: the folder of the config groups.
    """
    packages = {type(error).__module__.split(".")[0], _where_raised(error)}
    if isinstance(error, UserError):
        return str(error)
    if "omegaconf" in packages:
        return word_omegaconf(error, {})
    if packages & {"hydra", "antlr4", "yaml"}:
        return word_hydra(str(error).strip(), str(error.__cause__ or ""), words, conf)
    if isinstance(error, OSError):
        return (
            f"{error.filename or 'a file'}: {error.strerror or error}. Check the path and its permissions. "
            "To store all runs in another folder, set XCLS_RUNS=<folder>."
        )
    return None


def _where_raised(error: Exception) -> str:
    """The package whose code raised `error`."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__")).split(".")[0] if trace is not None else ""


def known_keys(conf: Path) -> list[str]:
    """Every key and group of the command line; those of attention, position and data sources from conf/."""
    groups = ["attention", "position", "dataset", "hydra/launcher"]
    keys = [path.name for path in conf.iterdir() if path.is_dir() and path.name != "hydra"] + ["hydra/launcher"]
    keys += list(flatten(asdict(Config())))
    for path in [path for group in groups for path in sorted((conf / group).glob("*.yaml"))]:
        node = path.parent.relative_to(conf).as_posix().replace("/", ".")
        keys += [f"{node}.{key}" for key in read_yaml(path) if key != "defaults"]
    return list(dict.fromkeys(keys))


def word_hydra(text: str, cause: str, words: Sequence[str], conf: Path) -> str:
    """Hydra's error `text` (and its `cause`) as one message."""
    option = re.search(r"Could not find '(hydra/[^/']+|[^/']+)/([^\n]*)'", text)
    missing = re.search(r"Could not override '([^']+)'", text)
    several = re.search(r"Ambiguous value for argument '(.+)'", text)
    if option:
        group, name = option.groups()
        known = sorted(path.stem for path in (conf / group).glob("*.yaml"))
        own = f" A file of your own: dataset=files dataset.path={name}" if group == "dataset" else ""
        meant = "" if group == "mode" else nearest(name, known)  # 'train' is near 'pretrain', which is seldom meant
        return f"{group}={name}: no such option.{meant} Known: {', '.join(known)}.{own}"
    if missing:
        return _word_missing(missing[1], words, conf)
    if several:
        key, _, value = several[1].partition("=")
        return f"{key}={value}: several values make a sweep: add -m. Quote one value with commas: '{key}=\"{value}\"'."
    lines = [line.strip() for line in text.splitlines() if line.strip() and "hydra.cc" not in line]
    return " ".join(dict.fromkeys([*lines[:3], *cause.splitlines()[:1]]))


def _word_missing(key: str, words: Sequence[str], conf: Path) -> str:
    """The message for an unknown key, or one that is not in the chosen file of its group."""
    group, _, leaf = key.partition(".")
    if group == "per":
        return f"{key}: write it with a plus: +{key}=…"
    having = [path.stem for path in sorted((conf / group).glob("*.yaml")) if leaf in read_yaml(path)] if leaf else []
    if not having:
        return f"{key}: unknown key.{nearest(key, known_keys(conf))}"
    text = f"{key}: no such key in the chosen {group}, only in {', '.join(having)}."
    if group != "attention":
        return text
    chosen = [word.removeprefix("attention=").split(",") for word in words if word.startswith("attention=")]
    one = next((option for option in (chosen[0] if chosen else []) if option in having), having[0])
    return f"{text} In a sweep, for one mechanism alone: +per.{one}.{leaf}=…"


def word_omegaconf(error: Exception, origins: dict[str, str]) -> str:
    """One message for a key that is unknown or of a wrong type."""
    key = str(getattr(error, "full_key", None) or getattr(error, "key", None) or "")
    reason = str(getattr(error, "msg", None) or error).splitlines()[0]
    if "not in '" in reason:
        reason = f"unknown key.{nearest(key, list(flatten(asdict(Config()))))}"
    return f"{key}: {reason}{origin_of(key, origins)}".removeprefix(": ")


def with_origins(error: UserError, origins: dict[str, str]) -> UserError:
    """The error, with the origin of the key added to each line."""
    keys = [re.split(r"[=: ]", line, maxsplit=1)[0] for line in str(error).split("\n")]
    return UserError("\n".join(line + origin_of(key, origins) for key, line in zip(keys, str(error).split("\n"))))


def origin_of(key: str, origins: dict[str, str]) -> str:
    """`' (from …)'` with the place that set `key`; '' for a default of conf/."""
    for known, place in origins.items():
        if key == known or known.startswith(key + ".") or key.startswith(known + "."):
            return f" (from {place})"
    return ""

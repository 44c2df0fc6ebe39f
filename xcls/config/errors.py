"""What a user reads when the command line cannot be composed: Hydra's errors in one message, and the usual slips.

Hydra's exceptions arrive here as strings; only run.py knows their classes.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Iterator, Sequence

from xcls.config.files import read_yaml
from xcls.config.overrides import quoted
from xcls.config.schema import Config, UserError, flatten, nearest

MODES_MEANT = {
    "train": "finetune",
    "training": "finetune",
    "fit": "finetune",
    "test": "eval",
    "evaluate": "eval",
    "validate": "eval",
    "infer": "predict",
    "inference": "predict",
    "prediction": "predict",
    "benchmark": "bench",
    "tfidf": "baseline",
}


def known_keys(conf: Path) -> list[str]:
    """Every key and group that can be typed, those of the untyped nodes read from the files of their groups."""
    keys = [p.name for p in conf.iterdir() if p.is_dir() and p.name != "hydra"] + list(flatten(asdict(Config())))
    for group in ("attention", "position", "dataset"):
        for option in sorted((conf / group).glob("*.yaml")):
            keys += [f"{group}.{key}" for key in read_yaml(option) if key != "defaults"]
    for option in sorted((conf / "hydra" / "launcher").glob("*.yaml")):
        keys += [f"hydra.launcher.{key}" for key in read_yaml(option) if key != "defaults"]
    return list(dict.fromkeys(keys))


def word_hydra(text: str, cause: str, words: Sequence[str], conf: Path) -> str:
    """Hydra's error `text` (and the one it came from) in one message: the key, what is wrong, the nearest valid one.

    `words`: what was typed. `conf`: the folder of the config groups.
    """
    text = text.strip()
    missing = re.search(r"Could not override '([^']+)'", text)
    several = re.search(r"Ambiguous value for argument '(.+)'", text)
    option = re.search(r"Could not find '(hydra/[^/']+|[^/']+)/([^\n]*)'", text)
    if option:
        group, name = option.groups()
        known = sorted(p.stem for p in (conf / group).glob("*.yaml"))
        meant, own = nearest(name, known), ""
        if group == "mode" and name.lower() in MODES_MEANT:
            meant = f" Did you mean mode={MODES_MEANT[name.lower()]}?"
        elif group == "dataset" and (re.search(r"[./~]", name) or not meant):
            meant, own = "", f"\nA file of your own: dataset=files {shlex.quote(f'dataset.path={name}')}"
        return f"{group}={name}: no such option.{meant} There is: {', '.join(known)}.{own}"
    if missing:
        key = missing.group(1)
        return _lacking(key, words, conf) or f"{key}: unknown key.{nearest(key, [*known_keys(conf), 'hydra/launcher'])}"
    if several:
        key = several.group(1).partition("=")[0]
        value = next(
            (word.partition("=")[2] for word in words if word.partition("=")[0] == key),
            several.group(1).partition("=")[2],
        )
        whole = f"'{key}=\"{value}\"'" if not re.search(r"[\"'\\]", value) else shlex.quote(f"{key}={quoted(value)}")
        return (
            f"{key}={value}: a list of values is a sweep, which needs -m:\n  python run.py -m {shlex.join(words)}\n"
            f"One value with commas in it is quoted: {whole}"
        )
    if "sweep" in text.lower():
        return text.splitlines()[0] + " A list of values needs -m: python run.py -m …"
    if "mismatched input" in text or "LexerNoViableAlt" in text or "extraneous input" in text or "no viable" in text:
        return (
            text.splitlines()[0]
            + "\nA list is written without blanks (seed=0,1,2), a text with blanks as one word ('study=my text')."
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()][:2] + cause.splitlines()[:1]
    return " ".join(dict.fromkeys(line for line in lines if "hydra.cc" not in line))


def _lacking(key: str, words: Sequence[str], conf: Path) -> str:
    """The message for a setting that other options of its group have, and how to set it for these alone; '' for other keys."""
    group, _, leaf = key.partition(".")
    if group == "per":
        return f"{key}: with a plus: +{key}=…"
    having = [path.stem for path in sorted((conf / group).glob("*.yaml")) if leaf in read_yaml(path)] if leaf else []
    if not having:
        return ""
    typed = {word.lstrip("+").partition("=")[0]: word.partition("=")[2] for word in words}
    chosen = typed.get(group, "").split(",") if typed.get(group) else []
    lack = ", ".join(option for option in chosen if option not in having) or f"the chosen {group}"
    text = f"{key}: no such key in {lack}, only in {', '.join(having)}."
    if group == "attention":
        one = next((option for option in chosen if option in having), having[0])
        text += (
            f" In a sweep over several, for one alone: {shlex.quote(f'+per.{one}.{leaf}={typed.get(key, chr(8230))}')}"
        )
    return text


@contextlib.contextmanager
def package_worded(words: Sequence[str], conf: Path) -> Iterator[None]:
    """Around the call of Hydra: `--cfg job -p attenton`, which it ends with 1, raises UserError with the nearest part there is."""
    places = [place for place, word in enumerate(words) if re.match(r"(-p|--package)(=|$)", word)]
    if not places or not any(word.startswith(("-c", "--cfg")) for word in words):
        yield
        return
    asked = words[places[-1]].partition("=")[2] or " ".join(words[places[-1] + 1 :][:1])
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit as end:
        if end.code == 1 and "not found in config" in said.getvalue():
            keys = known_keys(conf)
            parts = dict.fromkeys(
                ".".join(key.split(".")[:depth]) for key in keys for depth in range(1, key.count(".") + 2)
            )
            raise UserError(f"-p {asked}: the configuration has no such part.{nearest(asked, list(parts))}") from end
        sys.stderr.write(said.getvalue())
        raise
    sys.stderr.write(said.getvalue())


def with_origins(error: UserError, origins: dict[str, str]) -> UserError:
    """The error with the place that set it behind each line's key."""
    return UserError(
        "\n".join(line + origin_of(re.split(r"[=: ]", line, maxsplit=1)[0], origins) for line in str(error).split("\n"))
    )


def origin_of(key: str, origins: dict[str, str]) -> str:
    """`' (from …)'` for the place that set `key`, where it is not the defaults in conf/."""
    for known, place in origins.items():
        if key == known or known.startswith(key + ".") or key.startswith(known + "."):
            return f" (from {place})"
    return ""


def word_omegaconf(error: Exception, origins: dict[str, str]) -> str:
    """One message for a key that is unknown or of a wrong type."""
    key = str(getattr(error, "full_key", None) or getattr(error, "key", None) or "")
    reason = str(getattr(error, "msg", None) or error).splitlines()[0]
    if "not in '" in reason:
        known = list(flatten(asdict(Config())))
        parent = key.rpartition(".")[0]
        siblings = [k for k in known if k.rpartition(".")[0] == parent] or known
        reason = f"unknown key.{nearest(key, known + siblings)}"
    return f"{key}: {reason}{origin_of(key, origins)}"

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

from xcls.run_files import read_yaml
from xcls.schema import Config, UserError, flatten, nearest


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
    option = re.search(r"Could not find '([^'/]+(?:/[^'/]+)*)/([^'/]*)'", text)
    if option:
        group, name = option.groups()
        known = sorted(p.stem for p in (conf / group).glob("*.yaml"))
        return f"{group}={name}: no such option.{nearest(name, known)} There is: {', '.join(known)}."
    if missing:
        key = missing.group(1)
        return f"{key}: unknown key.{nearest(key, [*known_keys(conf), 'hydra/launcher'])}"
    if several:
        key, _, value = several.group(1).partition("=")
        return (f"{key}={value}: a list of values is a sweep, which needs -m:\n  python run.py -m {shlex.join(words)}\n"
                f"One value with commas in it is quoted: '{key}=\"{value}\"'.")
    if "sweep" in text.lower():
        return text.splitlines()[0] + " A list of values needs -m: python run.py -m …"
    if "mismatched input" in text or "LexerNoViableAlt" in text or "extraneous input" in text or "no viable" in text:
        return text.splitlines()[0] + "\nA list is written without blanks (seed=0,1,2), a text with blanks in quotes ('study=\"my text\"')."
    lines = [line.strip() for line in text.splitlines() if line.strip()][:2] + cause.splitlines()[:1]
    return " ".join(dict.fromkeys(line for line in lines if "hydra.cc" not in line))


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
            parts = dict.fromkeys(".".join(key.split(".")[:depth]) for key in keys for depth in range(1, key.count(".") + 2))
            raise UserError(f"-p {asked}: the configuration has no such part.{nearest(asked, list(parts))}") from end
        sys.stderr.write(said.getvalue())
        raise
    sys.stderr.write(said.getvalue())

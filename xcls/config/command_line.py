"""Checks run.py's command line before Hydra reads it: words that Hydra would misread are quoted or refused."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

from xcls.config.schema import Config, UserError, nearest
from xcls.runs.paths import quoted

SWEEP = ("-m", "--multirun")
VALUED = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
# Their keys are the arguments of a class, which a file may choose
OF_FILES = ("attention.", "position.", "dataset.source.")


def prepare(words: Sequence[str], conf: Path, parse: Callable[[str], Any]) -> list[str]:
    """The words for Hydra. conf: the folder of the config groups. parse: Hydra's parser of one override.

    Raises UserError for a word that is no setting, for several studies at once and for an unknown launcher.
    """
    for before, word in zip(["", *words], words):
        if word.startswith(("-", "~")) or before in VALUED:
            continue
        if "=" not in word or word.startswith((",", "=")) or word.endswith(","):
            raise UserError(
                f"{word}: write a setting as key=value, and a list without blanks (seed=0,1). "
                "Quote a text with blanks: 'study=my text'."
            )
        key, _, value = word.partition("=")
        if key == "experiment" and "," in value:
            raise UserError(f"{word}: only one study at a time. Use a second command for the second study.")
        if key == "hydra/launcher":
            launchers = sorted(path.stem for path in (conf / "hydra" / "launcher").glob("*.yaml"))
            if value not in launchers:
                raise UserError(f"{word}: no such option.{nearest(value, launchers)} Known: {', '.join(launchers)}.")
    texts = text_keys(Config())
    typed = _admitted([_quoted(word, parse, texts) for word in words])
    return sorted(typed, key=lambda word: word not in SWEEP)  # argparse wants them first


def text_keys(node: Any, prefix: str = "") -> set[str]:
    """The keys of `node`, a dataclass of the schema, whose values are texts."""
    found: set[str] = set()
    for item in fields(node):
        value = getattr(node, item.name)
        if is_dataclass(value):
            found |= text_keys(value, f"{prefix}{item.name}.")
        elif item.type in ("str", "Optional[str]"):
            found.add(prefix + item.name)
    return found


def _quoted(word: str, parse: Callable[[str], Any], texts: set[str]) -> str:
    """`key=value` with quotes around what Hydra cannot read (`~/my data.csv`) or takes for a number (`exp=2024_01`).

    A value with quotes or brackets of its own stays as it is. Commas separate the values of a sweep.
    """
    key, given, value = word.partition("=")
    if not given or word.startswith("-") or any(sign in value for sign in "'\"[]{}()\\$"):
        return word

    def one(part: str) -> str:
        try:
            found = parse(f"{key}={part}").value()
        except Exception:  # Hydra's grammar refuses it; in quotes any text is valid
            return quoted(part)
        is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
        return quoted(part) if is_number and key in texts and str(found) != part else part

    return f"{key}={','.join(one(part) for part in value.split(','))}"


def _admitted(words: list[str]) -> list[str]:
    """Puts `++` before keys whose class a file or a run may choose: Hydra knows only the keys of the class in conf/.

    The keys are checked against the class later, when the file is merged.
    """
    by_file = ("mode=eval", "mode=predict", "mode=pretrain", "template=", "pretrain=")
    if not any(word.startswith(by_file) for word in words):
        return words
    chosen = {word.partition("=")[0] for word in words}
    nodes = tuple(node for node in OF_FILES if node.split(".")[0] not in chosen)
    return [f"++{word}" if word.startswith(nodes) else word for word in words]

"""The usual slips at run.py's command line, seen in the words themselves: Hydra would misread them, or word them badly."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Sequence

from xcls.config.schema import UserError, nearest

SWITCHES = ("--help", "--hydra-help", "--version", "--resolve", "--run", "--multirun", "--shell-completion", "--info")
VALUED = ("--cfg", "--package", "--config-path", "--config-name", "--config-dir", "--experimental-rerun")
SHORT = {"-c": "--cfg", "-p": "--package", "-cp": "--config-path", "-cn": "--config-name", "-cd": "--config-dir"}
SHORT_SWITCHES = ("-h", "-r", "-m", "-sc", "-i")
LATER = ("dataset.path",)  # reproduce.sh takes another place of the data behind the one that its run had
NAMED = (
    "attention",
    "position",
    "size",
    "dataset",
    "tokenizer",
    "hardware",
)  # groups whose files say what they are called


def check_slips(words: Sequence[str], conf: Path) -> list[str]:
    """Refuses stray blanks, options that do not exist, `+group=`, a key typed twice, `attention.name=performer`.

    `words`: what was typed; the settings among them come back. `conf`: the folder of the config groups. Raises UserError
    with what to type instead.
    """
    flags, settings = _split(words)
    if {"-m", "--multirun"} & set(flags) and {"-c", "--cfg"} & {flag.partition("=")[0] for flag in flags}:
        raise UserError("--cfg shows the configuration of one job: leave -m and the lists out.")
    _check_blanks(flags, settings, conf)
    experiments = [word for word in settings if word.lstrip("+").startswith("experiment=")]
    if len(experiments) > 1 or any("," in word or "(" in word for word in experiments):
        raise UserError(f"{' '.join(experiments)}: one study at a time. A second one is a second command.")
    _check_twice(settings)
    groups = {place.name for place in conf.iterdir() if place.is_dir()}
    for word in settings:
        key, _, value = word.lstrip("+").partition("=")
        if word.startswith("+") and key in groups:
            raise UserError(f"{word}: without the plus: {key}={value}")
        group = key.removesuffix(".name")
        if group in NAMED and group != key and set(value.split(",")) <= {*_options(conf, group), *_names(conf, group)}:
            raise UserError(
                f"{word}: this is only what it is called. To choose it, with all its settings: "
                f"{group}={','.join(_option_called(conf, group, name) for name in value.split(','))}"
            )
    return settings


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options with their values, and settings. Raises UserError for an option that does not exist."""
    flags, settings = [], []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            settings.append(word)
            continue
        flags.append(word)
        name, given, value = word.partition("=")
        option = SHORT.get(name, name)
        if option not in (*SWITCHES, *VALUED, *SHORT_SWITCHES):
            raise UserError(
                f"{word}: no such option.{nearest(name, SWITCHES + VALUED)} A setting is written without dashes: "
                f"{word.lstrip('-') if given else 'key=value'}."
            )
        if option in VALUED and not given and rest:
            value = rest.pop(0)
            flags.append(value)
        if option == "--config-name" and value.removesuffix(".yaml") != "config":
            raise UserError(
                f"--config-name={value}: run.py has one configuration, conf/config.yaml. A study is chosen by experiment=<name>, "
                "a run's own file by exp=<name>, a file over the defaults by template=<file>."
            )
    return flags, settings


def _check_twice(settings: list[str]) -> None:
    """Refuses a key or group that is typed twice: Hydra would take the last word and say nothing."""
    typed: dict[str, list[str]] = {}
    for word in settings:
        typed.setdefault(word.partition("=")[0].strip().lstrip("+~"), []).append(word)
    for key, words in typed.items():
        if len(words) > 1 and key not in LATER:
            values = dict.fromkeys(word.partition("=")[2].strip() for word in words if "=" in word)
            remedy = (
                f" To run each, in a sweep: -m {shlex.quote(key + '=' + ','.join(values))}" if len(values) > 1 else ""
            )
            raise UserError(
                f"{shlex.join(words)}: {key} is typed {len(words)} times, and only one can be meant. Leave one.{remedy}"
            )


def _check_blanks(flags: list[str], settings: list[str], conf: Path) -> None:
    """Refuses words that are no settings: pieces of a list or of a setting that was typed with blanks in it."""
    odd = [
        word
        for word in settings
        if word.startswith(("=", ",")) or word.endswith(",") or "=" not in word and not word.startswith("~")
    ]
    if not odd:
        return
    meant, hint = _glued(settings, conf), ""
    if any("," in word for word in meant) and not {"-m", "--multirun"} & set(flags):
        flags = ["-m", *flags]
    if meant != settings:
        hint = f"\nDid you mean this?  python run.py {shlex.join([*flags, *meant])}"
    elif _options(conf, odd[0]):
        hint = f"\nThere is: {', '.join(f'{odd[0]}={option}' for option in _options(conf, odd[0]))}."
    raise UserError(
        f"{' '.join(odd)}: a setting is key=value, and a list is written without blanks; a text with blanks needs "
        f"quotes ('study=\"my text\"').{hint}"
    )


def _glued(settings: list[str], conf: Path) -> list[str]:
    """The settings as they were probably meant."""
    whole: list[str] = []
    for place, word in enumerate(settings):
        before = whole[-1] if whole else ""
        follows = settings[place + 1] if place + 1 < len(settings) else ""
        if before.endswith((",", "=")) or word.startswith((",", "=")):
            whole[-1:] = [before + word]
        elif "=" in word or follows.startswith("=") or word.startswith("~"):
            whole.append(word)
        else:
            key = before.partition("=")[0]
            groups = [
                group for group in (key, "mode", *NAMED, "experiment") if word.rstrip(",") in _options(conf, group)
            ]
            if groups and groups[0] != key:
                whole.append(f"{groups[0]}={word}")  # `run.py pretrain`: the group was left out
            else:
                whole[-1:] = [f"{before},{word}" if before else word]
    return [word.strip(",") for word in whole]


def _options(conf: Path, group: str) -> list[str]:
    """The files of a group."""
    return sorted(path.stem for path in (conf / group).glob("*.yaml")) if group else []


def _names(conf: Path, group: str) -> dict[str, str]:
    """The `name:` of each file of a group, and the file."""
    found = {}
    for option in _options(conf, group):
        lines = (conf / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines()
        found.update({line.split()[1]: option for line in lines if line.startswith("name: ")})
    return found


def _option_called(conf: Path, group: str, name: str) -> str:
    """The file of `group` that is, or calls itself, `name`."""
    return name if name in _options(conf, group) else _names(conf, group)[name]

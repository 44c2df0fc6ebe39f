"""Composes one run (or, with -m, a sweep) from the groups in conf/ and starts what `mode` says. See README.md.

Nothing heavy is imported here: `--help`, tab completion and a refused configuration answer at once.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

ALLOCATOR = {  # glibc gives every large buffer back to the kernel; keeping them saves a third of a step on a CPU
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
if __name__ == "__main__" and sys.platform == "linux" and not set(ALLOCATOR) & set(os.environ):
    os.environ.update(ALLOCATOR)  # read when a process starts, so this one starts anew
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises its errors, and `refuse` below words them

import hydra  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: E402
from hydra.errors import HydraException  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from xcls.run_files import read_yaml  # noqa: E402
from xcls.schema import Config, UserError, check, check_name, flatten, nearest, unflatten  # noqa: E402
from xcls.signature import check_node  # noqa: E402

ROOT = Path(__file__).resolve().parent
UNTYPED = ("attention", "position", "dataset.source")  # typed by the signature of their _target_
BUILDER_GIVES = {
    "attention": ("name", "num_heads", "head_dim", "layer", "seed"),
    "position": ("name", "embed_dim", "num_heads", "head_dim", "num_layers", "seq_len"),
    "dataset.source": ("path", "text", "label"),
}
INHERITED = ("attention", "position", "size", "tokenizer", "seq_len")  # by fine-tuning, from its pretraining run
NOT_IN_FILE = ("mode", "exp", "resume", "retry_failed", "template", "pretrain", "checkpoint", "split", "input", "output", "sweep")


class Typed:
    """What the user typed: whole groups (`attention=performer`) and single values (`size.width=64`)."""

    def __init__(self, overrides: list[str], groups: set[str]) -> None:
        self.groups: set[str] = set()
        self.values: set[str] = set()
        for override in OverridesParser.create().parse_overrides(overrides):
            key = override.key_or_group
            if override.is_delete():
                raise UserError(f"~{key}: a key cannot be taken away; every one is needed. Set it to another value instead.")
            (self.groups if key in groups else self.values).add(key)

    def touches(self, node: str) -> bool:
        """Whether anything in `node` was typed."""
        return node in self.groups or any(key == node or key.startswith(node + ".") for key in self.values)

    def shields(self, key: str) -> bool:
        """Whether what was typed decides `key`, so that a file may not."""
        return key in self.values or any(key == group or key.startswith(group + ".") for group in self.groups)


def lay_over(tree: dict[str, Any], file: dict[str, Any], typed: Typed) -> dict[str, Any]:
    """The composed `tree` with the flat values of a file over it, and what was typed over both."""
    values = flatten(tree)
    for node in UNTYPED:
        if f"{node}._target_" in file and not typed.shields(node):
            values = {k: v for k, v in values.items() if not k.startswith(node + ".") or k in typed.values}
    values.update({key: value for key, value in file.items() if not typed.shields(key)})
    return unflatten(values)


def take_file(tree: dict[str, Any], path: Path, typed: Typed, choices: dict[str, str], origins: dict[str, str]) -> dict[str, Any]:
    """Lays the run file at `path` over the composed tree; its `choices:` name what the user did not type."""
    file = read_yaml(path)
    named = {key.partition(".")[2]: value for key, value in file.items() if key.startswith("choices.")}
    file = {key: value for key, value in file.items() if key.split(".")[0] not in ("choices", "resolved", *NOT_IN_FILE)}
    for group, choice in named.items():
        if group not in choices:
            raise UserError(f"{path}: choices.{group}: there is no such config group.{nearest(group, list(choices))}")
        if group in ("attention", "position") and not typed.shields(group):
            option = ROOT / "conf" / group / f"{choice}.yaml"
            if not option.is_file():
                known = sorted(p.stem for p in option.parent.glob("*.yaml"))
                raise UserError(f"{path}: choices.{group}={choice}: no such option.{nearest(str(choice), known)}")
            if read_yaml(option).get("_target_") != file.get(f"{group}._target_", read_yaml(option).get("_target_")):
                raise UserError(
                    f"{path}: choices.{group} says '{choice}', but the {group}.* lines are of another mechanism. "
                    f"Type {group}={choice} on the command line, or replace those lines by conf/{group}/{choice}.yaml."
                )
        if group not in typed.groups:
            choices[group] = choice
    origins.update({key: str(path) for key in file if not typed.shields(key)})
    return lay_over(tree, file, typed)


def find_parent(name: str) -> Path:
    """The folder of the run that `pretrain=` names. Raises UserError with what there is instead."""
    places = [ROOT / "pretrain" / name, ROOT / "finetune" / name, Path(name)]
    for place in places:
        if (place / "resolved_config.yaml").is_file():
            return place
    known = sorted(p.parent.name for stage in ("pretrain", "finetune") for p in (ROOT / stage).glob("*/resolved_config.yaml"))
    raise UserError(
        f"pretrain={name}: no run of that name under pretrain/ or finetune/, and no run folder at that path."
        f"{nearest(name, known)} Runs that exist: {', '.join(known) or 'none'}."
    )


def inherit(tree: dict[str, Any], parent: Path, typed: Typed, choices: dict[str, str], origins: dict[str, str]) -> dict[str, Any]:
    """The composed tree with the architecture of the run at `parent`, and its data set unless another group was typed."""
    file = read_yaml(parent / "resolved_config.yaml")
    values = flatten(tree)
    wrong = []
    for node in INHERITED:
        theirs = {key: value for key, value in file.items() if key == node or key.startswith(node + ".")}
        ours = {key: value for key, value in values.items() if key == node or key.startswith(node + ".")}
        for key in sorted(set(theirs) | set(ours)):
            if typed.shields(key) and theirs.get(key) != ours.get(key):
                wrong.append(f"{key}={ours.get(key)}: {parent.name} was trained with {key}={theirs.get(key)}.")
    if wrong:
        wrong.append("Fine-tuning takes the architecture from its pretraining run; head, finetuning, dataset, seed, hardware, wandb are free.")
        raise UserError("\n".join(wrong))
    nodes = list(INHERITED)
    if "dataset" not in typed.groups and choices.get("experiment") is None:
        nodes.append("dataset")
    values = {k: v for k, v in values.items() if k.split(".")[0] not in nodes or k in typed.values}
    taken = {key: value for key, value in file.items() if key.split(".")[0] in nodes and key not in typed.values}
    origins.update({key: str(parent / "resolved_config.yaml") for key in taken})
    choices.update({node: file[f"choices.{node}"] for node in nodes if f"choices.{node}" in file})
    return unflatten({**values, **taken})


def take_run(tree: dict[str, Any], config_exp: str | None, typed: Typed, choices: dict[str, str]) -> tuple[dict[str, Any], Path]:
    """mode=eval and predict: the configuration of the run that `exp` names, with the few keys that may be typed over it."""
    if not config_exp:
        raise UserError("exp: name the fine-tuned run to read: exp=<name under finetune/, or a run folder>.")
    folder = next((p for p in (ROOT / "finetune" / config_exp, Path(config_exp)) if (p / "resolved_config.yaml").is_file()), None)
    if folder is None:
        known = sorted(p.parent.name for p in (ROOT / "finetune").glob("*/resolved_config.yaml"))
        raise UserError(f"exp={config_exp}: no such run under finetune/.{nearest(config_exp, known)} Runs that exist: {', '.join(known) or 'none'}.")
    free = ("mode", "exp", "split", "input", "output", "checkpoint", "hardware", "wandb", "dataset.path", "finetuning.eval_batch_size")
    refused = [key for key in sorted(typed.groups | typed.values) if not any(key == f or key.startswith(f + ".") for f in free)]
    if refused:
        raise UserError(f"{', '.join(refused)}: mode={tree['mode']} reads a finished run as it is; only {', '.join(free[2:])} may be set.")
    file = read_yaml(folder / "resolved_config.yaml")
    choices.update({key.partition(".")[2]: value for key, value in file.items() if key.startswith("choices.")})
    keep = {"mode", "exp", "split", "input", "output", "checkpoint"}
    dtype = file.get("resolved.dtype", "auto") if not typed.touches("hardware") else None
    file = {k: v for k, v in file.items() if k.split(".")[0] not in (*keep, "hardware", "wandb", "resolved", "choices")}
    if dtype:  # the same numbers need the same arithmetic
        file["hardware.dtype"] = dtype
    return lay_over(tree, file, typed), folder


def settle(cfg: DictConfig) -> tuple[Config, dict[str, str], Path | None]:
    """The typed configuration, the choices of the groups, and the run it starts from. Raises UserError."""
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    choices = {k: v for k, v in OmegaConf.to_container(hydra_config.runtime.choices).items() if not k.startswith("hydra/")}
    typed = Typed(overrides, set(choices))
    tree = OmegaConf.to_container(cfg, resolve=True)
    origins = {key: "the command line" for key in typed.values}
    folder: Path | None = None
    exp, mode = tree.get("exp"), tree.get("mode")
    if isinstance(exp, str) and mode not in ("eval", "predict"):
        check_name("exp", exp)
    if mode in ("eval", "predict"):
        tree, folder = take_run(tree, exp, typed, choices)
    elif tree.get("template"):
        tree = take_file(tree, Path(tree["template"]), typed, choices, origins)
    elif mode == "pretrain" and exp and not tree.get("sweep") and (ROOT / "pretrain" / exp / "config.yaml").is_file():
        tree = take_file(tree, ROOT / "pretrain" / exp / "config.yaml", typed, choices, origins)
    elif mode == "finetune" and isinstance(tree.get("pretrain"), str) and tree["pretrain"] != "auto":
        folder = find_parent(tree["pretrain"])
        tree = inherit(tree, folder, typed, choices, origins)
    config = to_typed(tree, origins)
    return config, choices, folder


def to_typed(tree: dict[str, Any], origins: dict[str, str]) -> Config:
    """The tree as the dataclasses of the schema, with every value checked. Raises UserError naming key and origin."""
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), tree))
        check(config)
        for node in UNTYPED:
            value = config.dataset.source if node == "dataset.source" else getattr(config, node)
            check_node(node, value, BUILDER_GIVES[node])
    except OmegaConfBaseException as error:
        raise UserError(word_omegaconf(error, origins)) from error
    except UserError as error:
        lines = [line + origin_of(re.split(r"[=: ]", line, maxsplit=1)[0], origins) for line in str(error).split("\n")]
        raise UserError("\n".join(lines)) from error
    return config


def origin_of(key: str, origins: dict[str, str]) -> str:
    """`' (from …)'` for the place that set `key`, where it is not the defaults in conf/."""
    for known, place in origins.items():
        if key == known or known.startswith(key + ".") or key.startswith(known + "."):
            return f" (from {place})"
    return ""


def word_omegaconf(error: OmegaConfBaseException, origins: dict[str, str]) -> str:
    """One message for a key that is unknown or of a wrong type."""
    key = str(getattr(error, "full_key", None) or getattr(error, "key", None) or "")
    reason = str(getattr(error, "msg", None) or error).splitlines()[0]
    if "not in '" in reason:
        known = list(flatten(asdict(Config())))
        parent = key.rpartition(".")[0]
        siblings = [k for k in known if k.rpartition(".")[0] == parent] or known
        reason = f"unknown key.{nearest(key, known + siblings)}"
    return f"{key}: {reason}{origin_of(key, origins)}"


def refuse(error: Exception) -> int:
    """Prints one message for a bad input and gives the exit code 2."""
    if isinstance(error, OmegaConfBaseException):
        text = word_omegaconf(error, {})
    elif isinstance(error, HydraException):
        text = word_hydra(error)
    else:
        text = str(error)
    print(f"run.py: {text}", file=sys.stderr)
    return 2


def known_keys() -> list[str]:
    """Every key and group that can be typed, those of the untyped nodes read from the files of their groups."""
    keys = [p.name for p in (ROOT / "conf").iterdir() if p.is_dir() and p.name != "hydra"] + list(flatten(asdict(Config())))
    for group in ("attention", "position", "dataset"):
        for option in sorted((ROOT / "conf" / group).glob("*.yaml")):
            keys += [f"{group}.{key}" for key in read_yaml(option)]
    return list(dict.fromkeys(keys))


def word_hydra(error: HydraException) -> str:
    """Hydra's own errors in one message: the key, what is wrong, the nearest valid one, the usual slip."""
    text = str(error).strip()
    cause = error.__cause__
    missing = re.search(r"Could not override '([^']+)'", text)
    option = re.search(r"Could not find '([^'/]+(?:/[^'/]+)*)/([^'/]+)'", text)
    if option:
        group, name = option.groups()
        known = sorted(p.stem for p in (ROOT / "conf" / group).glob("*.yaml"))
        return f"{group}={name}: no such option.{nearest(name, known)} There is: {', '.join(known)}."
    if missing:
        key = missing.group(1)
        return f"{key}: unknown key.{nearest(key, known_keys())}"
    if "multirun" in text.lower() or "ChoiceSweep" in text or "sweep" in text.lower():
        return text.splitlines()[0] + " A list of values needs -m: python run.py -m …"
    if "mismatched input" in text or "LexerNoViableAlt" in text or "extraneous input" in text or "no viable" in text:
        return text.splitlines()[0] + "\nA list is written without blanks (seed=0,1,2), a text with blanks in quotes ('study=\"my text\"')."
    words = [line.strip() for line in text.splitlines() if line.strip()][:2] + str(cause or "").splitlines()[:1]
    return " ".join(dict.fromkeys(word for word in words if "hydra.cc" not in word))


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """One run. Ends the process with 0 (done), 1 (the run failed), 2 (bad input), 130/143 (stopped from outside)."""
    try:
        config, choices, folder = settle(cfg)
        from xcls.start import start  # torch and the rest, only now

        code = start(config, choices, folder, command=list(HydraConfig.get().overrides.task), root=ROOT)
    except (UserError, HydraException, OmegaConfBaseException) as fault:
        code = refuse(fault)
    sys.exit(code)


def raised_by_hydra(error: Exception) -> bool:
    """Whether `error` came out of Hydra's own code while it composed: what was typed is at fault, not this program."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = Path(trace.tb_frame.f_code.co_filename).parts if trace is not None else ()
    return bool({"hydra", "omegaconf", "antlr4", "yaml"} & set(place))


if __name__ == "__main__":
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))  # argparse wants flags first
    try:
        main()
    except Exception as fault:
        if not isinstance(fault, (UserError, HydraException, OmegaConfBaseException)) and not raised_by_hydra(fault):
            raise
        sys.exit(refuse(fault))

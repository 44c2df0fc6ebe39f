"""Composes one run (or, with -m, a sweep) from the groups in conf/ and starts what `mode` says. See README.md.

Nothing heavy is imported here: `--help`, tab completion and a refused configuration answer at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P run.py` does not

from xcls.runs.allocator import start_anew
from xcls.runs.terminal import any_encoding, end_early, reader_left, stopped

QUESTIONS = (
    "--help",
    "-h",
    "--hydra-help",
    "--version",
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--shell-completion",
    "-sc",
)  # nothing runs
ASKED = any(word.partition("=")[0] in QUESTIONS for word in sys.argv[1:])
if __name__ == "__main__" and not ASKED:
    start_anew(__file__)
HOOK = sys.excepthook
if __name__ == "__main__":
    sys.excepthook = end_early

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises its errors, and `refuse` below words them

import hydra  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: E402
from hydra.core.override_parser.types import ChoiceSweep, RangeSweep  # noqa: E402
from hydra.errors import HydraException  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from xcls.config.cli_checks import check_slips  # noqa: E402
from xcls.config.errors import package_worded, with_origins, word_hydra, word_omegaconf  # noqa: E402
from xcls.config.files import check_texts, read_yaml  # noqa: E402
from xcls.config.hydra_settings import check_launcher, check_words, completion  # noqa: E402
from xcls.config.overrides import admitted, quote_typed  # noqa: E402
from xcls.config.rates import settle_rates  # noqa: E402
from xcls.config.renamed import current  # noqa: E402
from xcls.config.schema import Config, UserError, check, check_name, flatten, nearest, unflatten  # noqa: E402
from xcls.config.targets import FILES, check_node  # noqa: E402
from xcls.runs.identity import runs_root  # noqa: E402
from xcls.runs.paths import at, find_run, in_project  # noqa: E402
from xcls.runs.record import without_secrets  # noqa: E402
from xcls.runs.redact import hide_secrets  # noqa: E402
from xcls.runs.spec import Outline, outlines  # noqa: E402

sys.excepthook = HOOK  # `enter` sees to it from here

ROOT = Path(__file__).resolve().parent
RUNS = runs_root(ROOT)
MOST_JOBS = 10_000  # of one sweep
UNTYPED = ("attention", "position", "dataset.source")  # typed by the signature of their _target_
HOMES = {
    "attention": "xcls.attention.",
    "position": "xcls.position.",
    "dataset.source": "xcls.data.",
}  # of their targets
BUILDER_GIVES = {
    "attention": ("name", "num_heads", "head_dim", "layer", "seed"),
    "position": ("name", "embed_dim", "num_heads", "head_dim", "num_layers", "seq_len"),
    "dataset.source": ("path", "text", "label"),
}
INHERITED = ("attention", "position", "size", "tokenizer", "seq_len")  # by fine-tuning, from its pretraining run
NOT_IN_FILE = (
    "mode",
    "exp",
    "resume",
    "retry_failed",
    "template",
    "pretrain",
    "checkpoint",
    "split",
    "input",
    "output",
    "text",
    "reading",
    "sweep",
)


class Typed:
    """What the user typed: whole groups (`attention=performer`) and single values (`size.width=64`)."""

    def __init__(self, overrides: list[str], groups: set[str]) -> None:
        self.groups: set[str] = set()
        self.values: set[str] = set()
        for override in OverridesParser.create().parse_overrides(overrides):
            key = override.key_or_group
            if override.is_delete():
                raise UserError(
                    f"~{key}: a key cannot be taken away; every one is needed. Set it to another value instead."
                )
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


def take_file(
    tree: dict[str, Any], path: Path, typed: Typed, choices: dict[str, str], origins: dict[str, str]
) -> dict[str, Any]:
    """Lays the run file at `path` over the composed tree; its `choices:` name what the user did not type."""
    file = current(read_yaml(path))
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


def inherit(
    tree: dict[str, Any], parent: Path, typed: Typed, choices: dict[str, str], origins: dict[str, str]
) -> dict[str, Any]:
    """The composed tree with the architecture of the run at `parent`, and its data set unless another was typed or a template names it."""
    file = current(read_yaml(parent / "resolved_config.yaml"))
    values = flatten(tree)
    wrong = []
    for node in INHERITED:
        theirs = {key: value for key, value in file.items() if key == node or key.startswith(node + ".")}
        if not theirs:
            raise UserError(
                f"{parent / 'resolved_config.yaml'}: names no {node}, so it is no run of this program, or damaged."
            )
        ours = {key: value for key, value in values.items() if key == node or key.startswith(node + ".")}
        for key in sorted(set(theirs) | set(ours)):
            if typed.shields(key) and theirs.get(key) != ours.get(key):
                wrong.append(f"{key}={ours.get(key)}: {parent.name} was trained with {key}={theirs.get(key)}.")
    if wrong:
        wrong.append(
            "Fine-tuning takes the architecture from its pretraining run; head, finetuning, dataset, seed, hardware, wandb are free."
        )
        raise UserError("\n".join(wrong))
    nodes = list(INHERITED)
    if "dataset" not in typed.groups and choices.get("experiment") is None and not values.get("template"):
        nodes.append("dataset")
    values = {k: v for k, v in values.items() if k.split(".")[0] not in nodes or k in typed.values}
    taken = {key: value for key, value in file.items() if key.split(".")[0] in nodes and key not in typed.values}
    origins.update({key: str(parent / "resolved_config.yaml") for key in taken})
    choices.update({node: file[f"choices.{node}"] for node in nodes if f"choices.{node}" in file})
    return unflatten({**values, **taken})


def take_run(
    tree: dict[str, Any], config_exp: str | None, typed: Typed, choices: dict[str, str]
) -> tuple[dict[str, Any], Path]:
    """mode=eval and predict: the configuration of the run that `exp` names, with the few keys that may be typed over it."""
    if not config_exp:
        raise UserError("exp: name the fine-tuned run to read: exp=<name under finetune/, or a run folder>.")
    folder = find_run("exp", config_exp, root=RUNS, stages=("finetune",))
    free = (
        "mode",
        "exp",
        "split",
        "input",
        "output",
        "checkpoint",
        "hardware",
        "wandb",
        "dataset.path",
        "finetuning.eval_batch_size",
    )
    if tree["mode"] == "predict":  # its documents are others than those of the run
        free += ("dataset.truncate", "text", "dataset.text", "dataset.source")
    refused = [
        key
        for key in sorted(typed.groups | typed.values)
        if not any(key == f or key.startswith(f + ".") for f in free)
        or key in ("dataset.source", "dataset.source._target_")
    ]
    if refused:
        raise UserError(
            f"{', '.join(refused)}: mode={tree['mode']} reads a finished run as it is; only {', '.join(free[2:])} may be set."
        )
    file = current(read_yaml(folder / "resolved_config.yaml"))
    choices.update({key.partition(".")[2]: value for key, value in file.items() if key.startswith("choices.")})
    keep = {"mode", "exp", "split", "input", "output", "text", "reading", "checkpoint"}
    dtype = file.get("resolved.dtype", "auto") if not typed.touches("hardware") else None
    file = {k: v for k, v in file.items() if k.split(".")[0] not in (*keep, "hardware", "wandb", "resolved", "choices")}
    if dtype:  # the same numbers need the same arithmetic
        file["hardware.dtype"] = dtype
    if tree["mode"] == "predict":  # the run's own data set stays as it is; what was typed is about the new documents
        values = flatten(tree)
        for key in sorted(typed.values):
            if key == "dataset.text":
                tree["text"] = tree["text"] or values[key]
            elif key.startswith("dataset.source."):
                tree["reading"][key.removeprefix("dataset.source.")] = values[key]
        typed.values = {key for key in typed.values if not key.startswith(("dataset.text", "dataset.source"))}
    else:  # relative places are those of the working directory, else of the project: a run is used from anywhere
        file["dataset.path"] = in_project(file.get("dataset.path"), ROOT)
        file["dataset.extra"] = [in_project(path, ROOT) for path in file.get("dataset.extra") or []]
    return lay_over(tree, file, typed), folder


def take_per(tree: dict[str, Any], typed: Typed, choices: dict[str, str]) -> None:
    """Lays `+per.<attention>.<key>=value` over `tree` where this run has that attention: one sweep, settings of each mechanism."""
    per = tree.pop("per", None) or {}
    options = {path.stem: read_yaml(path) for path in (ROOT / "conf" / "attention").glob("*.yaml")} if per else {}
    for key, value in flatten(per if isinstance(per, dict) else {"": per}).items():
        option, _, leaf = key.partition(".")
        if leaf not in options.get(option, ()):
            known = [f"per.{name}.{leaf}" for name, file in options.items() for leaf in file]
            raise UserError(
                f"per.{key}: unknown key; +per.<attention>.<its key>=<value> is needed.{nearest(f'per.{key}', known)}"
            )
        if option == choices["attention"]:
            tree["attention"][leaf] = value
            typed.values.add(f"attention.{leaf}")
        elif not tree.get("sweep"):
            raise UserError(f"per.{key}: this run has attention={choices['attention']}.")


def settle(cfg: DictConfig) -> tuple[Config, dict[str, str], Path | None]:
    """The typed configuration, the choices of the groups, and the run it starts from. Raises UserError."""
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    choices = {
        k: v for k, v in OmegaConf.to_container(hydra_config.runtime.choices).items() if not k.startswith("hydra/")
    }
    typed = Typed(overrides, set(choices))
    tree = OmegaConf.to_container(cfg, resolve=True)
    take_per(tree, typed, choices)
    origins = dict.fromkeys(typed.values, "the command line")
    tree = OmegaConf.to_container(of_schema(tree, origins))
    folder: Path | None = None
    exp, mode = tree.get("exp"), tree.get("mode")
    if isinstance(exp, str) and mode not in ("eval", "predict"):
        check_name("exp", exp)
        if without_secrets(exp) != exp:
            raise UserError(
                "exp: this is an API key, a token or a password, or the value of one in the environment; it names a folder."
            )
    if (tree.get("text") is not None or tree.get("reading")) and mode != "predict":
        raise UserError("text: this is about new documents, mode=predict. The column to train on is dataset.text=….")
    if mode in ("eval", "predict"):
        tree, folder = take_run(tree, exp, typed, choices)
    elif tree.get("template"):
        tree = take_file(tree, at(tree["template"]), typed, choices, origins)
    elif mode == "pretrain" and exp and not tree.get("sweep") and (RUNS / "pretrain" / exp / "config.yaml").is_file():
        tree = take_file(tree, RUNS / "pretrain" / exp / "config.yaml", typed, choices, origins)
    if mode == "finetune" and isinstance(tree.get("pretrain"), str) and tree["pretrain"] != "auto":
        folder = find_run("pretrain", tree["pretrain"], root=RUNS, stages=("pretrain", "finetune"))
        tree = inherit(tree, folder, typed, choices, origins)
    config = to_typed(tree, origins)
    for group, choice in choices.items():  # they name folders, and those of a file are as good as the file
        if choice is not None:
            check_name(group, str(choice))
    return config, choices, folder


def of_schema(tree: dict[str, Any], origins: dict[str, str]) -> DictConfig:
    """The tree with every key known and every value of its type (`exp=5` is the text '5'). Raises UserError."""
    try:
        check_texts(flatten(tree))
        return OmegaConf.merge(OmegaConf.structured(Config), tree)
    except OmegaConfBaseException as error:
        raise UserError(word_omegaconf(error, origins)) from error
    except UserError as error:
        raise with_origins(error, origins) from error


def to_typed(tree: dict[str, Any], origins: dict[str, str]) -> Config:
    """The tree as the dataclasses of the schema, with every value checked. Raises UserError naming key and origin."""
    config = OmegaConf.to_object(of_schema(tree, origins))
    try:
        check(config)
        settle_rates(config)
        for node in UNTYPED:
            value = config.dataset.source if node == "dataset.source" else getattr(config, node)
            check_node(node, value, BUILDER_GIVES[node], home=HOMES[node])
        check_node("dataset.source", {"_target_": FILES, **config.reading}, BUILDER_GIVES["dataset.source"])
    except UserError as error:
        raise with_origins(error, origins) from error
    return config


def refuse(error: Exception, words: Sequence[str] = ()) -> int:
    """Prints one message for a bad input and gives the exit code 2. words: what was typed."""
    if isinstance(error, OmegaConfBaseException):
        text = word_omegaconf(error, {})
    elif isinstance(error, HydraException):
        text = word_hydra(str(error), str(error.__cause__ or ""), words, ROOT / "conf")
    elif isinstance(error, UserError):
        text = str(error)
    elif isinstance(error, OSError):
        text = f"{error.filename or 'a file'}: {error.strerror or error}. Check the path, and that it may be read or written."
        if RUNS in Path(os.path.abspath(os.fsdecode(error.filename or "/"))).parents:
            text += " XCLS_RUNS=<another folder> in the environment puts all runs there."
    else:  # out of Hydra's inside
        text = f"this cannot be read as a configuration ({type(error).__name__}: {' '.join(str(error).split())[:300]})."
    print(f"run.py: {text}", file=sys.stderr)
    return 2


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """One run. Ends the process with 0 (done), 1 (the run failed), 2 (bad input), 130/143 (stopped from outside)."""
    hide_secrets()  # here and in `enter`: a job of a sweep does not come by there
    config = None
    try:
        config, choices, folder = settle(cfg)
        from xcls.stages.start import start  # torch and the rest, only now

        code = start(config, choices, folder, command=list(HydraConfig.get().overrides.task), root=ROOT)
    except KeyboardInterrupt as stop:
        if not stop.args and config is not None and config.mode in ("eval", "predict", "bench"):
            stop = KeyboardInterrupt(f"mode={config.mode}: interrupted.")  # it may have written something
        code = stopped(stop)
    except BrokenPipeError:
        raise  # to `enter`
    except (UserError, HydraException, OmegaConfBaseException, OSError) as fault:
        code = refuse(fault)
    sys.stdout.flush()
    sys.exit(code)


def check_grid(words: list[str]) -> None:
    """Refuses a sweep of more than MOST_JOBS jobs before Hydra lists them all. Raises UserError, HydraException."""
    typed = [word for word in words if "=" in word and not word.startswith("-")]
    values = [override.value() for override in OverridesParser.create().parse_overrides(typed)]
    sizes = [len(value.list) for value in values if isinstance(value, ChoiceSweep)]
    sizes += [sum(1 for _ in islice(value.range(), MOST_JOBS + 1)) for value in values if isinstance(value, RangeSweep)]
    if prod(sizes) > MOST_JOBS:
        raise UserError(f"This sweep has more than {MOST_JOBS:,} jobs. Take values out of its lists and ranges.")


def outline(cfg: DictConfig) -> list[Outline]:
    """For the launcher of a sweep: the run of one job, last, after the runs it needs first. Raises UserError."""
    config, choices, folder = settle(cfg)
    from xcls.build import Plan  # torch and the rest, only now
    from xcls.train.cards import of_jobs

    return outlines(Plan(config, choices, folder, list(HydraConfig.get().overrides.task), ROOT, find=of_jobs))


def raised_by_hydra(error: Exception) -> bool:
    """Whether `error` came up while Hydra read what was typed: that is at fault, not this program."""
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return main.__wrapped__.__code__ not in codes and not any("xcls_launcher" in code.co_filename for code in codes)


def enter(words: list[str]) -> int:
    """Runs what was typed and gives the exit code."""
    hide_secrets()
    any_encoding()
    try:
        settings = check_slips(words, ROOT / "conf")
        check_words(settings)
        check_launcher(settings, ROOT / "conf")
        plain = quote_typed(words, OverridesParser.create().parse_override)
        check_grid(plain)
        sys.argv[1:] = sorted(
            admitted(plain, UNTYPED), key=lambda word: word not in ("-m", "--multirun")
        )  # argparse wants flags first
        with package_worded(words, ROOT / "conf"), completion(words, ROOT / "conf"):
            main()
            sys.stdout.flush()
    except KeyboardInterrupt as stop:
        return stopped(stop)
    except BrokenPipeError:
        return reader_left(asked=ASKED)
    except Exception as fault:
        if not isinstance(fault, (UserError, HydraException, OmegaConfBaseException, OSError)) and not raised_by_hydra(
            fault
        ):
            raise
        return refuse(fault, words)
    return 0


if __name__ == "__main__":
    sys.exit(enter(sys.argv[1:]))

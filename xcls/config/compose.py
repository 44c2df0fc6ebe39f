"""One run's configuration, as one typed object: conf/ as Hydra composed it, files and finished runs merged into it.

Later wins: defaults in conf/, experiment, a file (`template=`, `pretrain/<exp>/config.yaml`) or finished run, the call.
A group that was typed (`attention=performer`) wins as a whole node, a single value (`size.width=64`) alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xcls.config.errors import with_origins, word_omegaconf
from xcls.config.files import check_texts, read_yaml
from xcls.config.limits import check
from xcls.config.rates import settle_rates
from xcls.config.renamed import current
from xcls.config.schema import Config, UserError, check_name, flatten, nearest, unflatten
from xcls.config.targets import FILES, check_node
from xcls.runs.identity import ARCHITECTURE, runs_root
from xcls.runs.paths import at, find_run, in_project
from xcls.runs.redact import without_secrets

UNTYPED = {  # typed by the signature of their _target_: the package it must be in, and what the builder itself passes
    "attention": ("xcls.attention.", ("name", "num_heads", "head_dim", "layer", "seed")),
    "position": ("xcls.position.", ("name", "embed_dim", "num_heads", "head_dim", "num_layers", "seq_len")),
    "dataset.source": ("xcls.data.", ("path", "text", "label")),
}
OF_ONE_CALL = ("exp", "split", "input", "output", "checkpoint", "text", "reading")  # of mode=eval and predict
FREE = ("split", "input", "output", "checkpoint", "hardware", "wandb", "dataset.path", "finetuning.eval_batch_size")
FREE_IN = {"eval": FREE, "predict": (*FREE, "dataset.truncate", "text", "dataset.text", "dataset.source")}
NOT_IN_FILE = ("mode", "resume", "retry_failed", "template", "pretrain", "sweep", *OF_ONE_CALL)


@dataclass
class RunConfig:
    """What `compose_config` gives."""

    config: Config
    choices: dict[str, str]  # the chosen file of each group of conf/
    parent: Path | None  # the run that fine-tuning starts from, or that mode=eval and predict read
    overrides: list[str]  # what was typed
    root: Path  # the project: the folder of conf/


def compose_config(cfg: DictConfig) -> RunConfig:
    """The checked configuration of the run that Hydra has composed as `cfg`. Reads files and runs, writes nothing.

    Raises UserError with key, origin and remedy for each fault, and OmegaConf's errors for an unknown `${…}`.
    """
    draft = _Draft(cfg)
    draft.take_per_mechanism()
    parent: Path | None = None
    mode, exp = draft.values.get("mode"), draft.values.get("exp")
    if mode in ("eval", "predict"):
        parent = draft.load_run_config(exp)
    elif draft.values.get("template"):
        draft.merge_file(at(str(draft.values["template"])))
    elif mode == "pretrain" and exp is not None and not draft.values.get("sweep"):
        check_name("exp", str(exp))
        if (draft.runs / "pretrain" / str(exp) / "config.yaml").is_file():
            draft.merge_file(draft.runs / "pretrain" / str(exp) / "config.yaml")
    pretrain = draft.values.get("pretrain")
    if mode == "finetune" and pretrain is not None and pretrain != "auto":
        parent = find_run("pretrain", str(pretrain), root=draft.runs, stages=("pretrain", "finetune"))
        draft.inherit(parent)
    return RunConfig(draft.typed(), draft.choices, parent, draft.overrides, draft.root)


def project_root() -> Path:
    """The folder of the conf/ that Hydra reads."""
    return Path(
        next(source.path for source in HydraConfig.get().runtime.config_sources if source.provider == "main")
    ).parent


class _Draft:
    """A configuration being composed: flat values, choices of the groups, what was typed, origins of values."""

    def __init__(self, cfg: DictConfig) -> None:
        hydra = HydraConfig.get()
        self.root = project_root()
        self.runs = runs_root(self.root)
        self.overrides = list(hydra.overrides.task)
        self.choices: dict[str, str] = {
            str(group): choice for group, choice in hydra.runtime.choices.items() if not str(group).startswith("hydra/")
        }
        self.values: dict[str, Any] = flatten(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
        self.typed_groups: set[str] = set()
        self.typed_keys: set[str] = set()
        for override in OverridesParser.create().parse_overrides(self.overrides):
            key = override.key_or_group
            if override.is_delete():
                raise UserError(f"~{key}: every key is needed. Set it to another value instead.")
            (self.typed_groups if key in self.choices else self.typed_keys).add(key)
        self.origins = dict.fromkeys(self.typed_keys, "the command line")
        for group in self.choices:
            name = str(self.values.get(f"{group}.name"))
            if f"{group}.name" in self.typed_keys and (self.root / "conf" / group / f"{name}.yaml").is_file():
                raise UserError(f"{group}.name={name}: this changes only the name. Choose it by {group}={name}.")

    def is_overridden(self, key: str) -> bool:
        """Whether the command line decides `key`, so that a file may not."""
        return key in self.typed_keys or any(_inside(key, group) for group in self.typed_groups)

    def take_per_mechanism(self) -> None:
        """Sets `+per.<attention>.<key>=value` where this run has that attention, for sweeps over several."""
        per = {key: self.values.pop(key) for key in list(self.values) if _inside(key, "per")}
        options = {path.stem: read_yaml(path) for path in (self.root / "conf/attention").glob("*.yaml")} if per else {}
        for key, value in per.items():
            option, _, leaf = key.removeprefix("per.").partition(".")
            if leaf not in options.get(option, ()):
                known = [f"per.{name}.{leaf}" for name, file in options.items() for leaf in file]
                raise UserError(f"{key}: unknown key.{nearest(key, known)} Write +per.<attention>.<its key>=<value>.")
            if option == self.choices["attention"]:
                self.values[f"attention.{leaf}"] = value
                self.typed_keys.add(f"attention.{leaf}")
            elif not self.values.get("sweep"):
                raise UserError(f"{key}: this run has attention={self.choices['attention']}.")

    def merge(self, file: dict[str, Any], origin: Path) -> None:
        """Puts the flat values of a file over the composed ones, where the command line does not decide."""
        for node in UNTYPED:
            if f"{node}._target_" in file and not self.is_overridden(node):  # of another class: its keys go with it
                for key in [key for key in self.values if _inside(key, node) and key not in self.typed_keys]:
                    del self.values[key]
        taken = {key: value for key, value in file.items() if not self.is_overridden(key)}
        self.values.update(taken)
        self.origins.update(dict.fromkeys(taken, str(origin)))

    def merge_file(self, path: Path) -> None:
        """Merges a run's own file; its `choices.` lines name what the command line does not."""
        file = current(read_yaml(path))
        for key, choice in _under("choices", file).items():
            if key not in self.choices:
                raise UserError(
                    f"{path}: choices.{key}: there is no such config group.{nearest(key, list(self.choices))}"
                )
            if key in self.typed_groups:
                continue
            if key in ("attention", "position"):
                self._check_choice(path, key, choice, file)
            self.choices[key] = choice
        self.merge(
            {k: v for k, v in file.items() if k.split(".")[0] not in ("choices", "resolved", *NOT_IN_FILE)}, path
        )

    def _check_choice(self, path: Path, group: str, choice: Any, file: dict[str, Any]) -> None:
        """Refuses a choice whose file is not there, or of another class than the node's lines below it."""
        option = self.root / "conf" / group / f"{choice}.yaml"
        if not option.is_file():
            known = sorted(other.stem for other in option.parent.glob("*.yaml"))
            raise UserError(f"{path}: choices.{group}={choice}: no such option.{nearest(str(choice), known)}")
        target = read_yaml(option).get("_target_")
        if target != file.get(f"{group}._target_", target):
            raise UserError(
                f"{path}: choices.{group} says '{choice}', but the {group}.* lines are of another mechanism. "
                f"Type {group}={choice} on the command line, or replace those lines by conf/{group}/{choice}.yaml."
            )

    def inherit(self, parent: Path) -> None:
        """Takes the architecture of the run at `parent`, and its data unless others are named."""
        path = parent / "resolved_config.yaml"
        file = current(read_yaml(path))
        wrong = []
        for node in ARCHITECTURE:
            if not any(_inside(key, node) for key in file):
                raise UserError(f"{path}: names no {node}, so it is no run of this program, or damaged.")
            for key in sorted(key for key in {*file, *self.values} if _inside(key, node) and self.is_overridden(key)):
                own, theirs = self.values.get(key), file.get(key)
                if own != theirs:
                    wrong.append(f"{key}={own}: {parent.name} was trained with {key}={theirs}.")
        if wrong:
            free = "head, finetuning, dataset, seed, hardware, wandb"
            raise UserError(
                "\n".join([*wrong, f"Fine-tuning takes the architecture from its pretraining run; free: {free}."])
            )
        named = "dataset" in self.typed_groups or self.choices.get("experiment") or self.values.get("template")
        nodes = ARCHITECTURE if named else (*ARCHITECTURE, "dataset")

        def taken(key: str) -> bool:
            return key.split(".")[0] in nodes and key not in self.typed_keys

        theirs = {key: value for key, value in file.items() if taken(key)}
        self.values = {key: value for key, value in self.values.items() if not taken(key)} | theirs
        self.origins.update(dict.fromkeys(theirs, str(path)))
        self.choices.update({node: choice for node, choice in _under("choices", file).items() if node in nodes})

    def load_run_config(self, exp: Any) -> Path:
        """Takes the configuration of the finished run that `exp` names, for mode=eval and predict. Gives its folder."""
        if not exp:
            raise UserError("exp: name the fine-tuned run to read: exp=<name under finetune/, or a run folder>.")
        folder = find_run("exp", str(exp), root=self.runs, stages=("finetune",))
        mode = self.values["mode"]
        self._check_free(mode)
        file = current(read_yaml(folder / "resolved_config.yaml"))
        self.choices.update(_under("choices", file))
        dtype = file.get("resolved.dtype", "auto")
        others = ("mode", "hardware", "wandb", "resolved", "choices", *OF_ONE_CALL)
        file = {key: value for key, value in file.items() if key.split(".")[0] not in others}
        if not any(_inside(key, "hardware") for key in self.typed_groups | self.typed_keys):
            file["hardware.dtype"] = dtype  # the same numbers need the same arithmetic
        if mode == "predict":  # the run's own data set stays; what was typed is about the new documents
            self._move_to_documents()
        else:  # relative paths are those of the working directory, else of the project
            file["dataset.path"] = in_project(file.get("dataset.path"), self.root)
            file["dataset.extra"] = [in_project(path, self.root) for path in file.get("dataset.extra") or []]
        self.merge(file, folder / "resolved_config.yaml")
        return folder

    def _check_free(self, mode: str) -> None:
        free, refused = FREE_IN[mode], []
        for key in sorted(self.typed_groups | self.typed_keys):
            whole = key in ("dataset.source", "dataset.source._target_")  # another source altogether
            if whole or not any(_inside(key, allowed) for allowed in ("mode", "exp", *free)):
                refused.append(key)
        if refused:
            raise UserError(
                f"{', '.join(refused)}: mode={mode} reads a finished run as it is; only {', '.join(free)} may be set."
            )

    def _move_to_documents(self) -> None:
        """`dataset.text` and `dataset.source.*` as typed become `text` and `reading.*`."""
        for key in sorted(self.typed_keys):
            if key == "dataset.text":
                self.values["text"] = self.values.get("text") or self.values[key]
            elif _inside(key, "dataset.source"):
                self.values[f"reading.{key.removeprefix('dataset.source.')}"] = self.values[key]
            else:
                continue
            self.typed_keys.remove(key)

    def typed(self) -> Config:
        """The values as the dataclasses of the schema, each checked. Raises UserError naming key and origin."""
        try:
            check_texts(self.values)
            merged = OmegaConf.merge(OmegaConf.structured(Config), unflatten(self.values))
            config: Config = OmegaConf.to_object(merged)  # type: ignore[assignment]
            check(config)
            if config.mode not in ("eval", "predict") and config.exp and without_secrets(config.exp) != config.exp:
                raise UserError(
                    "exp: this holds an API key, a token or a password, and would name a folder. Choose a name."
                )
            settle_rates(config)
            for node, (home, given) in UNTYPED.items():
                value = config.dataset.source if node == "dataset.source" else getattr(config, node)
                check_node(node, value, given, home=home)
            check_node("dataset.source", {"_target_": FILES, **config.reading}, UNTYPED["dataset.source"][1])
        except OmegaConfBaseException as error:
            raise UserError(word_omegaconf(error, self.origins)) from error
        except UserError as error:
            raise with_origins(error, self.origins) from error
        for group, choice in self.choices.items():
            if choice is not None:
                check_name(group, str(choice))  # it becomes part of a folder's name
        return config


def _inside(key: str, node: str) -> bool:
    return key == node or key.startswith(node + ".")


def _under(node: str, flat: dict[str, Any]) -> dict[str, Any]:
    """The values below `node`, without its name: `{'a': 1}` for `{'node.a': 1}`."""
    return {key.removeprefix(f"{node}."): value for key, value in flat.items() if key.startswith(f"{node}.")}

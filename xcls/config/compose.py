"""One run's configuration, as one typed object: conf/ as Hydra composed it, files and finished runs merged into it.

What is read later wins:
  every mode                          defaults in conf/ < experiment < command line
  template=, pretrain/<exp>/          … < the file (`_Draft.merge_file`) < command line
  finetune with pretrain=<run>        … < architecture of the run, and its data unless others are named (`inherit`)
  eval, predict                       … < the finished run (`load_run_config`) < the few keys of SETTABLE
A group given on the command line (`attention=performer`) overrides the whole group in the file; a single key
(`size.width=64`) overrides only that key.
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

TARGET_NODES = {  # checked against the constructor of `_target_`: its package, and the arguments that xcls.build passes
    "attention": ("xcls.attention.", ("name", "num_heads", "head_dim", "layer", "seed")),
    "position": ("xcls.position.", ("name", "embed_dim", "num_heads", "head_dim", "num_layers", "seq_len")),
    "dataset.source": ("xcls.data.", ("path", "text", "label")),
}
CALL_KEYS = ("exp", "split", "input", "output", "checkpoint", "text", "reading")  # for one call of eval or predict
EVAL = ("split", "input", "output", "checkpoint", "hardware", "wandb", "dataset.path", "finetuning.eval_batch_size")
SETTABLE = {"eval": EVAL, "predict": (*EVAL, "dataset.truncate", "text", "dataset.text", "dataset.source")}
COMMAND_ONLY_KEYS = ("mode", "resume", "retry_failed", "template", "pretrain", "sweep", *CALL_KEYS)


@dataclass
class RunConfig:
    """The result of `compose_config`."""

    config: Config
    choices: dict[str, str]  # the chosen file of each group of conf/
    parent: Path | None  # the run that fine-tuning starts from, or that mode=eval and predict read
    overrides: list[str]  # from the command line
    root: Path  # the project: the folder that holds conf/


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
        file = draft.runs / "pretrain" / str(exp) / "config.yaml"
        if file.is_file():
            draft.merge_file(file)
    pretrain = draft.values.get("pretrain")
    if mode == "finetune" and pretrain is not None and pretrain != "auto":
        parent = find_run("pretrain", str(pretrain), root=draft.runs, stages=("pretrain", "finetune"))
        draft.inherit(parent)
    return RunConfig(draft.checked(), draft.choices, parent, draft.overrides, draft.root)


def project_root() -> Path:
    """The folder that holds the conf/ that Hydra reads."""
    return Path(
        next(source.path for source in HydraConfig.get().runtime.config_sources if source.provider == "main")
    ).parent


class _Draft:
    """A configuration being composed: flat values, choices of the groups, overrides, origins of values."""

    def __init__(self, cfg: DictConfig) -> None:
        hydra = HydraConfig.get()
        self.root = project_root()
        self.runs = runs_root(self.root)
        self.overrides = list(hydra.overrides.task)
        self.choices: dict[str, str] = {
            str(group): choice for group, choice in hydra.runtime.choices.items() if not str(group).startswith("hydra/")
        }
        self.values: dict[str, Any] = flatten(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
        self.overridden_groups: set[str] = set()
        self.overridden_keys: set[str] = set()
        for override in OverridesParser.create().parse_overrides(self.overrides):
            key = override.key_or_group
            if override.is_delete():
                raise UserError(f"~{key}: every key is needed. Set it to another value instead.")
            (self.overridden_groups if key in self.choices else self.overridden_keys).add(key)
        self.origins = dict.fromkeys(self.overridden_keys, "the command line")
        for group in self.choices:
            name = str(self.values.get(f"{group}.name"))
            if f"{group}.name" in self.overridden_keys and (self.root / "conf" / group / f"{name}.yaml").is_file():
                raise UserError(f"{group}.name={name}: this changes only the name. Choose it by {group}={name}.")

    def is_overridden(self, key: str) -> bool:
        """Whether the command line sets `key`, so that a file must not change it."""
        return key in self.overridden_keys or any(_inside(key, group) for group in self.overridden_groups)

    def take_per_mechanism(self) -> None:
        """Sets `+per.<attention>.<key>=value` if this run has that attention, for sweeps over several mechanisms."""
        per = {key: self.values.pop(key) for key in list(self.values) if _inside(key, "per")}
        options = {path.stem: read_yaml(path) for path in (self.root / "conf/attention").glob("*.yaml")} if per else {}
        for key, value in per.items():
            option, _, leaf = key.removeprefix("per.").partition(".")
            if leaf not in options.get(option, ()):
                known = [f"per.{name}.{leaf}" for name, file in options.items() for leaf in file]
                raise UserError(f"{key}: unknown key.{nearest(key, known)} Write +per.<attention>.<its key>=<value>.")
            if option == self.choices["attention"]:
                self.values[f"attention.{leaf}"] = value
                self.overridden_keys.add(f"attention.{leaf}")
            elif not self.values.get("sweep"):
                raise UserError(f"{key}: this run has attention={self.choices['attention']}.")

    def merge(self, file: dict[str, Any], origin: Path) -> None:
        """Replaces the composed values by the flat values of a file, except those that the command line sets."""
        for node in TARGET_NODES:
            if f"{node}._target_" in file and not self.is_overridden(node):
                # The file may name another class: drop the keys of the old one.
                for key in [key for key in self.values if _inside(key, node) and key not in self.overridden_keys]:
                    del self.values[key]
        taken = {key: value for key, value in file.items() if not self.is_overridden(key)}
        self.values.update(taken)
        self.origins.update(dict.fromkeys(taken, str(origin)))

    def merge_file(self, path: Path) -> None:
        """Merges a run's own file. Its `choices.` lines choose the groups that the command line does not choose."""
        file = current(read_yaml(path))
        for key, choice in _under("choices", file).items():
            if key not in self.choices:
                raise UserError(
                    f"{path}: choices.{key}: there is no such config group.{nearest(key, list(self.choices))}"
                )
            if key in self.overridden_groups:
                continue
            if key in ("attention", "position"):
                self._check_choice(path, key, choice, file)
            self.choices[key] = choice
        self.merge(
            {k: v for k, v in file.items() if k.split(".")[0] not in ("choices", "resolved", *COMMAND_ONLY_KEYS)}, path
        )

    def _check_choice(self, path: Path, group: str, choice: Any, file: dict[str, Any]) -> None:
        """Refuses a choice without a file in conf/, or with another class than the `<group>.*` lines of `file`."""
        option = self.root / "conf" / group / f"{choice}.yaml"
        if not option.is_file():
            known = sorted(other.stem for other in option.parent.glob("*.yaml"))
            raise UserError(f"{path}: choices.{group}={choice}: no such option.{nearest(str(choice), known)}")
        target = read_yaml(option).get("_target_")
        if target != file.get(f"{group}._target_", target):
            raise UserError(
                f"{path}: choices.{group} says '{choice}', but its {group}.* lines belong to another class. "
                f"Type {group}={choice} on the command line, or replace those lines by conf/{group}/{choice}.yaml."
            )

    def inherit(self, parent: Path) -> None:
        """Takes the architecture of the run in `parent`, and its data set unless another one is named."""
        path = parent / "resolved_config.yaml"
        file = current(read_yaml(path))
        wrong = []
        for node in ARCHITECTURE:
            if not any(_inside(key, node) for key in file):
                raise UserError(f"{path}: there is no '{node}' section: not an xcls run, or damaged.")
            for key in sorted(key for key in {*file, *self.values} if _inside(key, node) and self.is_overridden(key)):
                own, theirs = self.values.get(key), file.get(key)
                if own != theirs:
                    wrong.append(f"{key}={own}: {parent.name} was trained with {key}={theirs}.")
        if wrong:
            free = "head, finetuning, dataset, seed, hardware, wandb"
            raise UserError(
                "\n".join([*wrong, f"Fine-tuning takes the architecture from its pretraining run; free: {free}."])
            )
        named = "dataset" in self.overridden_groups or self.choices.get("experiment") or self.values.get("template")
        nodes = ARCHITECTURE if named else (*ARCHITECTURE, "dataset")

        def taken(key: str) -> bool:
            return key.split(".")[0] in nodes and key not in self.overridden_keys

        theirs = {key: value for key, value in file.items() if taken(key)}
        self.values = {key: value for key, value in self.values.items() if not taken(key)} | theirs
        self.origins.update(dict.fromkeys(theirs, str(path)))
        self.choices.update({node: choice for node, choice in _under("choices", file).items() if node in nodes})

    def load_run_config(self, exp: Any) -> Path:
        """Takes the configuration of the finished run `exp`, for mode=eval and predict. Returns its folder."""
        if not exp:
            raise UserError("exp: name the fine-tuned run to read: exp=<name under finetune/, or a run folder>.")
        folder = find_run("exp", str(exp), root=self.runs, stages=("finetune",))
        mode = self.values["mode"]
        self._check_free(mode)
        file = current(read_yaml(folder / "resolved_config.yaml"))
        self.choices.update(_under("choices", file))
        dtype = file.get("resolved.dtype", "auto")
        others = ("mode", "hardware", "wandb", "resolved", "choices", *CALL_KEYS)
        file = {key: value for key, value in file.items() if key.split(".")[0] not in others}
        if not any(_inside(key, "hardware") for key in self.overridden_groups | self.overridden_keys):
            file["hardware.dtype"] = dtype  # equal results need the same dtype
        if mode == "predict":  # overrides of the data set describe the new documents, not the data of the run
            self._move_to_documents()
        else:  # a relative path is looked up in the working directory first, then in the project
            file["dataset.path"] = in_project(file.get("dataset.path"), self.root)
            file["dataset.extra"] = [in_project(path, self.root) for path in file.get("dataset.extra") or []]
        self.merge(file, folder / "resolved_config.yaml")
        return folder

    def _check_free(self, mode: str) -> None:
        free, refused = SETTABLE[mode], []
        for key in sorted(self.overridden_groups | self.overridden_keys):
            whole = key in ("dataset.source", "dataset.source._target_")  # another class of source
            if whole or not any(_inside(key, allowed) for allowed in ("mode", "exp", *free)):
                refused.append(key)
        if refused:
            raise UserError(
                f"{', '.join(refused)}: mode={mode} reads a finished run as it is; only {', '.join(free)} may be set."
            )

    def _move_to_documents(self) -> None:
        """Turns the overrides `dataset.text` and `dataset.source.*` into `text` and `reading.*`.

        They are no overrides then: the data set of the run must not get them.
        """
        for key in sorted(self.overridden_keys):
            if key == "dataset.text":
                self.values["text"] = self.values.get("text") or self.values[key]
            elif _inside(key, "dataset.source"):
                self.values[f"reading.{key.removeprefix('dataset.source.')}"] = self.values[key]
            else:
                continue
            self.overridden_keys.remove(key)

    def checked(self) -> Config:
        """The values as the dataclasses of the schema, each checked. Raises UserError naming key and origin."""
        try:
            check_texts(self.values)
            merged = OmegaConf.merge(OmegaConf.structured(Config), unflatten(self.values))
            config: Config = OmegaConf.to_object(merged)  # type: ignore[assignment]
            check(config)
            if config.mode not in ("eval", "predict") and config.exp and without_secrets(config.exp) != config.exp:
                raise UserError(
                    "exp: this contains an API key, a token or a password, and becomes a folder name. Choose another."
                )
            settle_rates(config)
            for node, (home, given) in TARGET_NODES.items():
                value = config.dataset.source if node == "dataset.source" else getattr(config, node)
                check_node(node, value, given, home=home)
            check_node("dataset.source", {"_target_": FILES, **config.reading}, TARGET_NODES["dataset.source"][1])
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

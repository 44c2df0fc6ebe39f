"""The only place where configuration becomes objects: from a checked `Config` to sources, tokenizers, models and stages."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Callable, Iterable

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from xcls.attention.check import LENGTH, check_attention, check_position
from xcls.config.schema import Config, Labels, UserError, flatten
from xcls.config.targets import FILES, parameters
from xcls.data.cache import digest
from xcls.data.reading import Reading, reading_of
from xcls.data.source import Source, as_columns, data_fingerprint
from xcls.data.splits import Prepared, prepare
from xcls.data.tokenizer import check_tokenizer, given_vocabulary
from xcls.model.encoder import Encoder
from xcls.model.heads import Classifier, MaskedLanguageModel, MLMHead, TextClassifier
from xcls.runs.code_hash import code_files
from xcls.runs.identity import code_of, run_folder, run_hash, run_name, runs_root
from xcls.runs.record import Record, plain
from xcls.stages.folder import read_or_refuse
from xcls.train.cards import Cards, here
from xcls.train.precision import Precision, check_cards, resolve
from xcls.train.provenance import Sources, find_sources

classes_of: dict[str, list[str]] = {}  # the classes of the data that this process has checked


def hash_of_names(names: Iterable[str]) -> str:
    """sha256 in hex of names, a line each."""
    whole = hashlib.sha256()
    for number, name in enumerate(names):
        whole.update(f"\n{name}".encode() if number else name.encode())
    return whole.hexdigest()


def node(value: dict[str, Any]) -> dict[str, Any]:
    """A config node without its `name`, which is for people and reports and no constructor argument."""
    return {key: item for key, item in value.items() if key != "name"}


def make_source(config: Config) -> Source:
    """The data set's source object. Raises UserError."""
    data = config.dataset
    given = {"path": data.path, "text": data.text, "label": data.label}
    if data.labels != Labels():
        if "labels" not in (parameters(data.source["_target_"]) or ()):
            raise UserError(f"dataset.labels: the classes of dataset={data.name} are fixed. It is for dataset=files.")
        given["labels"] = asdict(data.labels)
    try:
        return instantiate(data.source, **given, _convert_="all", _recursive_=False)
    except InstantiationException as error:
        raise (
            error.__cause__ if isinstance(error.__cause__, UserError) else UserError(f"dataset.source: {error}")
        ) from error


def make_reading(config: Config) -> Reading:
    """How the run's data were read, over it what was typed for new documents: `text`, `reading`. Raises UserError."""
    own = reading_of(make_source(config), config.dataset.text)
    if config.reading:
        trained = config.dataset.source if config.dataset.source["_target_"] == FILES else {"_target_": FILES}
        variant = copy.deepcopy(config)
        variant.dataset.source = {**trained, **config.reading}
        typed = make_source(variant).reading()
        own = replace(own, form=typed.form, id=typed.id, bare=None)
    return own if config.text is None else replace(own, text=as_columns(config.text, "text"), bare=None)


def make_encoder(config: Config, *, vocab_size: int) -> Encoder:
    """The encoder of this architecture, new. The mechanisms' random features follow from the seed and the layer."""
    size, seq_len = config.size, config.seq_len
    heads = {"num_heads": size.num_heads, "head_dim": size.width // size.num_heads}
    position = instantiate(
        node(config.position),
        embed_dim=size.width,
        num_layers=size.num_layers,
        seq_len=seq_len,
        **heads,
        _recursive_=False,
    )
    return Encoder(
        vocab_size=vocab_size,
        seq_len=seq_len,
        num_layers=size.num_layers,
        embed_dim=size.width,
        num_heads=size.num_heads,
        feed_forward=size.feed_forward,
        norm=size.norm,
        activation=size.activation,
        dropout=size.dropout,
        position=position,
        make_attention=lambda layer: instantiate(
            node(config.attention), layer=layer, seed=config.seed, **heads, _recursive_=False
        ),
        gradient_checkpointing=config.hardware.gradient_checkpointing,
    )


def make_language_model(config: Config, *, vocab_size: int) -> MaskedLanguageModel:
    """Encoder and MLM head, new."""
    head = MLMHead(embed_dim=config.size.width, vocab_size=vocab_size)
    return MaskedLanguageModel(encoder=make_encoder(config, vocab_size=vocab_size), head=head)


def check_architecture(config: Config) -> None:
    """Refuses hyperparameters that the mechanism or the position encoding cannot have, and one of either that breaks its
    contract (attention/check.py). Raises UserError.

    One layer's worth of either is made, so that this costs little whatever the depth; the position's tables take no memory.
    """
    shape = {"num_heads": config.size.num_heads, "head_dim": config.size.width // config.size.num_heads}
    group = "attention"
    try:
        instantiate(node(config.attention), layer=0, seed=config.seed, **shape, _recursive_=False)
        group = "position"
        with torch.device("meta"):
            instantiate(
                node(config.position),
                embed_dim=config.size.width,
                num_layers=1,
                seq_len=config.seq_len,
                **shape,
                _recursive_=False,
            )
    except InstantiationException as error:
        raise UserError(f"{group}: {error.__cause__ or error} (conf/{group}/ says what each setting means)") from error
    _check_contracts(json.dumps([config.attention, config.position]), **shape)


@lru_cache(maxsize=64)
def _check_contracts(nodes: str, *, num_heads: int, head_dim: int) -> None:
    """Tries the mechanism behind the position encoding, `nodes` as JSON, once in a process. Raises UserError.

    With two heads it takes a quarter of a second at most; with all of them where two are not to be had.
    """
    attention, position = json.loads(nodes)
    few = min(2, num_heads)

    def layers(heads: int) -> list[Any]:
        facts = {"num_heads": heads, "head_dim": head_dim, "seed": 0}
        return [instantiate(node(attention), layer=layer, **facts, _recursive_=False) for layer in (0, 1)]

    with torch.random.fork_rng(devices=[]):
        try:
            made = layers(few)
        except InstantiationException:
            few, made = num_heads, layers(num_heads)
        shape = {
            "embed_dim": few * head_dim,
            "num_heads": few,
            "head_dim": head_dim,
            "num_layers": len(made),
            "seq_len": LENGTH,
        }
        encoding = instantiate(node(position), **shape, _recursive_=False)
        check_position(encoding, name=f"position={position.get('name')} ({position['_target_']})")
        check_attention(made, encoding, name=f"attention={attention.get('name')} ({attention['_target_']})")


def check_head(config: Config, classes: list[str]) -> None:
    """Refuses a head.num_classes that is not that of the data. Raises UserError."""
    head = config.head
    if head.num_classes is not None and head.num_classes != len(classes):
        raise UserError(
            f"head.num_classes={head.num_classes}: {config.dataset.name} has {len(classes)} classes "
            f"({', '.join(classes[:8])}). Leave it null, or name another data set."
        )


def make_classifier(config: Config, *, vocab_size: int, classes: list[str]) -> TextClassifier:
    """Encoder and classification head, new. Raises UserError where head.num_classes is not that of the data."""
    check_head(config, classes)
    head = config.head
    classifier = Classifier(
        embed_dim=config.size.width, num_classes=len(classes), pooling=head.pooling, dropout=head.dropout
    )
    return TextClassifier(encoder=make_encoder(config, vocab_size=vocab_size), head=classifier)


@dataclass
class Plan:
    """One run before it begins: its configuration and everything that follows from it without loading data."""

    config: Config
    choices: dict[str, str]
    parent: Path | None
    command: list[str]
    root: Path
    sources: Sources = field(default_factory=Sources)  # the source tree, once `freeze` has looked at it
    find: Callable[[], Cards] = here  # the GPUs that it may be computed on

    @cached_property
    def source(self) -> Source:
        """Where the text comes from."""
        return make_source(self.config)

    @cached_property
    def fingerprint(self) -> str:
        """What the data are: equal for equal rows."""
        return data_fingerprint(self.source, self.config.dataset.extra)

    @cached_property
    def precision(self) -> Precision:
        """Device and dtype, `auto` resolved."""
        return resolve(self.config.hardware, self.find)

    def check_device(self) -> None:
        """Refuses a device that cannot do what it is to do, before anything else is done; says what `auto` has chosen. Raises UserError."""
        precision = self.precision
        if precision.device == "cuda":
            emulate = self.config.mode in ("eval", "predict")  # the dtype is that of the run's training
            warning = check_cards(precision, self.find(), emulate=emulate)
            if warning:
                print(f"WARNING: {warning}", file=sys.stderr)
        if precision.why:
            print(("WARNING: " if precision.warn else "") + precision.why, file=sys.stderr)

    @cached_property
    def parent_hash(self) -> str | None:
        """The hash of the pretraining run, made or still to be made; None from scratch."""
        if self.config.mode != "finetune" or self.config.pretrain is None:
            return None
        if self.config.pretrain == "auto":
            return self.pretraining.digest
        assert self.parent is not None
        record = read_or_refuse(self.parent)
        return f"{record.hash}:{self.config.checkpoint}"

    def variant(self, *, mode: str, seed: int) -> Plan:
        """The plan of another run on the same data: a baseline, or the pretraining that this one starts from."""
        config = copy.deepcopy(self.config)
        config.mode, config.seed, config.exp, config.pretrain, config.sweep = mode, seed, None, None, None
        return Plan(config, {**self.choices, "mode": mode}, None, [], self.root, find=self.find)

    @cached_property
    def pretraining(self) -> Plan:
        """The plan of the pretraining run that `pretrain=auto` stands for."""
        plan = self.variant(mode="pretrain", seed=self.config.pretrain_seed)
        plan.config.exp = plan.name.replace("/", "-")
        return plan

    @property
    def as_dict(self) -> dict[str, Any]:
        """The configuration as plain nested dicts."""
        return asdict(self.config)

    @cached_property
    def code(self) -> dict[str, str]:
        """The hashes of the code of attention and position. Raises UserError where it cannot be read."""
        return self._code_now()

    def _code_now(self) -> dict[str, str]:
        try:
            return code_of(self.as_dict)
        except (SyntaxError, OSError) as error:
            raise UserError(
                f"{error.filename}: this file, which attention or position imports, cannot be read: {error}"
            ) from error

    @cached_property
    def digest(self) -> str:
        """The run's hash."""
        check_tokenizer(self.config.tokenizer)
        given = given_vocabulary(self.config.tokenizer) if self.parent is None else None
        known = {"vocabulary": given, "parent": self.parent_hash, "code": self.code}
        return run_hash(self.as_dict, data=self.fingerprint, dtype=self.precision.dtype, **known)

    @property
    def name(self) -> str:
        """The run's name: `<dataset>/<mode>-<attention>-…`."""
        return run_name(self.as_dict, self.choices, self.digest)

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return run_folder(self.as_dict, self.choices, self.digest, sweep=self.config.sweep, root=self.runs)

    @property
    def runs(self) -> Path:
        """The folder of pretrain/, finetune/ and multirun/."""
        return runs_root(self.root)

    def freeze(self) -> None:
        """Takes down the sources once the mechanism is imported: they may change while the data are read. Raises UserError
        where they have done so since the run's hash was made."""
        targets = [getattr(self.config, part)["_target_"] for part in self.code]
        self.sources = find_sources([path for target in targets for path in code_files(target).values()])
        if self._code_now() != self.code:
            raise UserError(
                "The code of attention or position was changed just as the run began. Type the command again."
            )

    def data(self) -> Prepared:
        """The splits, read and checked. Raises UserError for data that cannot be trained on."""
        return prepare(self.source, self.config.dataset)

    def check(self) -> None:
        """Raises UserError for what the stage of this run would refuse: its architecture, its data. The data are read once for all
        runs of this process that use them alike."""
        if self.config.mode != "baseline":
            check_architecture(self.config)
        key = digest([self.fingerprint, asdict(self.config.dataset)])
        if key not in classes_of:
            classes_of[key] = self.data().classes
        if self.config.mode == "finetune":
            check_head(self.config, classes_of[key])

    def record(self, prepared: Prepared | None) -> Record:
        """The record of this run before its first step; without `prepared`, of one that never read its data.

        A launcher that puts several jobs on one device says so in the environment of each: XCLS_SHARED=1.
        """
        data: dict[str, Any] = {"name": self.config.dataset.name, "fingerprint": self.fingerprint}
        if prepared is not None:
            data["train_rows_hash"] = hash_of_names(prepared.train["id"])
            data.update({key: value for key, value in prepared.report.items() if key != "warnings"})
        return Record(
            run=self.name,
            mode=self.config.mode,
            status="running",
            hash=self.digest,
            seed=self.config.seed,
            seq_len=self.config.seq_len,
            exp=self.config.sweep or self.config.exp,
            study=self.config.study,
            choices=self.choices,
            config=plain(flatten(asdict(self.config))),  # without secrets, here and wherever it goes from here
            code=self.code,
            data=data,
            device={"shared": os.environ.get("XCLS_SHARED") == "1"},
            command=plain(self.command),
        )

"""The only module that makes objects from a checked `Config`: sources, models and runs."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any, Callable

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from xcls.attention.check import LENGTH, check_attention, check_position
from xcls.config.compose import RunConfig, compose_config
from xcls.config.schema import Config, Labels, UserError
from xcls.config.targets import FILES, parameters
from xcls.data.reading import Reading
from xcls.data.source import Source, as_columns
from xcls.model.encoder import Encoder
from xcls.model.heads import Classifier, MaskedLanguageModel, MLMHead, TextClassifier
from xcls.runs.spec import JobSpec
from xcls.stages.needs import HASHED, with_needs
from xcls.stages.spec import RunSpec
from xcls.train.cards import Cards, here, of_jobs


def make_source(config: Config) -> Source:
    """The data set's source object. Raises UserError."""
    data = config.dataset
    given = {"path": data.path, "text": data.text, "label": data.label}
    if data.labels != Labels():
        if "labels" not in (parameters(data.source["_target_"]) or ()):
            raise UserError(
                f"dataset.labels: the classes of dataset={data.name} are fixed. This setting is only for dataset=files."
            )
        given["labels"] = asdict(data.labels)
    try:
        return instantiate(data.source, **given, _convert_="all", _recursive_=False)
    except InstantiationException as error:
        cause = error.__cause__
        raise (cause if isinstance(cause, UserError) else UserError(f"dataset.source: {error}")) from error


def make_reading(config: Config) -> Reading:
    """How to read documents: as the run's own data, changed by the overrides `text` and `reading`. Raises UserError."""
    own = make_source(config).reading()
    if config.reading:
        trained = config.dataset.source if config.dataset.source["_target_"] == FILES else {"_target_": FILES}
        variant = copy.deepcopy(config)
        variant.dataset.source = {**trained, **config.reading}
        typed = make_source(variant).reading()
        own = replace(own, form=typed.form, id=typed.id)
    return own if config.text is None else replace(own, text=as_columns(config.text, "text"))


def _make_node(node: dict[str, Any], **shape: Any) -> Any:
    """The mechanism or position encoding of a config node. Its `name` is for reports, and no argument."""
    return instantiate({key: value for key, value in node.items() if key != "name"}, **shape, _recursive_=False)


def make_encoder(config: Config, *, vocab_size: int) -> Encoder:
    """A new encoder of this architecture. The random features of its mechanisms depend on seed and layer."""
    size, seq_len = config.size, config.seq_len
    heads = {"num_heads": size.num_heads, "head_dim": size.width // size.num_heads}
    shape = {"embed_dim": size.width, "num_layers": size.num_layers, "seq_len": seq_len}
    return Encoder(
        vocab_size=vocab_size,
        num_heads=size.num_heads,
        feed_forward=size.feed_forward,
        norm=size.norm,
        activation=size.activation,
        dropout=size.dropout,
        position=_make_node(config.position, **shape, **heads),
        make_attention=lambda layer: _make_node(config.attention, layer=layer, seed=config.seed, **heads),
        gradient_checkpointing=config.hardware.gradient_checkpointing,
        **shape,
    )


def make_language_model(config: Config, *, vocab_size: int) -> MaskedLanguageModel:
    """A new encoder with MLM head."""
    head = MLMHead(embed_dim=config.size.width, vocab_size=vocab_size)
    return MaskedLanguageModel(encoder=make_encoder(config, vocab_size=vocab_size), head=head)


def make_classifier(config: Config, *, vocab_size: int, classes: list[str]) -> TextClassifier:
    """A new encoder with classification head."""
    shape = {"embed_dim": config.size.width, "num_classes": len(classes)}
    head = Classifier(pooling=config.head.pooling, dropout=config.head.dropout, **shape)
    return TextClassifier(encoder=make_encoder(config, vocab_size=vocab_size), head=head)


def check_architecture(config: Config) -> None:
    """Refuses invalid hyperparameters of mechanism or position encoding, and either of them if it breaks its contract
    (attention/check.py). Raises UserError.

    It builds only one layer, so the depth does not matter; the tables of the position encoding take no memory.
    """
    heads = {"num_heads": config.size.num_heads, "head_dim": config.size.width // config.size.num_heads}
    group = "attention"
    try:
        _make_node(config.attention, layer=0, seed=config.seed, **heads)
        group = "position"
        with torch.device("meta"):
            _make_node(config.position, embed_dim=config.size.width, num_layers=1, seq_len=config.seq_len, **heads)
    except InstantiationException as error:
        raise UserError(f"{group}: {error.__cause__ or error} (conf/{group}/ says what each setting means)") from error
    _check_contracts(json.dumps([config.attention, config.position]), **heads)


@lru_cache(maxsize=64)
def _check_contracts(nodes: str, *, num_heads: int, head_dim: int) -> None:
    """Tests the contracts of mechanism and position encoding (`nodes` as JSON), once per process. Raises UserError.

    It uses two heads to be fast, or all heads if the mechanism cannot be built with two.
    """
    attention, position = json.loads(nodes)

    def layers(heads: int) -> list[Any]:
        facts = {"num_heads": heads, "head_dim": head_dim, "seed": 0}
        return [_make_node(attention, layer=layer, **facts) for layer in (0, 1)]

    with torch.random.fork_rng(devices=[]):
        few = min(2, num_heads)
        try:
            made = layers(few)
        except InstantiationException:
            few, made = num_heads, layers(num_heads)
        shape = {"embed_dim": few * head_dim, "num_heads": few, "head_dim": head_dim}
        encoding = _make_node(position, num_layers=len(made), seq_len=LENGTH, **shape)
        check_position(encoding, name=f"position={position.get('name')} ({position['_target_']})")
        check_attention(made, encoding, name=f"attention={attention.get('name')} ({attention['_target_']})")


def run_spec(run: RunConfig, *, find: Callable[[], Cards] = here) -> RunSpec:
    """The run of a composed configuration. `find`: returns the GPUs that the run may use."""
    from xcls import build  # this module: RunSpec gets it as a value, since stages must not import it

    return RunSpec(run.config, run.choices, run.parent, run.overrides, run.root, build=build, find=find)


def run_mode(spec: RunSpec) -> int:
    """Runs any mode but bench. Returns the exit code.

    Raises UserError for bad input, before anything is written.
    """
    mode = spec.config.mode
    if mode == "init":
        from xcls.stages.init import init

        return init(spec)
    if mode in HASHED:
        from xcls.stages.training import train

        return train(spec)
    spec.check_device()
    if mode == "eval":
        from xcls.stages.evaluate import evaluate

        return evaluate(spec)
    from xcls.stages.predict import predict

    return predict(spec)


def job_specs(cfg: DictConfig) -> list[JobSpec]:
    """For a launcher: the runs that are needed first, then the run that Hydra has composed as `cfg`.

    Raises UserError for everything that the run would refuse, so that a sweep stops before any of its runs begins.
    """
    return with_needs(run_spec(compose_config(cfg), find=of_jobs))

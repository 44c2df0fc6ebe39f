"""bench=training: who trains what. Plain values that a process of its own builds a training from."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xcls.bench.cases import OURS
from xcls.bench.make import choose
from xcls.bench.plan import INSTALL, refuse_impossible
from xcls.config.schema import Config, Hardware, Head, Masking, Size, Training, UserError, nearest
from xcls.data.encode import Encoded, read_encoded

TRANSFORMERS = "transformers"
IMPLEMENTATIONS = ("eager", "sdpa")  # of transformers' attention
STAGES = {"finetune": "finetuning", "pretrain": "pretraining"}  # -> the node of Config that holds its recipe


@dataclass
class StageText:
    """The training text of one stage; `labels` int64 [D] and the number of classes where it is classified."""

    encoded: Encoded
    labels: np.ndarray | None = None
    num_classes: int = 0


@dataclass(frozen=True)
class TextFiles:
    """The same as files, so that every process maps the same memory. `continues` bool [V]: see masking.py."""

    encoded: str
    labels: str
    continues: str
    vocab_size: int
    num_classes: int

    def read(self) -> tuple[Encoded, np.ndarray, np.ndarray]:
        """Token ids of D documents, labels int64 [D] (empty for MLM), continues bool [V]."""
        return read_encoded(Path(self.encoded)), np.load(self.labels), np.load(self.continues)


@dataclass(frozen=True)
class Recipe:
    """What all contenders of a stage have in common: sizes, text, optimizer, batch, device."""

    stage: str
    size: Size
    head: Head
    masking: Masking
    training: Training
    hardware: Hardware
    seq_len: int
    seed: int
    device: str
    dtype: str
    steps: int  # of one segment
    compile: bool
    attention_dropout: float
    texts: TextFiles

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Recipe:
        """The inverse of `asdict`."""
        kinds = {
            "size": Size,
            "head": Head,
            "masking": Masking,
            "training": Training,
            "hardware": Hardware,
            "texts": TextFiles,
        }
        return cls(**{key: kinds[key](**value) if key in kinds else value for key, value in values.items()})


@dataclass(frozen=True)
class Contender:
    """One training. `node`, `position_node`: ours; `attention`: of transformers, one of IMPLEMENTATIONS."""

    name: str
    origin: str
    grouped: bool
    node: dict[str, Any] = field(default_factory=dict)
    position: str = ""
    position_node: dict[str, Any] = field(default_factory=dict)
    attention: str = ""


@dataclass
class TrainingPlan:
    """The contenders of every stage; `notes`: lines for the reader."""

    contenders: dict[str, list[Contender]]
    nodes: dict[str, dict[str, Any]]
    notes: list[str]


def installed() -> bool:
    """Whether transformers and what its Trainer needs can be found."""
    return all(importlib.util.find_spec(name) is not None for name in (TRANSFORMERS, "accelerate"))


def plan_training(
    config: Config, *, attentions: dict[str, dict[str, Any]], positions: dict[str, dict[str, Any]]
) -> TrainingPlan:
    """Who trains in each stage. attentions, positions: every file of conf/, by name. Raises UserError."""
    settings = config.bench
    refuse_impossible(settings)
    wrong = []
    for stage in settings.stages:
        if stage not in STAGES:
            wrong.append(f"bench.stages: {stage}: one of {', '.join(STAGES)} is needed.{nearest(stage, list(STAGES))}")
        elif getattr(config, STAGES[stage]).optimizer != "adamw":
            wrong.append(f"{STAGES[stage]}.optimizer: bench=training compares trainings with adamw. Leave it so.")
    if not settings.stages or len(set(settings.stages)) < len(settings.stages):
        wrong.append(f"bench.stages={settings.stages}: at least one is needed, each named once.")
    if wrong:
        raise UserError("\n".join(wrong))
    nodes = {entry: choose("attention", entry, attentions) for entry in settings.attentions}
    places = {entry: choose("position", entry, positions) for entry in settings.positions}
    notes, theirs = [], []
    if settings.others and installed():
        theirs = [
            Contender(name=f"BERT {attention}", origin=TRANSFORMERS, grouped=grouped, attention=attention)
            for grouped in (False, True)
            for attention in IMPLEMENTATIONS
        ]
    elif settings.others:
        notes.append(f"Ours alone: transformers with its Trainer (accelerate) is not installed. {INSTALL}")
    contenders = {}
    for stage in settings.stages:
        grouped = getattr(config, STAGES[stage]).group_by_length
        ours = [
            Contender(name=name, origin=OURS, grouped=grouped, node=node, position=place, position_node=places[place])
            for place in places
            for name, node in nodes.items()
        ]
        contenders[stage] = ours + theirs
    return TrainingPlan(contenders, nodes, notes)


def make_recipe(config: Config, stage: str, *, device: str, dtype: str, texts: TextFiles) -> Recipe:
    """What the run's configuration says about a stage. How long it trains is the bench's matter."""
    settings = config.bench
    return Recipe(
        stage=stage,
        size=config.size,
        head=config.head,
        masking=config.masking,
        training=getattr(config, STAGES[stage]),
        hardware=config.hardware,
        seq_len=config.seq_len,
        seed=config.seed,
        device=device,
        dtype=dtype,
        steps=settings.steps_per_segment,
        compile=settings.compile,
        attention_dropout=settings.attention_dropout,
        texts=texts,
    )


def as_job(recipe: Recipe, contender: Contender, *, count: bool) -> dict[str, Any]:
    """What a process is told, as JSON can hold it. `count`: whether its operations will be counted."""
    cases = [{"compile": recipe.compile, "device": recipe.device}]  # of which worker.prepare_process reads this much
    return {
        "recipe": asdict(recipe),
        "contender": asdict(contender),
        "count": count,
        "cases": cases,
        "threads": recipe.hardware.threads,
    }


def write_texts(text: StageText, folder: Path, *, vocab_size: int, continues: np.ndarray) -> TextFiles:
    """Puts a stage's text into files in `folder`, but for token ids that are in the cache already."""
    folder.mkdir(parents=True)
    encoded = text.encoded.folder
    if encoded is None:
        encoded = folder
        np.save(folder / "ids.npy", text.encoded.ids)
        np.save(folder / "offsets.npy", text.encoded.offsets)
        (folder / "info.json").write_text("{}", encoding="utf-8")
    labels = np.zeros(0, np.int64) if text.labels is None else text.labels
    np.save(folder / "labels.npy", labels)
    np.save(folder / "continues.npy", continues)
    return TextFiles(
        str(encoded), str(folder / "labels.npy"), str(folder / "continues.npy"), vocab_size, text.num_classes
    )

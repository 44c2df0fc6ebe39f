"""From the settings to the cases and trainings; all wrong settings are refused here, before the first measurement."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator, Sequence

import yaml

from xcls.bench.cases import OURS, Case
from xcls.bench.rivals import rivals
from xcls.bench.trained import checkpoint_of
from xcls.config.compose import TARGET_NODES
from xcls.config.schema import MAX_SEQ_LEN, Bench, Config, Training, UserError, check_name, nearest
from xcls.config.targets import check_node
from xcls.train.amp import DTYPES
from xcls.train.cards import Card

Nodes = dict[str, dict[str, dict[str, Any]]]  # group (attention, position) -> file of conf/<group> -> its content
AUTO = "auto"
INSTALL = "To measure them too: make setup-bench"
AXES = ("length", "width", "depth")  # of bench=growth
HEAD = 64  # head dimension when the width grows
STAGES = {"finetune": "finetuning", "pretrain": "pretraining"}  # -> the node of Config that holds its recipe
TRANSFORMERS = "transformers"


@dataclass(frozen=True)
class Contender:
    """One training of bench=training, in segments of `steps` steps. `implementation`: attention of transformers."""

    name: str
    origin: str
    position: str
    config: Config
    stage: str
    device: str
    dtype: str
    steps: int
    implementation: str = ""

    @property
    def training(self) -> Training:
        """The recipe of its stage."""
        return getattr(self.config, STAGES[self.stage])


def with_dtype(settings: Bench, dtype: str) -> Bench:
    """`settings` with `auto` replaced by the dtype of the run."""
    return replace(settings, dtypes=[dtype if entry == AUTO else entry for entry in settings.dtypes])


def check_dtypes(dtypes: Sequence[str], cards: Sequence[Card]) -> None:
    """Raises UserError for bf16 on a card without it: an emulation says nothing about the mechanisms."""
    without = next((card for card in cards if not card.bf16), None)
    if without is not None and "bf16" in dtypes:
        better = ",".join(dict.fromkeys("fp16" if dtype == "bf16" else dtype for dtype in dtypes))
        raise UserError(f"bench.dtypes: bf16: {without} only emulates it. Set 'bench.dtypes=[{better}]'.")


def check(config: Config) -> None:
    """Raises UserError with a line for each wrong value in `config.bench` that the schema cannot find."""
    settings, wrong = config.bench, []
    listed = ["attentions", "positions", "seq_lens", "dtypes"]
    listed += {"training": ["stages"], "growth": ["axes", "widths", "depths"]}.get(settings.what, [])
    for key in listed:
        values = getattr(settings, key)
        if not values or len(set(values)) < len(values):
            wrong.append(f"bench.{key}={values}: at least one is needed, each named once.")
    known = {"dtypes": [AUTO, *DTYPES], "stages": list(STAGES), "axes": list(AXES)}
    for key, words in known.items():
        wrong += [
            f"bench.{key}: {word}: one of {', '.join(words)} is needed.{nearest(word, words)}"
            for word in getattr(settings, key)
            if word not in words
        ]
    for key, least, most in (("seq_lens", 1, MAX_SEQ_LEN), ("widths", 8, 16_384), ("depths", 1, 128)):
        wrong += [
            f"bench.{key}: {value}: from {least} to {most} is needed."
            for value in getattr(settings, key)
            if not least <= value <= most
        ]
    if not (settings.time or settings.memory or settings.error or settings.trained):
        wrong.append("bench.time, bench.memory, bench.error: all are false. At least one must be true.")
    if settings.gradient_checkpointing and settings.what not in ("step", "growth"):
        wrong.append("bench.gradient_checkpointing=true: only whole steps have checkpointed blocks. Use bench=step.")
    widths = [(settings.width, settings.num_heads)]
    widths += [(width, heads_of(width)) for width in settings.widths] if settings.what == "growth" else []
    wrong += [f"bench.width={width}: {heads} heads must divide it." for width, heads in widths if width % heads]
    for stage in settings.stages if settings.what == "training" else ():
        if stage in STAGES and getattr(config, STAGES[stage]).optimizer != "adamw":
            wrong.append(
                f"{STAGES[stage]}.optimizer: bench=training needs adamw: it compares trainings with this optimizer."
            )
    if wrong:
        raise UserError("\n".join(wrong))
    check_name("bench.name", settings.name)
    if settings.trained is not None:
        checkpoint_of(Path(settings.trained))


def heads_of(width: int) -> int:
    """The number of heads with a head dimension of about HEAD."""
    return max(1, width // HEAD)


def choose(group: str, entries: Sequence[str], nodes: Nodes) -> dict[str, dict[str, Any]]:
    """Entry -> YAML node: a file of conf/<group>, with changes after a colon (`reformer:num_hashes=4`).

    Raises UserError for an unknown file, an unknown setting or a value of the wrong type.
    """
    found, known, key = {}, nodes[group], f"bench.{group}s"
    for entry in entries:
        name, _, changes = entry.partition(":")
        if name not in known:
            there = f"There is: {', '.join(known)}."
            raise UserError(f"{key}: {name}: no such file in conf/{group}.{nearest(name, list(known))} {there}")
        node = dict(known[name])
        for change in filter(None, changes.split(",")):
            setting, equals, value = change.partition("=")
            if not equals:
                raise UserError(f'{key}: {entry}: write changes as name=value, separated by commas: "{name}:x=1".')
            node[setting.strip()] = yaml.safe_load(value)
        try:
            check_node(group, node, TARGET_NODES[group][1])
        except UserError as error:
            raise UserError(f"{key}: {entry}: {error}") from error
        found[entry] = node
    return found


def points(settings: Bench) -> Iterator[dict[str, Any]]:
    """The sizes to measure: every length; in bench=growth each axis separately, at the shortest length."""
    shape = {"width": settings.width, "num_heads": settings.num_heads, "num_layers": settings.num_layers}
    if settings.what == "attention":
        shape["num_layers"] = 1
    lengths = [{**shape, "seq_len": seq_len} for seq_len in settings.seq_lens]
    if settings.what != "growth":
        yield from lengths
        return
    short = {**shape, "seq_len": min(settings.seq_lens)}
    axes: dict[str, list[dict[str, Any]]] = {
        "length": sorted(lengths, key=lambda point: point["seq_len"]),
        "width": [{**short, "width": n, "num_heads": heads_of(n)} for n in sorted(settings.widths)],
        "depth": [{**short, "num_layers": n} for n in sorted(settings.depths)],
    }
    for axis, along in axes.items():
        yield from ({**point, "axis": axis} for point in along if axis in settings.axes)


def make_jobs(config: Config, nodes: Nodes, device: str) -> tuple[list[list[Case]], list[list[Contender]], list[str]]:
    """(lists of cases, lists of trainings, notes for the reader). One list runs interleaved. Raises UserError."""
    settings = config.bench
    if settings.what != "training":
        cells, notes = make_cells(settings, nodes, device)
        return cells, [], notes
    notes = (
        []
        if installed() or not settings.others
        else [f"Only our own trainings: transformers is not installed. {INSTALL}"]
    )
    pairs = [(stage, dtype) for stage in settings.stages for dtype in settings.dtypes]
    return [], [make_contenders(config, nodes, stage, dtype, device) for stage, dtype in pairs], notes


def make_cells(settings: Bench, nodes: Nodes, device: str) -> tuple[list[list[Case]], list[str]]:
    """The cases of each size and dtype, which are timed interleaved, and notes for the reader. Raises UserError."""
    attentions, positions = (choose(group, getattr(settings, f"{group}s"), nodes) for group in nodes)
    notes, cells = [], []
    others = [rival for rival in rivals() if settings.others and settings.what == "attention"]
    missing = list(dict.fromkeys(rival.package for rival in others if not rival.installed))
    if missing:
        notes.append(f"Not measured, because not installed: {', '.join(missing)}. {INSTALL}")
    absent = [name for name in settings.references if name not in attentions]
    if absent:
        notes.append(f"No ratios to {', '.join(absent)}: not among bench.attentions.")
    whole = {"compile": settings.compile, "gradient_checkpointing": settings.gradient_checkpointing, "device": device}
    parts = ("module", "core") if settings.what == "attention" else ("step",)
    for point in points(settings):
        for dtype in settings.dtypes:
            batch = max(1, settings.tokens_per_step // point["seq_len"])
            common: dict[str, Any] = {**whole, **point, "dtype": dtype, "batch": batch}
            cell = [
                Case(name, OURS, part, node, place, positions[place], **common)
                for part in parts
                for place in positions
                for name, node in attentions.items()
            ]
            no_position = {"_target_": "xcls.position.none.NoPosition"}
            cell += [
                Case(rival.name, rival.package, part, node, "none", no_position, **common)
                for rival in others
                if rival.installed
                for part, node in rival.parts.items()
            ]
            cells.append(cell)
    return cells, notes


def installed() -> bool:
    """Are transformers and accelerate, which its Trainer needs, installed?"""
    return all(importlib.util.find_spec(name) is not None for name in (TRANSFORMERS, "accelerate"))


def make_contenders(config: Config, nodes: Nodes, stage: str, dtype: str, device: str) -> list[Contender]:
    """The trainings that bench=training compares in one stage and dtype. Raises UserError."""
    settings, found = config.bench, []
    attentions, positions = (choose(group, getattr(settings, f"{group}s"), nodes) for group in nodes)

    def variant(grouped: bool, **changes: Any) -> Config:
        own = replace(copy.deepcopy(config), **changes)
        own.hardware.compile = settings.compile
        getattr(own, STAGES[stage]).group_by_length = grouped
        return own

    how = (stage, device, dtype, settings.steps_per_segment)
    for place, position in positions.items():
        for name, node in attentions.items():
            own = variant(getattr(config, STAGES[stage]).group_by_length, attention=node, position=position)
            found.append(Contender(name, OURS, place, own, *how))
    for grouped in (False, True) if settings.others and installed() else ():
        for attention in ("eager", "sdpa"):
            found.append(Contender(f"BERT {attention}", TRANSFORMERS, "learned", variant(grouped), *how, attention))
    return found

"""bench=growth: what grows, and how far. Everything that could be refused is refused here, before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xcls.bench.cases import FIRST_WORD, NUM_CLASSES, OURS, VOCAB_SIZE
from xcls.bench.make import choose
from xcls.bench.plan import refuse_impossible
from xcls.bench.training_plan import Contender, Recipe, StageText, TextFiles, make_recipe, write_texts
from xcls.config.schema import Config, UserError, nearest
from xcls.data.encode import Encoded
from xcls.data.tokenizer import CLS, SEP

STARTUP, LENGTH, WIDTH, DEPTH, ROWS = "startup", "length", "width", "depth", "rows"
AXES = (STARTUP, LENGTH, WIDTH, DEPTH, ROWS)
BATCHES = 4  # different batches of an axis' synthetic text
HEAD = 64  # width of a head, where the width grows
FEWEST_ROWS = 100


@dataclass(frozen=True)
class Cell:
    """One point of an axis: all contenders train there, by turns."""

    axis: str
    seq_len: int
    width: int
    num_heads: int
    num_layers: int
    batch: int


@dataclass
class GrowthPlan:
    """The cells, and who trains in them; `nodes`: the mechanisms' nodes by name."""

    cells: list[Cell]
    contenders: list[Contender]
    nodes: dict[str, dict[str, Any]]


def plan_growth(
    config: Config, *, attentions: dict[str, dict[str, Any]], positions: dict[str, dict[str, Any]]
) -> GrowthPlan:
    """The points of every axis. attentions, positions: every file of conf/, by name. Raises UserError."""
    settings = config.bench
    refuse_impossible(settings)
    wrong = []
    for axis in settings.axes:
        if axis not in AXES:
            wrong.append(f"bench.axes: {axis}: one of {', '.join(AXES)} is needed.{nearest(axis, list(AXES))}")
    for key, least in (("axes", None), ("widths", 8), ("depths", 1), ("row_counts", FEWEST_ROWS)):
        values = getattr(settings, key)
        if not values or len(set(values)) < len(values):
            wrong.append(f"bench.{key}={values}: at least one is needed, each named once.")
        wrong += [f"bench.{key}: {value}: at least {least} is needed." for value in values if least and value < least]
    wrong += [
        f"bench.widths: {width}: a multiple of {heads_of(width)} is needed, for heads of about {HEAD}."
        for width in settings.widths
        if width % heads_of(width)
    ]
    if len(settings.dtypes) != 1 or len(settings.positions) != 1:
        wrong.append("bench.dtypes, bench.positions: bench=growth takes one of each.")
    if wrong:
        raise UserError("\n".join(wrong))
    nodes = {entry: choose("attention", entry, attentions) for entry in settings.attentions}
    place = settings.positions[0]
    where = {"position": place, "position_node": choose("position", place, positions)}
    contenders = [Contender(name=name, origin=OURS, grouped=False, node=node, **where) for name, node in nodes.items()]
    return GrowthPlan(_cells(config), contenders, nodes)


def heads_of(width: int) -> int:
    """So many heads that each has about HEAD channels."""
    return max(1, width // HEAD)


def _cells(config: Config) -> list[Cell]:
    settings = config.bench
    shape = {"width": settings.width, "num_heads": settings.num_heads, "num_layers": settings.num_layers}
    shortest = min(settings.seq_lens)
    points = [(LENGTH, {**shape, "seq_len": seq_len}) for seq_len in sorted(settings.seq_lens)]
    points += [
        (WIDTH, {**shape, "seq_len": shortest, "width": width, "num_heads": heads_of(width)})
        for width in sorted(settings.widths)
    ]
    points += [(DEPTH, {**shape, "seq_len": shortest, "num_layers": depth}) for depth in sorted(settings.depths)]
    return [
        Cell(axis=axis, batch=max(1, settings.tokens_per_step // point["seq_len"]), **point)
        for axis, point in points
        if axis in settings.axes
    ]


def synthetic_text(cell: Cell, seed: int = 0) -> StageText:
    """Random ids that fill `seq_len`: what a step costs does not depend on which words they are."""
    draws, count = np.random.default_rng(seed), BATCHES * cell.batch
    ids = draws.integers(FIRST_WORD, VOCAB_SIZE, (count, cell.seq_len)).astype(np.uint16)
    ids[:, 0] = CLS
    if cell.seq_len > 1:
        ids[:, -1] = SEP
    offsets = np.arange(count + 1, dtype=np.int64) * cell.seq_len
    return StageText(Encoded(ids.reshape(-1), offsets), draws.integers(0, NUM_CLASSES, count), NUM_CLASSES)


def cell_texts(cell: Cell, folder: Path) -> TextFiles:
    """The cell's text as files below `folder`."""
    name = f"{cell.axis}-{cell.seq_len}-{cell.width}-{cell.num_layers}"
    continues = np.zeros(VOCAB_SIZE, bool)
    return write_texts(synthetic_text(cell), folder / name, vocab_size=VOCAB_SIZE, continues=continues)


def cell_recipe(config: Config, cell: Cell, *, device: str, texts: TextFiles) -> Recipe:
    """How the cell's contenders train: fine-tuning by the run's own recipe, but for the sizes."""
    size = replace(
        config.size, width=cell.width, num_heads=cell.num_heads, num_layers=cell.num_layers, feed_forward=4 * cell.width
    )
    recipe = make_recipe(config, "finetune", device=device, dtype=config.bench.dtypes[0], texts=texts)
    training = replace(recipe.training, batch_size=cell.batch, group_by_length=False)
    return replace(recipe, size=size, seq_len=cell.seq_len, training=training)

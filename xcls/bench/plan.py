"""From settings to cases: everything that could be refused is refused here, before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xcls.bench.cases import OURS, Case
from xcls.bench.make import choose
from xcls.bench.others import others
from xcls.bench.trained import checkpoint_of
from xcls.config.schema import MAX_SEQ_LEN, Bench, UserError, check_name, nearest
from xcls.train.amp import DTYPES

PARTS = {"attention": ("module", "core"), "step": ("step",)}
MEMORY_PARTS = ("module", "step")  # a core is not measured by itself: what surrounds it decides what lives how long
AUTO = "auto"
INSTALL = "To measure them too: make setup-bench"


@dataclass
class Cell:
    """All cases of one length and dtype: they are timed together."""

    seq_len: int
    dtype: str
    cases: list[Case]


@dataclass
class Plan:
    """What will be measured. `nodes`: the mechanisms' nodes by name; `notes`: lines for the reader."""

    cells: list[Cell]
    nodes: dict[str, dict[str, Any]]
    notes: list[str] = field(default_factory=list)


def settled(settings: Bench, dtype: str) -> Bench:
    """`settings` with the run's own dtype in the place of `auto`."""
    return replace(settings, dtypes=[dtype if entry == AUTO else entry for entry in settings.dtypes])


def refuse_impossible(settings: Bench) -> None:
    """Raises UserError, a line for each fault of the settings that their types do not show."""
    wrong = []
    for key in ("attentions", "positions", "seq_lens", "dtypes"):
        values = getattr(settings, key)
        if not values:
            wrong.append(f"bench.{key}: at least one is needed.")
        if len(set(values)) < len(values):
            wrong.append(f"bench.{key}={values}: each may be named once.")
    wrong += [
        f"bench.seq_lens: {n}: from 1 to {MAX_SEQ_LEN} is needed."
        for n in settings.seq_lens
        if not 1 <= n <= MAX_SEQ_LEN
    ]
    known = [AUTO, *DTYPES]
    for dtype in settings.dtypes:
        if dtype not in DTYPES:
            wrong.append(f"bench.dtypes: {dtype}: one of {', '.join(known)} is needed.{nearest(dtype, known)}")
    if not (settings.time or settings.memory or settings.error or settings.trained):
        wrong.append("bench.time, bench.memory, bench.error: all are false, and nothing is left to measure.")
    if settings.gradient_checkpointing and settings.what != "step":
        wrong.append("bench.gradient_checkpointing=true: only a whole step has blocks to compute again: bench=step.")
    if settings.width % settings.num_heads:
        wrong.append(f"bench.num_heads={settings.num_heads}: the heads must divide the width {settings.width}.")
    if wrong:
        raise UserError("\n".join(wrong))
    check_name("bench.name", settings.name)
    if settings.trained is not None:
        checkpoint_of(Path(settings.trained))


def foreign_cases(settings: Bench) -> tuple[list[tuple[str, str, str, dict[str, Any]]], list[str]]:
    """(name, package, part, node) of each other implementation that is installed, and a line about the missing ones."""
    if not settings.others or settings.what != "attention":
        return [], []
    found, missing = [], []
    for other in others():
        if other.installed:
            found += [(other.name, other.package, part, node) for part, node in other.parts.items()]
        elif other.package not in missing:
            missing.append(other.package)
    verb = "is" if len(missing) == 1 else "are"
    lines = [f"Not measured: {', '.join(missing)} {verb} not installed. {INSTALL}"] if missing else []
    return found, lines


def make_plan(
    settings: Bench, *, attentions: dict[str, dict[str, Any]], positions: dict[str, dict[str, Any]], device: str
) -> Plan:
    """The cells of the bench, in order. attentions, positions: every file of conf/, by name. Raises UserError."""
    refuse_impossible(settings)
    nodes = {entry: choose("attention", entry, attentions) for entry in settings.attentions}
    places = {entry: choose("position", entry, positions) for entry in settings.positions}
    foreign, notes = foreign_cases(settings)
    absent = [name for name in settings.references if name not in nodes]
    if absent:
        notes.append(f"No ratios to {', '.join(absent)}: not among bench.attentions.")
    cells = []
    for seq_len in settings.seq_lens:
        for dtype in settings.dtypes:
            common = {
                "seq_len": seq_len,
                "batch": max(1, settings.tokens_per_step // seq_len),
                "dtype": dtype,
                "device": device,
                "width": settings.width,
                "num_heads": settings.num_heads,
                "num_layers": settings.num_layers if settings.what == "step" else 1,
                "compile": settings.compile,
                "gradient_checkpointing": settings.gradient_checkpointing,
            }
            cases = [
                Case(
                    mechanism=name,
                    origin=OURS,
                    part=part,
                    node=node,
                    position=place,
                    position_node=places[place],
                    **common,
                )
                for part in PARTS[settings.what]
                for place in places
                for name, node in nodes.items()
            ]
            nowhere = {"_target_": "xcls.position.none.NoPosition"}
            cases += [
                Case(
                    mechanism=name,
                    origin=package,
                    part=part,
                    node=node,
                    position="none",
                    position_node=nowhere,
                    **common,
                )
                for name, package, part, node in foreign
            ]
            cells.append(Cell(seq_len, dtype, cases))
    return Plan(cells, nodes, notes)

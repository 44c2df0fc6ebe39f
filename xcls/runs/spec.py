"""What a launcher must know of a run before it runs: its folder and hash, what it needs first, what is there already.

Standard library alone: whoever launches runs need not import what trains them. The `Plan` comes from those who did.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from xcls.config.files import baseline_values, pretraining_values, yaml_text
from xcls.config.overrides import quoted
from xcls.runs.record import Record, read_record
from xcls.stages.folder import DONE, FRESH, decide

if TYPE_CHECKING:
    from xcls.build import Plan
    from xcls.train.precision import Precision

HASHED = ("pretrain", "finetune", "baseline")  # the modes that make a run; the others read one, or measure


@dataclass
class Outline:
    """One run before it begins."""

    kind: str  # its mode
    folder: Path | None = None  # None: it makes no run folder
    hash: str | None = None
    overrides: list[str] | None = None  # what composes it; None: what the user typed for this job
    needs: list[str] = field(default_factory=list)  # hashes of the runs that come first
    action: str = FRESH  # what to do with the folder: 'done', 'resume', 'fresh' (stages/folder.py)
    found: Record | None = None  # the record that is there
    gpu: bool = False  # it computes on a GPU
    precision: Precision | None = None  # with which device and dtype it was planned; None: it has no encoder
    file: str | None = None  # what `config.yaml` in its folder must hold before it begins
    record: Record | None = None  # what its record says if it dies before it writes one


def outlines(plan: Plan) -> list[Outline]:
    """The run of `plan` in its sweep, last, after those that it needs first: the baseline of its data, its pretraining.

    Raises UserError for all that its stage would refuse, so that a sweep with one such run is refused before any begins.
    """
    config = plan.config
    if config.mode not in HASHED:
        return [Outline(kind=config.mode, gpu=plan.precision.device == "cuda", precision=plan.precision)]
    own = _outline(plan, resume=config.resume)
    if own.action != DONE:
        plan.check()
    first = []
    if config.mode == "finetune":
        first.append(_baseline(plan))
    if config.mode == "finetune" and config.pretrain == "auto":
        first.append(_pretraining(plan))
    own.needs = [run.hash for run in first if run.hash is not None]
    return [*first, own]


def _outline(plan: Plan, *, resume: bool) -> Outline:
    """The run of `plan` by itself. Raises UserError."""
    config = plan.config
    how = {"resume": resume, "sweep": True, "retry_failed": config.retry_failed, "code": plan.code}
    action, found = decide(plan.folder, plan.digest, **how)
    precision = None if config.mode == "baseline" else plan.precision
    return Outline(
        kind=config.mode,
        folder=plan.folder,
        hash=plan.digest,
        action=action,
        found=found,
        record=plan.record(None),
        gpu=precision is not None and precision.device == "cuda",
        precision=precision,
    )


def _baseline(plan: Plan) -> Outline:
    """The baseline of the data of `plan`, in the same sweep."""
    other = plan.variant(mode="baseline", seed=0)
    other.config.sweep = plan.config.sweep
    run = _outline(other, resume=True)
    run.overrides = [
        "mode=baseline",
        f"template={quoted(other.folder / 'config.yaml')}",
        f"sweep={plan.config.sweep}",
        f"retry_failed={str(plan.config.retry_failed).lower()}",
    ]
    run.file = yaml_text(baseline_values(other.config, other.choices), "What this baseline was made of.")
    return run


def _pretraining(plan: Plan) -> Outline:
    """The pretraining run that `pretrain=auto` stands for: the completed one, wherever it lies, or the one to make."""
    wanted = plan.pretraining
    made = completed_pretraining(wanted)
    if made is not None:
        found = read_record(made)
        overrides = found.command or ["mode=pretrain", f"exp={made.name}"]
        return Outline(
            kind="pretrain", folder=made, hash=wanted.digest, overrides=overrides, action="done", found=found
        )
    run = _outline(wanted, resume=True)
    run.overrides = ["mode=pretrain", f"exp={wanted.folder.name}", "resume=true"]
    run.file = yaml_text(pretraining_values(wanted.config, wanted.choices), "Made by pretrain=auto.")
    return run


def completed_pretraining(wanted: Plan) -> Path | None:
    """The folder of a completed pretraining run with the hash of `wanted`, alone or in a sweep; None where there is none."""
    for path in [*wanted.runs.glob("pretrain/*/record.json"), *wanted.runs.glob("multirun/*/*/pretrain-*/record.json")]:
        try:
            record = read_record(path.parent)
        except ValueError:
            continue
        if record.hash == wanted.digest and record.status == "completed":
            return path.parent
    return None

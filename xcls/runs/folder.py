"""Decides, before anything is written, whether a run starts in its folder, resumes there, or is done.

Standard library only.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from xcls.config.schema import UserError
from xcls.runs.record import Record, read_record

DONE, RESUME, FRESH = "done", "resume", "fresh"
STAGES = ("pretrain", "finetune", "multirun")  # the folders of all runs
# Files that a folder may contain before its first record; editors leave copies of config.yaml.
BEFORE_RECORD = re.compile(r"\.lock|\.making|\.room|logs|\..+\.tmp|[.#]*config\.yaml.*")


def read_or_refuse(folder: Path) -> Record:
    """The record in `folder`. Raises UserError if there is none, or it cannot be read."""
    try:
        return read_record(folder)
    except ValueError as error:
        raise UserError(f"{error}\nMove the folder {folder} away and start again.") from error


def check_case_collision(folder: Path) -> None:
    """Refuses a name that differs from an existing one only in upper and lower case: many systems take both as one.

    Raises UserError.
    """
    for place in (folder, *folder.parents):
        names = os.listdir(place.parent) if place.parent.is_dir() else []
        equal = [name for name in names if name != place.name and name.casefold() == place.name.casefold()]
        if equal:
            raise UserError(
                f"{place}: {equal[0]} exists and differs only in upper and lower case. Choose another name."
            )
        if place.parent.name in STAGES:
            break


def rollback(folder: Path, kept: set[str]) -> None:
    """Removes the files of a refused run from `folder`, except the names in `kept`; then removes empty folders."""
    for path in folder.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for place in (folder, *folder.parents):
        if any(place.iterdir()) or place.name in STAGES:
            break
        place.rmdir()


def changed_code(record: Record, code: dict[str, str]) -> str:
    """The parts (attention, position) whose code has changed since `record`, as text; '' if none has."""
    return " and ".join(part for part, digest in code.items() if record.code.get(part, digest) != digest)


def decide(
    folder: Path, digest: str, *, resume: bool, sweep: bool, retry_failed: bool, code: dict[str, str]
) -> tuple[str, Record | None]:
    """What to do with `folder` for the run with hash `digest`: DONE, RESUME or FRESH, and the record found there.

    FRESH with a record: the run has begun but has no checkpoint, so it starts again and keeps its history. A sweep
    always resumes, and does not repeat failed runs unless `retry_failed`. Raises UserError if an `exp` has already run,
    or if the folder contains a run with another configuration or other `code`.
    """
    check_case_collision(folder)
    if not (folder / "record.json").is_file():
        _refuse_foreign(folder)
        return FRESH, None
    record = read_or_refuse(folder)
    if record.hash != digest:
        changed = changed_code(record, code)
        other = f"with older code of {changed}" if changed else "with another configuration"
        raise UserError(
            f"{folder} contains a run {other} (hash {record.hash[:6]}, this one {digest[:6]}).\n"
            "Choose another exp=…, or move that folder away. Its settings: resolved_config.yaml."
        )
    if sweep and (record.status == "completed" or record.status == "failed" and not retry_failed):
        return DONE, record
    if record.status == "completed":
        if resume:
            return DONE, record
        raise UserError(f"{folder} has already run (completed). Choose another exp=… or seed=….")
    if not (resume or sweep):
        raise UserError(f"{folder} has already begun ({record.status}). Set resume=true, or choose another exp=….")
    return (RESUME if any(folder.glob("ckpt_*.pt")) else FRESH), record


def _refuse_foreign(folder: Path) -> None:
    """Refuses a folder that has no record but contains other files: a user's own, or checkpoints of an unknown run.
    Raises UserError."""
    found = sorted(os.listdir(folder)) if folder.is_dir() else []
    foreign = [name for name in found if not BEFORE_RECORD.fullmatch(name)]
    if foreign:
        shown = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise UserError(
            f"{folder} contains {shown}, but no record.json, so it is not the folder of a run. "
            "Move its content away, or choose another exp=…."
        )

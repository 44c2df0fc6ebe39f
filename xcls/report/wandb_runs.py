"""Runs that are in W&B: `wandb:entity/project/id`, or a folder `…/wandb/offline-run-…`, made into run folders again.

Every run puts its whole `record.json` and `metrics.csv` into the summary of its W&B run (xcls/train/wandb_copy.py).
They are laid down under `multirun/wandb/`, and the report reads them there like any other run; what W&B does not have,
the predictions, is then noted as missing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from xcls.config.schema import UserError
from xcls.runs.paths import at
from xcls.runs.record import write_atomic
from xcls.runs.wandb_file import METRICS, RECORD, read_segment

PREFIX = "wandb:"
NAME = r"((?!\.)[^/\\#?%:]+)"  # what W&B allows, and what makes a folder's name
RUN_PATH = re.compile(f"{NAME}/{NAME}/(?:runs/)?{NAME}")
KEPT = "multirun/wandb"
ANSWER_SECONDS = 20


def is_wandb(given: str | Path, root: Path) -> bool:
    """Whether an entry of `runs` names a run in W&B, or one that W&B has kept on disk."""
    return str(given).startswith(PREFIX) or bool(_files(root / at(given)))


def fetch(given: str | Path, root: Path) -> tuple[list[Path], list[str]]:
    """Run folders made of what W&B has, and what could not be used, with the reason.

    Raises UserError where W&B cannot be asked, or does not know the run.
    """
    if str(given).startswith(PREFIX):
        found = RUN_PATH.fullmatch(str(given)[len(PREFIX) :])
        if not found:
            raise UserError(
                f"runs: {given}: wandb:<entity>/<project>/<run id> is needed, as in the address of the run's page."
            )
        stored = {found.groups(): _ask("/".join(found.groups()), str(given))}
        reasons: list[str] = []
    else:
        stored, reasons = _read(_files(root / at(given)))
    folders = []
    for parts, summary in stored.items():
        if isinstance(summary.get(RECORD), str):
            folders.append(_lay_down(root.joinpath(KEPT, *parts), summary))
        else:
            reasons.append(
                f"{parts[-1]}: no run of xcls, or cut short as it began: there is no {RECORD} in its summary"
            )
    return folders, reasons


def _files(place: Path) -> list[Path]:
    """The .wandb files that a path names: a file or its folder (then all of its run), or a folder `wandb`."""
    if place.suffix == ".wandb" and place.is_file():
        place = place.parent
    if place.name == "wandb":
        return sorted(place.glob("*run-*/run-*.wandb"))
    own = sorted(place.glob("run-*.wandb")) if "run-" in place.name else []
    return sorted(place.parent.glob(f"*run-*/{own[0].name}")) if own else []


def _read(files: list[Path]) -> tuple[dict[tuple[str, ...], dict[str, Any]], list[str]]:
    """The summary of each run in these files, the latest segment winning, and what is wrong with the others."""
    segments, reasons = [], []
    for file in files:
        try:
            segments.append(read_segment(file))
            if not re.fullmatch(NAME, segments[-1].id):
                raise ValueError(f"a run id that W&B would not give: {segments.pop().id!r}")
        except (OSError, ValueError) as error:
            reasons.append(f"{file.parent.name}: {str(error).replace(f'{file}: ', '')}")
    stored: dict[tuple[str, ...], dict[str, Any]] = {}
    for segment in sorted(segments, key=lambda segment: (segment.started, segment.path)):
        stored.setdefault(("offline", segment.id), {}).update(segment.summary)
    return stored, reasons


def _lay_down(place: Path, summary: dict[str, Any]) -> Path:
    """Writes record.json and metrics.csv into `place`, and gives it back."""
    place.mkdir(parents=True, exist_ok=True)
    write_atomic(place / "record.json", summary[RECORD])
    if isinstance(summary.get(METRICS), str):
        write_atomic(place / "metrics.csv", summary[METRICS])
    else:  # the run had not ended
        (place / "metrics.csv").unlink(missing_ok=True)
    return place


def _ask(path: str, given: str) -> dict[str, Any]:
    """The summary of a run, by W&B's public API. Raises UserError."""
    try:
        import wandb

        wandb.setup(settings=wandb.Settings(silent=True))
        return dict(wandb.Api(timeout=ANSWER_SECONDS).run(path).summary)
    except (Exception, SystemExit) as error:  # the package may be missing or broken; wandb itself raises many kinds
        said = " ".join(str(error).split())[:300]
        raise UserError(
            f"runs: {given}: W&B says: {said}\nIs the path that of the run's page, is your key known here (wandb login), "
            "is the network there? Without: name the run's folder, or its folder `wandb`."
        ) from error

"""Runs that are in W&B: `wandb:entity/project/id` is made into a run folder under multirun/.wandb/, by W&B's public API."""

from __future__ import annotations

import re
from pathlib import Path

from xcls.config.schema import UserError

PREFIX = "wandb:"
NAME = r"((?!\.)[^/\\#?%:]+)"  # what W&B allows, and what makes a folder's name
RUN_PATH = re.compile(f"{PREFIX}{NAME}/{NAME}/(?:runs/)?{NAME}")
FILES = ("record.json", "metrics.csv", "predictions.parquet", "code.patch")
ANSWER_SECONDS = 20


def fetch(given: str, root: Path) -> Path:
    """Downloads the files of a run and gives its new folder. Raises UserError: W&B does not answer or does not know the run."""
    found = RUN_PATH.fullmatch(given)
    if not found:
        raise UserError(
            f"runs: {given}: wandb:<entity>/<project>/<run id> is needed, as in the address of the run's page."
        )
    place = root.joinpath("multirun", ".wandb", *found.groups())
    try:
        import wandb

        files = {file.name: file for file in wandb.Api(timeout=ANSWER_SECONDS).run("/".join(found.groups())).files()}
        for name in [name for name in FILES if name in files]:
            files[name].download(root=str(place), replace=True)
    except (Exception, SystemExit) as error:  # the package may be missing or broken; wandb itself raises many kinds
        said = " ".join(str(error).split())[:300]
        raise UserError(f"runs: {given}: W&B says: {said}. Log in (wandb login), or name the run's folder.") from error
    if "record.json" not in files:
        raise UserError(f"runs: {given}: no run of xcls: W&B has no record.json of it. Name the run's folder instead.")
    return place

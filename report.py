"""Makes tables, a verdict, plots and a page from finished runs. Settings: conf/report.yaml. Does not import torch."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P report.py` does not

from xcls.runs.terminal import end_early, exit_code

if __name__ == "__main__":
    sys.excepthook = end_early
os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors, and `describe` explains them

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xcls.config.schema import UserError, flatten, nearest
from xcls.report.settings import FamilyClaims, Settings
from xcls.runs.identity import runs_root


def report(cfg: DictConfig) -> int:
    """Writes the report and prints its table."""
    if isinstance(cfg.runs, str):  # runs=multirun/quick
        cfg.runs = [cfg.runs]
    settings: Settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), cfg))  # type: ignore[assignment]
    from xcls.report.write import write_report  # here, because it imports matplotlib

    print(write_report(settings, typed=list(HydraConfig.get().overrides.task), root=runs_root(Path.cwd())), end="")
    return 0


@hydra.main(version_base="1.3", config_path="conf", config_name="report")
def main(cfg: DictConfig) -> None:
    """Makes one report and ends the process with its exit code."""
    sys.exit(exit_code(lambda: report(cfg), describe))


def enter() -> int:
    """Checks the command line and makes the report."""
    if {"-m", "--multirun"} & set(sys.argv):
        raise UserError("a report is one run: name all folders in one list, 'runs=[a,b]', without -m.")
    main()
    return 0


def describe(error: Exception) -> str | None:
    """An error of the command line as one message: the key, what is wrong, the nearest valid key."""
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return str(error) if isinstance(error, UserError) else None
    text, cause = str(error).strip(), error.__cause__ or error
    override = re.search(r"Could not override '([^']+)'", text)
    key = override[1] if override else str(getattr(cause, "full_key", None) or getattr(cause, "key", None) or "")
    if override or re.search(r"not in '|not in struct", str(cause)):
        families = [f"claims.families.performer.{name}" for name in asdict(FamilyClaims())]
        return f"{key}: unknown key.{nearest(key, [*flatten(asdict(Settings())), 'claims', *families])}"
    hint = "" if key else " A list is written without blanks, in quotes: 'runs=[multirun/a,multirun/b]'."
    return (f"{key}: " if key else "") + text.splitlines()[0] + hint


if __name__ == "__main__":
    sys.exit(exit_code(enter, describe))

"""Hydra's own settings: those of the launcher and the sweeper may be typed, those of folders and logs may not."""

from __future__ import annotations

import pytest

from xcls.config.hydra_settings import check_words
from xcls.config.schema import UserError


@pytest.mark.parametrize(
    "word",
    [
        "hydra.mode=RUN",
        "hydra/launcher=slurm",
        "hydra.launcher.jobs=2",
        "hydra.sweeper.max_batch_size=3",
        "+hydra.launcher.x=1",
        "seed=1",
        "study=hydra.run.dir",
        "-m",
        "hydraulic=1",
        "hydra.verbose=true",
    ],
)
def test_what_is_free_passes(word: str) -> None:
    assert check_words([word]) is None


@pytest.mark.parametrize(
    "word",
    [
        "hydra.run.dir=x",
        "++hydra.run.dir=x",
        "~hydra.run",
        "hydra={run:{dir:x}}",
        "hydra/job_logging=default",
        "hydra.job.chdir=true",
        " hydra.output_subdir=x",
        "hydra/output@hydra=x",
        "hydra/sweeper=basic",
        "hydra.callbacks.x._target_=os.system",
        "hydra.searchpath=[x]",
        "hydra.modes=x",
        "+hydra@x=y",
    ],
)
def test_what_makes_folders_or_calls_functions_does_not(word: str) -> None:
    with pytest.raises(UserError, match="exp=<name> names them"):
        check_words([word])

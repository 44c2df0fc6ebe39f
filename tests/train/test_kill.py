"""SIGKILL loses at most the work since the last checkpoint, and no number of the run changes. One whole process here, for
what `tests/faults` does many times with forks, and tests/train/test_faults.py with workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from xcls.runs.record import read_record
from xcls.train.checkpoint import read_checkpoint
from xcls.train.run_logger import COLUMNS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import os, signal, sys
from pathlib import Path
from tests.samples import CPU, HARDWARE, TinyTokenizer, make_classifier, make_data, make_journal, make_training
from xcls.runs.record import Events
from xcls.stages.finetune import finetune
folder, fatal, add = Path(sys.argv[1]), int(sys.argv[2]), Events.add
def add_and_die(self, event, details=None):  # the kill comes from within: nobody has to be quick
    add(self, event, details)
    if (details or {}).get("step") == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
Events.add = add_and_die
journal = make_journal(folder)
with journal:
    finetune(model=make_classifier("reformer", dropout=0.1), data=make_data(80), tokenizer=TinyTokenizer(),
             training=make_training(epochs=1.0, checkpoint_every_steps=2, redraw_every_steps=3), hardware=HARDWARE,
             precision=CPU, seed=0, journal=journal, resume=any(folder.glob("ckpt_*.pt")))
"""


def run(folder: Path, fatal: int = 0) -> int:
    """The exit code of a run that is killed as it writes down something of step `fatal`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XCLS_PROGRESS": "0"}
    command = [sys.executable, "-c", CODE, str(folder), str(fatal)]
    return subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, check=False).returncode


def assert_same(whole: Path, parts: Path) -> None:
    tables = [pd.read_csv(folder / "metrics.csv", float_precision="round_trip") for folder in (whole, parts)]
    stable = list(COLUMNS[:9])
    pd.testing.assert_frame_equal(tables[0][stable], tables[1][stable], check_exact=True)
    for name in ("ckpt_last.pt", "ckpt_best.pt"):
        first, second = (read_checkpoint(folder / name)["model"] for folder in (whole, parts))
        assert all(torch.equal(first[key], second[key]) for key in first), name
    assert read_record(whole).files["predictions.parquet"] == read_record(parts).files["predictions.parquet"]
    assert not list(parts.glob(".ckpt*"))


@pytest.mark.slow
def test_one_kill(tmp_path: Path) -> None:
    assert run(tmp_path / "whole") == 0
    assert run(tmp_path / "parts", fatal=7) == -signal.SIGKILL
    assert read_record(tmp_path / "parts").status == "running" and any((tmp_path / "parts").glob("ckpt_step*6.pt"))
    assert run(tmp_path / "parts") == 0
    assert_same(tmp_path / "whole", tmp_path / "parts")

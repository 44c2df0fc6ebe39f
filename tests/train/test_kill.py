"""SIGKILL loses at most the work since the last checkpoint, and no number of the run changes. One whole process here, for
what `tests/faults` does many times with forks."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from xcls.record import read_record
from xcls.train.checkpoint import read_checkpoint
from xcls.train.journal import COLUMNS

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys
from pathlib import Path
from tests.samples import CPU, HARDWARE, TinyTokenizer, make_classifier, make_data, make_journal, make_training
from xcls.stages.finetune import finetune
folder = Path(sys.argv[1])
journal = make_journal(folder)
with journal:
    finetune(model=make_classifier("reformer", dropout=0.1), data=make_data(80), tokenizer=TinyTokenizer(),
             training=make_training(epochs=4.0, checkpoint_every_steps=1, redraw_every_steps=3), hardware=HARDWARE,
             precision=CPU, seed=0, journal=journal, resume=any(folder.glob("ckpt_*.pt")))
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XCLS_PROGRESS": "0"}
    command = [sys.executable, "-c", CODE, str(folder)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)


def kill_and_resume(folder: Path, kills: int, draws: random.Random) -> int:
    """Kills the run `kills` times, each some moments after a checkpoint came; then lets it end. Returns the kills."""
    done = 0
    for _ in range(kills):
        before = set(folder.glob("ckpt_step*"))
        process = start(folder)
        while process.poll() is None and set(folder.glob("ckpt_step*")) <= before:
            time.sleep(0.002)
        time.sleep(draws.random() * 0.2)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            done += 1
        process.wait()
        if read_record(folder).status == "completed":
            break
    if read_record(folder).status != "completed":
        assert start(folder).wait() == 0
    return done


def assert_same(whole: Path, parts: Path) -> None:
    tables = [pd.read_csv(folder / "metrics.csv", float_precision="round_trip") for folder in (whole, parts)]
    stable = list(COLUMNS[:9])
    pd.testing.assert_frame_equal(tables[0][stable], tables[1][stable], check_exact=True)
    for name in ("ckpt_last.pt", "ckpt_best.pt"):
        first, second = (read_checkpoint(folder / name)["model"] for folder in (whole, parts))
        assert all(torch.equal(first[key], second[key]) for key in first), name
    assert read_record(whole).files["predictions.parquet"] == read_record(parts).files["predictions.parquet"]
    assert not list(parts.glob(".ckpt*"))


def test_one_kill(tmp_path: Path) -> None:
    assert start(tmp_path / "whole").wait() == 0
    assert kill_and_resume(tmp_path / "parts", 1, random.Random(0)) == 1
    assert_same(tmp_path / "whole", tmp_path / "parts")

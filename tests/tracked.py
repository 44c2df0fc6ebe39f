"""Runs as W&B's copy sees them: a journal that works without a model, and what W&B has of it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

from xcls.config.schema import Wandb
from xcls.runs.record import Record
from xcls.runs.wandb_file import read_segments
from xcls.train.journal import Journal
from xcls.train.wandb_copy import Journal as Rows

ROOT = Path(__file__).resolve().parents[1]
CHOICES = {
    "mode": "finetune",
    "attention": "performer",
    "position": "rope",
    "size": "tiny",
    "dataset": "imdb",
    "tokenizer": "bytes",
}


def open_journal(folder: Path, mode: str = "offline", artifacts: str = "none", wandb_id: str | None = None) -> Journal:
    """A run as it begins."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "wandb.mode": mode,
        "wandb.project": "xcls",
        "wandb.entity": None,
        "wandb.artifacts": artifacts,
        "seed": 3,
    }
    record = Record(
        run="imdb/finetune-x",
        mode="finetune",
        status="running",
        hash="ab" * 32,
        seed=3,
        seq_len=16,
        exp="study",
        choices=CHOICES,
        config=config,
        wandb_id=wandb_id,
    )
    return Journal(folder=folder, record=record, wandb=Wandb(mode=mode, artifacts=artifacts))


def work(journal: Journal, steps: range, pause: float = 0.0) -> None:
    """Some steps, each with its event, every second with an evaluation."""
    for step in steps:
        journal.event("step", {"step": step, "step_loss": 1.0 / step, "grad_norm": None, "lr": 1e-3})
        if step % 2 == 0:
            journal.record.step = step
            journal.record.metrics["validation"] = {"macro_f1": step / 100}
            journal.add_row({"step": step, "val_loss": 2.0 / step, "macro_f1": step / 100})
        time.sleep(pause)


def written(folder: Path) -> list[dict[str, Any]]:
    """The rows that the run's own events hold, as W&B must have them; time aside."""
    return [{key: value for key, value in row.items() if key != "_timestamp"} for row, _ in Rows(folder).new_rows()]


def kept(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """W&B's rows without what W&B adds."""
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


def offline(folder: Path) -> list[dict[str, Any]]:
    """The rows of all offline segments, in order."""
    return kept([row for segment in read_segments(folder / "wandb") for row in segment.rows])


def sync(folder: Path) -> subprocess.CompletedProcess[str]:
    """The real `wandb sync`, as a user types it."""
    command = [sys.executable, "-m", "wandb", "sync", str(folder / "wandb")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)


def children(pid: int) -> list[int]:
    """The processes that `pid` has started."""
    return [
        int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text().split()
    ]


def wait_for(what: Callable[[], Any], seconds: float = 120) -> None:
    """Waits until `what()` is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


LONE_RUN = """
import sys, time
from pathlib import Path
from tests.tracked import open_journal, work
with open_journal(Path(sys.argv[1]), sys.argv[2]) as journal:
    journal.begin(rows=[], wandb_id=None)
    work(journal, range(1, 2001), pause=0.02)
"""


def lone_run(folder: Path, mode: str = "offline", **options: Any) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", LONE_RUN, str(folder), mode], cwd=ROOT, stderr=subprocess.PIPE, text=True, **options
    )

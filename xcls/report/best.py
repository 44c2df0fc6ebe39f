"""The best run of each data set, and the command that predicts with it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from xcls.quoting import quoted
from xcls.record import is_guess
from xcls.report.aggregate import Board, class_count
from xcls.report.collect import Run
from xcls.report.measures import MEASURES


@dataclass(frozen=True)
class Best:
    """`text` names the run; `command` is for a shell in the project's folder."""

    text: str
    command: str


def best_runs(boards: Sequence[Board], rank_by: str, root: Path) -> list[Best]:
    """One for each board that has a completed fine-tuned run whose best checkpoint is there. Of a test score the run with the
    best validation macro-F1 counts: test selects nothing. `root`: the working directory, to which the runs' places are relative.
    """
    measure = MEASURES["macro_f1" if MEASURES[rank_by].place == "metrics.test" else rank_by]
    sign = 1 if measure.low_is_better else -1
    found = []
    for board in boards:
        values = [(sign * value, run.place, value, run) for group in board.groups for run in group.runs
                  if (value := measure.of(run.record)) is not None and _usable(run)]
        if values:
            _, _, value, run = min(values, key=lambda item: item[:2])
            exp = run.place if (root / "run.py").is_file() else str(run.folder)
            words = ["mode=predict", f"exp={quoted(exp)}", "input=new.csv", "output=predictions.csv"]
            text = f"The best run on {board.name} by {measure.name} ({value:.4g}) is {run.place}. Predict with it (input: .csv, .txt, .jsonl, …):"
            found.append(Best(" ".join(text.split()), f"python run.py {' '.join(map(shlex.quote, words))}"))
    return found


def _usable(run: Run) -> bool:
    """Whether the run learned something, mode=predict can read it, and a shell its name."""
    classes = class_count(run.record)
    if classes and is_guess(MEASURES["macro_f1"].of(run.record), classes):
        return False
    return run.record.mode == "finetune" and (run.folder / "ckpt_best.pt").is_file() and str(run.folder).isprintable()

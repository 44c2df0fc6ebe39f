"""A run's metrics.csv as curves: scores over the time in training steps, and over the tokens seen."""

from __future__ import annotations

import csv
from dataclasses import dataclass

from xcls.report.collect import Run
from xcls.report.measures import number

LARGEST = 8 * 2**20  # bytes of a metrics.csv that is read; a row per evaluation makes some thousand
COSTS = ("step", "time_per_step", "tokens_per_s")


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run in order: seconds in training steps, real tokens seen, and the score."""

    seconds: list[float]
    tokens: list[float]
    scores: list[float]


def read_curve(run: Run, score: str) -> Curve | None:
    """The curve of `score` (a column) of `run`; None where its file is gone, too large, or has no such numbers."""
    file = run.folder / "metrics.csv"
    curve = Curve([], [], [])
    try:
        if "metrics.csv" not in run.record.files or file.stat().st_size > LARGEST:
            return None
        with open(file, newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                value, (step, per_step, rate) = _float(row.get(score)), [_float(row.get(name)) for name in COSTS]
                if value is None or step is None or per_step is None:
                    continue
                curve.seconds.append(step * per_step)
                curve.tokens.append(step * per_step * rate if rate is not None else float("nan"))
                curve.scores.append(value)
    except (OSError, ValueError, csv.Error):
        return None
    return curve if curve.scores else None


def _float(text: object) -> float | None:
    try:
        return number(float(str(text or "nan")))
    except ValueError:
        return None

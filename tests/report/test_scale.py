"""Thousands of records in seconds; and the same runs, with their predictions, give the same bytes in any order."""

from __future__ import annotations

import random
import time

import pytest

from tests.report.examples import contents, from_yaml, rows
from tests.report.predicted import sweep
from tests.report.scale import make_runs
from xcls.report.settings import Settings
from xcls.report.write import write_report


@pytest.mark.slow
def test_two_thousand_records_take_seconds(tmp_path):
    make_runs(2000, tmp_path)
    began = time.process_time()
    write_report(Settings(runs=["multirun"], out="out", claims=from_yaml()), root=tmp_path)
    assert time.process_time() - began < 60  # of the processor: other work on the machine does not count
    assert len(rows(tmp_path / "out" / "results.csv")) == 2001


def test_runs_with_predictions_give_the_same_bytes_in_any_order(make, tmp_path):
    folder = sweep(make, tmp_path, rows=120, skills={"sdpa": 1.6, "performer": 1.55, "reformer": 1.5, "baseline": 1.3})
    runs = sorted(path.parent.relative_to(tmp_path).as_posix() for path in folder.rglob("record.json"))
    made = []
    for number in range(2):
        random.Random(number).shuffle(runs)
        settings = Settings(runs=list(runs), out="out", claims=from_yaml())
        write_report(settings, root=tmp_path)
        made.append(contents(tmp_path / "out"))
    assert made[0] == made[1] and len(runs) == 10
    assert any(row["interval_low"] for row in rows(tmp_path / "out" / "differences.csv"))

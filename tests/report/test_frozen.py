"""The tables over a folder of sample runs (frozen/) keep every byte: groups, intervals, claims, costs, ranks.

Where a change of them is meant: make the report over the folder, look at each difference, and copy the tables to
frozen/expected.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.examples import from_yaml
from xcls.report.settings import Cost, Price, Settings
from xcls.report.write import write_report

FROZEN = Path(__file__).parent / "frozen"
ORIGINALS = {"smyrf": "reformer", "mean": "performer"}
COST = Cost(price_per_hour=0.5, watts=65.0, devices={"test GPU": Price(1.5, None)})


def test_the_tables_of_the_sample_runs_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xcls.report.write.draw", lambda *_: [])  # which takes most of the time
    settings = Settings(runs=["multirun"], out=str(tmp_path), claims=from_yaml(), originals=ORIGINALS, cost=COST)
    write_report(settings, root=FROZEN)
    expected = {path.name: path.read_bytes() for path in (FROZEN / "expected").glob("*.csv")}
    assert {"results.csv", "groups.csv", "differences.csv", "wnf.csv", "costs.csv", "ranking.csv"} <= set(expected)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")} == expected

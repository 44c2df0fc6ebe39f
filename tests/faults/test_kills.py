"""The kill harness itself: it sees a run that a signal ended badly before its first step."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults import kills
from tests.faults.kills import EARLY, Kills, reached
from tests.faults.runs import CASES
from tests.samples import make_logger
from xcls.runs.record import read_record, write_record

NAME = "early stopping"


def told(folder: Path, status: str, *more: str) -> None:
    """A life that wrote a start, then `more` events of step 1, and `status` in its record."""
    folder.mkdir(exist_ok=True)
    record = make_logger(folder).record
    record.status, record.started = status, 1.0
    write_record(record, folder)
    with open(folder / "events.jsonl", "a", encoding="utf-8") as file:
        for event in ("start", *more):
            file.write(json.dumps({"event": event, "time": 2.0, "step": 1}) + "\n")


def struck(folder: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, code: int, life: Any) -> Kills:
    """What the harness makes of one life that `chosen` ended with `code`; no process is made."""
    made = Kills(number=1, folder=folder, seed=0)
    monkeypatch.setattr(made.draws, "choice", lambda signals: chosen)
    monkeypatch.setattr(kills, "spawn", lambda action, log: life() or -1)
    monkeypatch.setattr(kills, "wait", lambda process: code)
    monkeypatch.setattr(os, "waitpid", lambda process, how: (0, 0))
    monkeypatch.setattr(os, "kill", lambda process, number: None)
    assert not made._kill(NAME, CASES[NAME], folder / "run", 0.0)
    return made


def test_a_signal_before_the_first_step_is_checked_and_counted_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "run"
    made = struck(tmp_path, monkeypatch, "SIGTERM", -signal.SIGTERM, lambda: told(place, "running"))
    assert made.problems == [f"{NAME}, run: SIGTERM left it running (exit -15), 0 steps lost"]
    assert made.made == {EARLY[False]: 1} and reached(kills.events(place)) is None
    assert struck(tmp_path, monkeypatch, "SIGTERM", 1, lambda: told(place, "interrupted")).problems == []
    made = struck(tmp_path, monkeypatch, "SIGKILL", -signal.SIGKILL, lambda: told(place, "running"))
    assert made.problems == [] and made.made == {EARLY[True]: 1}
    made = struck(tmp_path, monkeypatch, "SIGKILL", -signal.SIGKILL, lambda: told(place, "running", "step"))
    assert made.made == {"SIGKILL": 1} and made.lost["SIGKILL"] == [0, 1]
    assert read_record(place).status == "running"


def test_a_life_that_throws_its_history_away_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "run"
    told(place, "running", "step")
    told(place, "running", "step")

    def cleared() -> None:
        (place / "events.jsonl").unlink()
        told(place, "interrupted")

    found = struck(tmp_path, monkeypatch, "SIGTERM", 1, cleared).problems
    assert [item.partition("after SIGTERM: ")[2] for item in found[:2]] == [
        "events.jsonl: what it said before is gone",
        "events.jsonl: 2 lives before, 1 now",
    ]

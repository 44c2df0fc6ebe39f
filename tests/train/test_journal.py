"""What is on disk while a run runs and after it ended, and tracking that must not be in the way."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.samples import make_journal
from xcls.record import read_record, sha256
from xcls.schema import Wandb
from xcls.train.journal import COLUMNS
from xcls.train.signals import Interrupted
from xcls.train.tracking import Tracker

ROW = {"step": 4, "epoch": 0.5, "val_loss": 0.1 + 0.2, "accuracy": 1.0, "auroc": None, "unknown": 3}


@pytest.mark.parametrize(
    ("error", "status", "cause"),
    [
        (None, "completed", None),
        (ValueError("two\nlines"), "failed", "ValueError: two lines"),
        (Interrupted("stopped by SIGTERM"), "interrupted", "stopped by SIGTERM"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (OSError(28, "No space left on device"), "failed", "OSError: [Errno 28] No space left on device"),
    ],
)
def test_how_a_run_ends(error: BaseException | None, status: str, cause: str | None, tmp_path: Path) -> None:
    def run() -> None:
        with make_journal(tmp_path) as journal:
            assert read_record(tmp_path).status == "running"
            journal.record.step = 3
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    record = read_record(tmp_path)
    assert (record.status, record.cause, record.step) == (status, cause, 3)
    assert record.ended >= record.started > 0
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["event"] == "start"
    assert (lines[-1]["event"], lines[-1]["status"]) == ("end", status)
    assert (tmp_path / "logs" / "traceback.txt").exists() == (error is not None)
    assert "start" in (tmp_path / "logs" / "run.log").read_text(encoding="utf-8")


def test_a_signal_outside_the_loop_is_swallowed_by_nobody(tmp_path: Path) -> None:
    with pytest.raises(Interrupted), make_journal(tmp_path):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            pytest.fail("taken for an error")
    assert (read_record(tmp_path).status, read_record(tmp_path).cause) == ("interrupted", "stopped by SIGTERM")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_metrics_are_whole_and_checked(tmp_path: Path) -> None:
    with make_journal(tmp_path) as journal:
        journal.begin(rows=[], wandb_id=None)
        journal.add_row(ROW)
        lines = (tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()
        assert lines[0] == ",".join(COLUMNS)
        assert lines[1].startswith("4,0.5,,0.30000000000000004,1.0,,,,")
        assert read_record(tmp_path).files == {"metrics.csv": sha256(tmp_path / "metrics.csv")}


def test_rows_newer_than_the_checkpoint_leave_metrics_and_stay_in_events(tmp_path: Path) -> None:
    with make_journal(tmp_path) as journal:
        journal.begin(rows=[], wandb_id=None)
        journal.add_row(ROW)
        saved = [dict(row) for row in journal.rows]
        journal.add_row({**ROW, "step": 8})
    with make_journal(tmp_path) as journal:
        journal.begin(rows=saved, wandb_id=None)
    assert len((tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 2
    assert '"step": 8' in (tmp_path / "events.jsonl").read_text(encoding="utf-8")


def test_a_warning_is_written_down_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with make_journal(tmp_path) as journal:
        journal.warn("mind the gap")
        journal.warn("mind the gap")
    assert read_record(tmp_path).warnings == ["mind the gap"]
    assert capsys.readouterr().err == "WARNING: mind the gap\n"


def test_offline_tracking_writes_a_segment_with_the_same_id(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with make_journal(tmp_path, wandb="offline") as journal:
        journal.begin(rows=[], wandb_id=None)
        journal.add_row(ROW)
    first = read_record(tmp_path).wandb_id
    with make_journal(tmp_path, wandb="offline") as journal:
        journal.begin(rows=[], wandb_id=first)
        journal.add_row({**ROW, "step": 8})
    assert first and read_record(tmp_path).wandb_id == first
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{first}"))) >= 1
    assert read_record(tmp_path).warnings == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_a_failing_tracker_is_one_warning(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeRun:
        id = "abc"

        def define_metric(self, *names: Any, **named: Any) -> None: ...

        def log(self, values: dict[str, Any]) -> None:
            if failing == "log":
                raise ConnectionError("gone")

        def finish(self, exit_code: int) -> None:
            if failing == "finish":
                raise SystemExit(1)

    class FakeWandb:
        Settings = staticmethod(lambda **named: None)

        @staticmethod
        def init(**named: Any) -> FakeRun:
            if failing == "init":
                raise RuntimeError("no API key\nwith details")
            return FakeRun()

    monkeypatch.setitem(sys.modules, "wandb", FakeWandb)
    said: list[str] = []
    tracker = Tracker(settings=Wandb(mode="online"), folder=tmp_path, warn=said.append)
    tracker.start(name="r", group=None, tags=[], config={}, run_id=None)
    for step in range(3):
        tracker.log({"step": step})
    tracker.finish(0)
    assert len(said) == 1 and said[0].startswith("W&B: ") and "Training goes on" in said[0]


def test_disabled_tracking_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would raise
    tracker = Tracker(settings=Wandb(mode="disabled"), folder=tmp_path, warn=pytest.fail)
    assert tracker.start(name="r", group=None, tags=[], config={}, run_id="kept") == "kept"
    tracker.log({"step": 1})
    tracker.finish(0)
    assert tracker.run is None

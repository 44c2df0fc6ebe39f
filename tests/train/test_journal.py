"""What is on disk while a run runs and after it ended."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.samples import make_journal
from xcls.runs.record import Events, read_record, sha256
from xcls.train.run_logger import COLUMNS
from xcls.train.signals import Interrupted

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


def test_rows_newer_than_the_checkpoint_leave_metrics_and_stay_marked_in_events(tmp_path: Path) -> None:
    with make_journal(tmp_path) as journal:
        journal.begin(rows=[], wandb_id=None)
        journal.add_row(ROW)
        saved = [dict(row) for row in journal.rows]
        journal.add_row({**ROW, "step": 8})
        journal.add_row({**ROW, "step": 12})
    before = (tmp_path / "events.jsonl").read_text(encoding="utf-8")
    with make_journal(tmp_path) as journal:
        journal.begin(rows=saved, wandb_id=None)
        journal.rewind(saved, step=5)
        assert journal.events.standing() == [4]
        journal.add_row({**ROW, "step": 8})
        assert journal.events.standing() == [4, 8]
    after = (tmp_path / "events.jsonl").read_text(encoding="utf-8")
    assert after.startswith(before), "the file only grows"
    marked = [json.loads(line) for line in after.splitlines() if '"withdrawn"' in line]
    assert [event["step"] for event in marked] == [8, 12]
    assert [line.split(",")[0] for line in (tmp_path / "metrics.csv").read_text().splitlines()] == ["step", "4", "8"]


def test_an_event_after_half_a_line_begins_a_line(tmp_path: Path) -> None:
    events = Events(tmp_path)
    events.add("start")
    with open(events.path, "ab") as file:
        file.write(b'{"event": "eval", "st')  # the disk was full
    events.add("end")
    lines = events.path.read_text(encoding="utf-8").splitlines()
    assert [line[:16] for line in lines] == ['{"event": "start', '{"event": "eval"', '{"event": "end",']
    assert events.standing() == []


def test_no_row_without_its_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemError), make_journal(tmp_path) as journal:
        journal.begin(rows=[], wandb_id=None)

        def dying() -> None:
            raise SystemError("power cut")

        monkeypatch.setattr(journal, "_write_rows", dying)
        journal.add_row(ROW)
    assert journal.events.standing() == [4]
    assert len((tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 1


def test_a_signal_at_the_very_end_does_not_spoil_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = make_journal(tmp_path)
    monkeypatch.setattr(journal.tracker, "finish", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with journal:
        pass
    assert read_record(tmp_path).status == "completed"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_a_killed_process_left_behind_goes(tmp_path: Path) -> None:
    (tmp_path / ".record.json.123.tmp").write_text("half")
    with make_journal(tmp_path):
        assert [path.name for path in tmp_path.glob(".*")] == [".room"]
    assert not list(tmp_path.glob(".*"))


def test_a_warning_is_written_down_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with make_journal(tmp_path) as journal:
        journal.warn("mind the gap")
        journal.warn("mind the gap")
    assert read_record(tmp_path).warnings == ["mind the gap"]
    assert capsys.readouterr().err == "WARNING: mind the gap\n"

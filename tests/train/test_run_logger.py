"""What is on disk while a run runs and after it ended, whatever ended it."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.samples import make_logger
from xcls.config.schema import UserError
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
    ],
)
def test_how_a_run_ends(error: BaseException | None, status: str, cause: str | None, tmp_path: Path) -> None:
    (tmp_path / ".record.json.123.tmp").write_text("half")  # of a process that was killed
    try:
        with make_logger(tmp_path) as logger:
            assert read_record(tmp_path).status == "running" and not list(tmp_path.glob("*.tmp"))
            logger.record.step = 3
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    record = read_record(tmp_path)
    assert (record.status, record.cause, record.step) == (status, cause, 3)
    assert record.ended >= record.started > 0
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["event"] == "start" and (lines[-1]["event"], lines[-1]["status"]) == ("end", status)
    assert (tmp_path / "logs" / "traceback.txt").exists() == (error is not None)
    assert "start" in (tmp_path / "logs" / "run.log").read_text(encoding="utf-8")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("event", ["start", "end", "middle"])
def test_a_signal_outside_the_loop(event: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It interrupts the run while its folder is made and later; at the very end it changes nothing any more."""
    add = Events.add

    def add_and_stop(self: Events, kind: str, details: Any = None) -> None:
        if kind == event:
            os.kill(os.getpid(), getattr(signal, name))
        add(self, kind, details)

    monkeypatch.setattr(Events, "add", add_and_stop)
    try:
        with make_logger(tmp_path) as logger:
            logger.event("middle")
    except Interrupted:
        assert event != "end"
    record = read_record(tmp_path)
    wanted = ("completed", None) if event == "end" else ("interrupted", f"stopped by {name}")
    assert (record.status, record.cause) == wanted
    assert not list(tmp_path.glob(".*")) and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_cannot_be_written_at_the_start_changes_nothing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_logger(tmp_path):
        pass
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def half(self: Path, content: bytes) -> int:
        with open(self, "wb") as file:
            file.write(content[:10])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(UserError) as error, make_logger(tmp_path):
        pytest.fail("it went on")
    assert str(tmp_path) in str(error.value) and os.strerror(number) in str(error.value)
    assert ("room" in str(error.value)) == (number == errno.ENOSPC)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_metrics_are_whole_and_checked_and_no_row_is_without_its_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemError), make_logger(tmp_path) as logger:
        logger.begin()
        logger.add_row(ROW)
        lines = (tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()
        assert lines[0] == ",".join(COLUMNS) and lines[1].startswith("4,0.5,,0.30000000000000004,1.0,,,,")
        assert read_record(tmp_path).files == {"metrics.csv": sha256(tmp_path / "metrics.csv")}

        def dying() -> None:
            raise SystemError("power cut")

        monkeypatch.setattr(logger, "_write_rows", dying)
        logger.add_row({**ROW, "step": 8})
    assert logger.events.evaluated_steps() == [4, 8]
    assert (tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines() == lines


def test_rows_newer_than_the_checkpoint_leave_metrics_and_stay_marked_in_events(tmp_path: Path) -> None:
    with make_logger(tmp_path) as logger:
        logger.begin()
        for step in (4, 8, 12):
            logger.add_row({**ROW, "step": step})
    before = (tmp_path / "events.jsonl").read_text(encoding="utf-8")
    with make_logger(tmp_path) as again:
        again.begin({"rows": logger.rows[:1], "wandb_id": None, "progress": {"step": 5}}, resume=True)
        assert again.events.evaluated_steps() == [4]
        again.add_row({**ROW, "step": 8})
        assert again.events.evaluated_steps() == [4, 8]
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
    assert events.evaluated_steps() == []


def test_a_warning_is_written_down_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with make_logger(tmp_path) as logger:
        logger.warn("mind the gap")
        logger.warn("mind the gap")
    assert read_record(tmp_path).warnings == ["mind the gap"]
    assert capsys.readouterr().err == "WARNING: mind the gap\n"

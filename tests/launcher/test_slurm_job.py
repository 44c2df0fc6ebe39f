"""What runs on a node, without Slurm: signals, the order of saving and requeueing, and ends that a run cannot write itself."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Iterator

import pytest

from hydra_plugins.xcls_launcher._slurm_job import SlurmJob
from xcls.runs.record import Record, read_record, write_record

WAITS = """
import pathlib, signal, sys, time
def save(number, frame):
    time.sleep(0.3)
    pathlib.Path("saved").touch()
    sys.exit({code})
signal.signal(signal.SIGUSR2, save)
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").touch()
time.sleep(60)
"""


def template() -> Record:
    return Record(run="r", mode="finetune", status="running", hash="abc", seed=0, seq_len=8)


def make(folder: Path, code: str, needs: tuple[Path, ...] = ()) -> SlurmJob:
    return SlurmJob(
        command=[sys.executable, "-c", code],
        directory=str(folder),
        log=str(folder / "log.txt"),
        variables={"XCLS_TEST": "seen"},
        folder=str(folder / "run"),
        record=template(),
        needs=[str(need) for need in needs],
    )


@pytest.fixture
def back_into_queue(tmp_path: Path) -> Iterator[list[bool]]:
    """Takes the place of submitit's handler; for each call, whether the run had saved itself by then."""
    calls: list[bool] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: calls.append((tmp_path / "saved").exists()))
    yield calls
    signal.signal(signal.SIGUSR2, before)


def warn_when_ready(folder: Path, number: int = signal.SIGUSR2) -> None:
    """Sends the warning to this process alone, as Slurm does with cgroups, once the run is ready for it."""

    def wait() -> None:
        while not (folder / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


def test_a_warned_run_saves_first_and_goes_back_then(tmp_path: Path, back_into_queue: list[bool]) -> None:
    warn_when_ready(tmp_path)
    assert make(tmp_path, WAITS.format(code=130))() == 130
    assert back_into_queue == [True]


@pytest.mark.parametrize("code", [0, 1])
def test_a_run_that_ends_by_itself_after_the_warning_stays_ended(
    tmp_path: Path, back_into_queue: list[bool], code: int
) -> None:
    warn_when_ready(tmp_path)
    assert make(tmp_path, WAITS.format(code=code))() == code
    assert back_into_queue == []


def test_a_run_that_the_warning_meets_while_it_loads_goes_back_too(tmp_path: Path, back_into_queue: list[bool]) -> None:
    warn_when_ready(tmp_path)
    assert (
        make(tmp_path, "import pathlib, time; pathlib.Path('ready').touch(); time.sleep(60)")() == 128 + signal.SIGUSR2
    )
    assert back_into_queue == [False]


@pytest.mark.parametrize(("state", "goes_back"), [("RUNNING", [True]), ("CANCELLED", []), ("PENDING", []), (None, [])])
def test_sigterm_is_a_warning_where_slurm_means_to_go_on(
    tmp_path: Path,
    back_into_queue: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    state: str | None,
    goes_back: list[bool],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if state is not None:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho JobId=1 JobState={state} Reason=None\n")
        (tmp_path / "scontrol").chmod(0o755)
    warn_when_ready(tmp_path, signal.SIGTERM)
    assert make(tmp_path, WAITS.format(code=130))() == 130
    assert back_into_queue == goes_back


def test_a_job_that_may_not_go_back_says_so(tmp_path: Path) -> None:
    def refuse(number: int, frame: Any) -> None:
        raise RuntimeError("timed-out too many times")

    before = signal.signal(signal.SIGUSR2, refuse)
    warn_when_ready(tmp_path)
    job = make(tmp_path, WAITS.format(code=130))
    write_record(
        Record(**{**vars(template()), "status": "interrupted", "cause": "stopped by SIGUSR2"}), _made(tmp_path / "run")
    )
    try:
        with pytest.raises(RuntimeError):
            job()
    finally:
        signal.signal(signal.SIGUSR2, before)
    record = read_record(tmp_path / "run")
    assert (
        record.status == "interrupted"
        and record.cause == "stopped by SIGUSR2; not put back into the queue: timed-out too many times"
    )


DEATHS = [
    ("import os; os.kill(os.getpid(), 9)", 137, "interrupted", "killed by SIGKILL (out of memory?)"),
    (
        "import sys; print('run.py: no column x', file=sys.stderr); sys.exit(2)",
        2,
        "failed",
        "no column x (exit code 2)",
    ),
    ("import os; raise SystemExit(os.environ['XCLS_TEST'])", 1, "failed", "seen (exit code 1)"),
]


@pytest.mark.parametrize(("code", "exit_code", "status", "cause"), DEATHS, ids=["killed", "refused", "failed"])
@pytest.mark.parametrize("begun", [False, True])
def test_an_end_without_a_word_is_written_down(
    tmp_path: Path, code: str, exit_code: int, status: str, cause: str, begun: bool
) -> None:
    if begun:
        write_record(template(), _made(tmp_path / "run"))
    assert make(tmp_path, code)() == exit_code
    record = read_record(tmp_path / "run")
    assert record.status == status and cause in record.cause and record.ended > 0 and record.started > 0


@pytest.mark.parametrize(
    "change", [{"status": "completed"}, {"status": "failed", "cause": "its own"}, {"hash": "another"}]
)
def test_an_end_that_the_run_wrote_itself_stays(tmp_path: Path, change: dict[str, str]) -> None:
    write_record(Record(**{**vars(template()), **change}), _made(tmp_path / "run"))
    before = (tmp_path / "run" / "record.json").read_text()
    make(tmp_path, "raise SystemExit(1)")()
    assert (tmp_path / "run" / "record.json").read_text() == before


@pytest.mark.parametrize("status", ["failed", "interrupted", "running", None])
def test_without_its_pretraining_a_run_does_not_begin(tmp_path: Path, status: str | None) -> None:
    need = _made(tmp_path / "pretraining")
    if status is not None:
        write_record(Record(**{**vars(template()), "run": "base", "status": status, "cause": "no room"}), need)
    assert make(tmp_path, "open('begun', 'w')", needs=(need,))() == 1
    record = read_record(tmp_path / "run")
    assert (
        record.status == ("failed" if status in ("failed", None) else "interrupted")
        and "its pretraining" in record.cause
    )
    assert not (tmp_path / "begun").exists()


def test_with_its_pretraining_it_does(tmp_path: Path) -> None:
    need = _made(tmp_path / "pretraining")
    write_record(Record(**{**vars(template()), "status": "completed"}), need)
    assert make(tmp_path, "open('begun', 'w')", needs=(need,))() == 0
    assert (tmp_path / "begun").exists()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder

"""`make status`: every state from folders alone, damaged files, narrow terminals, exit codes, and speed's precondition."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator

import pytest

from tests.conftest import ROOT
from xcls.runs import run_status as standing
from xcls.runs import status
from xcls.runs.record import Record, write_record
from xcls.runs.run_status import last_life, read_run, span
from xcls.runs.sweep_status import Group, standings

NOW = 1_800_000_000.0


def make_run(folder: Path, run_status: str = "running", **changes: Any) -> Path:
    """A run's folder with a record as the program writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "mode": "finetune",
        "status": run_status,
        "hash": "ab" * 32,
        "seed": 0,
        "seq_len": 512,
        "steps": 400,
        "step": 100,
        "started": NOW - 500,
        "device": {"kind": "cpu"},
        **changes,
    }
    write_record(Record(run=folder.name, **settings), folder)
    os.utime(folder / "record.json", (NOW - 400, NOW - 400))
    return folder


def make_events(folder: Path, *events: dict[str, Any], host: str | None = None, age: float = 0.0) -> None:
    """events.jsonl with a start, these, and its time of writing."""
    lines = [{"event": "start", "time": NOW - 450, "host": host or socket.gethostname()}, *events]
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(folder / "events.jsonl", (NOW - age, NOW - age))


def step(number: int, ago: float) -> dict[str, Any]:
    return {"event": "step", "time": NOW - ago, "step": number, "step_loss": 0.5 - number / 1000}


@pytest.fixture
def hold() -> Iterator[Any]:
    """Takes a run's lock as its process does, until the test ends."""
    files = []

    def take(folder: Path) -> None:
        files.append(open(folder / ".lock", "w"))
        fcntl.flock(files[-1], fcntl.LOCK_EX)

    yield take
    for file in files:
        file.close()


def write_sweep(folder: Path, jobs: list[dict[str, Any]], **changes: Any) -> None:
    """sweep.json as the launchers write it."""
    whole = {
        "number": 0,
        "overrides": ["seed=0"],
        "folder": "",
        "kind": "finetune",
        "needs": [],
        "device": None,
        "state": "waiting",
        "cause": None,
        "exit_code": None,
    }
    content = {
        "name": folder.name,
        "started": NOW - 1000,
        "launcher": "gpu_server",
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "jobs": [{**whole, "number": number, **job} for number, job in enumerate(jobs)],
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(content))


def test_a_running_run_shows_step_loss_speed_and_what_is_left(tmp_path: Path, hold: Any) -> None:
    folder = make_run(tmp_path / "finetune" / "a", costs={"tokens_per_s": 900.0})
    make_events(
        folder, step(100, 60), {"event": "eval", "time": NOW - 30, "step": 150, "tokens_per_s": 1234.0}, step(200, 20)
    )
    hold(folder)
    [group] = standings([tmp_path / "finetune"], tmp_path, NOW)
    [run] = group.runs
    assert (group.name, run.name, run.state, run.step, run.steps) == ("finetune", "a", "running", 200, 400)
    assert (run.loss, run.tokens_per_s, run.device) == (0.3, 1234.0, "cpu")
    assert run.left == pytest.approx(0.4 * 200)  # 100 steps took 40 s, evaluation included
    text = "\n".join(status.table([group], 160))
    assert "200/400 (50%)" in text and "0.3000" in text and "1,234" in text and "80 s" in text


def test_the_pace_is_that_of_the_last_life(tmp_path: Path, hold: Any) -> None:
    folder = make_run(tmp_path / "a", step=20)
    make_events(
        folder,
        step(10, 10_000),
        step(20, 9_000),
        {"event": "start", "time": NOW - 40},
        {"event": "resume", "time": NOW - 39, "step": 20},
        step(40, 30),
        step(60, 20),
    )
    hold(folder)
    assert read_run(folder, "a", NOW).left == pytest.approx(0.5 * 340)


def test_a_run_without_a_process_is_stale_and_one_of_another_host_is_not(tmp_path: Path) -> None:
    here, there = make_run(tmp_path / "here"), make_run(tmp_path / "there")
    for folder, host in ((here, None), (there, "gpu07")):
        (folder / ".lock").touch()
        make_events(folder, step(100, 60), step(200, 20), host=host)
    assert (
        read_run(here, "here", NOW).state == "stale" and "the same command goes on" in read_run(here, "here", NOW).note
    )
    found = read_run(there, "there", NOW)
    assert (found.state, found.device, found.note) == ("running", "gpu07:cpu", "")


@pytest.mark.parametrize("kind", ["another host", "no lock file", "held"])
def test_silence_is_told(tmp_path: Path, hold: Any, kind: str) -> None:
    folder = make_run(tmp_path / "a")
    make_events(folder, step(100, 800), step(200, 740), host="gpu07" if kind == "another host" else None, age=740)
    if kind == "held":
        hold(folder)
    elif kind == "another host":
        (folder / ".lock").touch()
    os.utime(folder / "record.json", (NOW - 800, NOW - 800))
    run = read_run(folder, "a", NOW)
    assert run.note == "silent for 12 min"
    assert run.state == (
        "running" if kind == "held" else "silent"
    )  # a process that holds the lock may be in a long evaluation


def test_a_slow_run_may_be_silent_for_longer(tmp_path: Path, hold: Any) -> None:
    folder = make_run(tmp_path / "a", started=NOW - 90_000)
    os.utime(folder / "record.json", (NOW - 2_000, NOW - 2_000))
    make_events(folder, {"event": "start", "time": NOW - 10_000}, step(1, 6_000), step(2, 2_000), age=2_000)
    hold(folder)
    assert read_run(folder, "a", NOW).note == ""


def test_a_record_that_ends_between_two_looks_is_not_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "a")
    (folder / ".lock").touch()

    def ends(place: Path) -> bool:
        make_run(place, "completed", metrics={"validation": {"macro_f1": 0.8}})
        return False

    monkeypatch.setattr(standing, "is_held", ends)
    assert (read_run(folder, "a", NOW).state, read_run(folder, "a", NOW).score) == ("done", 0.8)


def test_the_lock_of_a_real_run_is_seen_and_not_taken(tmp_path: Path, hold: Any) -> None:
    assert standing.is_held(tmp_path) is None
    hold(tmp_path)
    assert standing.is_held(tmp_path) is True
    other = tmp_path / "other"
    other.mkdir()
    (other / ".lock").touch()
    assert standing.is_held(other) is False
    with open(other / ".lock") as file:  # the look has left no lock behind
        assert fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB) is None


def a_sweep(root: Path) -> Path:
    """Every state that a job of a sweep can be in."""
    sweep = root / "multirun" / "wnf"
    make_run(
        sweep / "imdb" / "finetune-sdpa-s0", "completed", ended=NOW - 300, metrics={"validation": {"macro_f1": 0.88}}
    )
    make_run(sweep / "imdb" / "finetune-sdpa-s1", "failed", cause="OutOfMemory: step 7, effective batch 32")
    make_run(sweep / "imdb" / "finetune-sdpa-s2", "interrupted", cause="SIGTERM")
    make_run(sweep / "imdb" / "finetune-sdpa-s3", "failed", cause="BadNumbers: not finite at step 9")
    make_run(root / "pretrain" / "p", "completed", mode="pretrain", ended=NOW - 400)
    write_sweep(
        sweep,
        [
            {"folder": "pretrain/p", "kind": "pretrain", "state": "skipped"},
            {"folder": "multirun/wnf/imdb/finetune-sdpa-s0", "state": "done"},
            {"folder": "multirun/wnf/imdb/finetune-sdpa-s1", "state": "failed", "cause": "exit code 1"},
            {"folder": "multirun/wnf/imdb/finetune-sdpa-s2", "state": "failed", "exit_code": 143},
            {"folder": "multirun/wnf/imdb/finetune-sdpa-s3", "state": "waiting"},
            {"folder": "multirun/wnf/imdb/finetune-sdpa-s4", "state": "running", "device": "GPU-3"},
            {
                "folder": "multirun/wnf/imdb/finetune-sdpa-s5",
                "state": "failed",
                "cause": "dataset.path=nope.csv (exit code 2)",
            },
            {"folder": "", "kind": "bench", "overrides": ["mode=bench"], "state": "waiting"},
        ],
    )
    return sweep


def test_a_sweep_joins_its_jobs_with_their_records(tmp_path: Path) -> None:
    sweep = a_sweep(tmp_path)
    make_run(tmp_path / "pretrain" / "alone", "completed")
    groups = {
        group.name: group for group in standings([tmp_path / name for name in ("multirun", "pretrain")], tmp_path, NOW)
    }
    assert list(groups) == ["multirun/wnf", "pretrain"]
    assert [run.name for run in groups["pretrain"].runs] == ["alone"]  # the other one is a job of the sweep
    found = {run.name: (run.state, run.note) for run in groups["multirun/wnf"].runs}
    assert found == {
        "pretrain/p": ("done", ""),
        "imdb/finetune-sdpa-s0": ("done", ""),
        "imdb/finetune-sdpa-s1": ("failed", "OutOfMemory: step 7, effective batch 32"),  # the record knows best
        "imdb/finetune-sdpa-s2": ("interrupted", "SIGTERM"),
        "imdb/finetune-sdpa-s3": ("waiting", "again, after: BadNumbers: not finite at step 9"),
        "imdb/finetune-sdpa-s4": ("running", "starting"),
        "imdb/finetune-sdpa-s5": ("failed", "dataset.path=nope.csv (exit code 2)"),
        "mode=bench": ("waiting", ""),
    }
    assert next(run.device for run in groups["multirun/wnf"].runs if run.name.endswith("s4")) == "GPU-3"
    [alone] = standings([sweep / "imdb" / "finetune-sdpa-s1"], tmp_path, NOW)  # a run folder by itself
    assert [run.state for run in alone.runs] == ["failed"]


def test_a_launcher_that_has_ended_is_told(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    write_sweep(
        tmp_path / "multirun" / "x",
        [{"state": "waiting"}, {"state": "running", "folder": "multirun/x/d/r"}],
        pid=child.pid,
    )
    [group] = standings([tmp_path / "multirun"], tmp_path, NOW)
    assert [run.state for run in group.runs] == ["waiting", "silent"] and "launcher has ended" in group.notes[0]
    write_sweep(
        tmp_path / "multirun" / "x", [{"state": "waiting"}], pid=child.pid, host="login01"
    )  # who knows, from here
    assert standings([tmp_path / "multirun"], tmp_path, NOW)[0].notes == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"jobs": 3}', '{"jobs": [{"number": 0}]}', "\x00\xff", "[" * 20_000]
)
def test_a_damaged_sweep_file_is_told_and_its_runs_are_found(tmp_path: Path, text: str) -> None:
    sweep = a_sweep(tmp_path)
    (sweep / "sweep.json").write_text(text, encoding="latin-1")
    [group] = standings([tmp_path / "multirun"], tmp_path, NOW)
    assert "sweep.json cannot be read" in group.notes[0]
    assert sorted(run.state for run in group.runs) == ["done", "failed", "failed", "interrupted"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"run": 1}', '{"schema_version": 99}', "[" * 20_000, '{"status": "running"}']
)
def test_a_damaged_record_is_a_state_with_a_cause(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path / "pretrain" / "a")
    (folder / "record.json").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert status.main([]) == 1
    assert "unreadable  a\n" in capsys.readouterr().out


def test_damaged_events_are_left_out(tmp_path: Path, hold: Any) -> None:
    folder = make_run(tmp_path / "a")
    whole = json.dumps(step(100, 60)) + "\n" + json.dumps(step(200, 20)) + "\n"
    (folder / "events.jsonl").write_bytes(
        b'\xff\xfe\n[1]\n{"event": "step"}\n{"event": "step", "time": "x"}\n' + whole.encode() + b'{"event": "st'
    )
    hold(folder)
    run = read_run(folder, "a", NOW)
    assert (run.state, run.step, run.loss) == ("running", 200, 0.3)


def test_only_the_tail_of_the_events_is_read(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    with open(folder / "events.jsonl", "w") as file:
        for number in range(20_000):
            file.write(json.dumps(step(number, 30_000 - number)) + "\n")
    assert (folder / "events.jsonl").stat().st_size > 4 * standing.TAIL
    events = last_life(folder)
    assert events[-1]["step"] == 19_999 and sum(len(json.dumps(event)) + 1 for event in events) <= standing.TAIL


def test_no_line_is_wider_than_the_terminal(tmp_path: Path, hold: Any) -> None:
    sweep = a_sweep(tmp_path)
    long = make_run(
        sweep / "imdb" / "finetune-performer_hyperbolic-relative-medium-n16384-s0-abcdef-and-more-than-that-still"
    )
    make_events(long, step(100, 60), step(200, 20))
    hold(long)
    groups = standings([tmp_path / "multirun"], tmp_path, NOW)
    for width in (40, 80, 200):
        lines = status.table(groups, width, everything=True)
        assert max(map(len, lines)) <= width
        text = " ".join(" ".join(lines).split())
        for words in ("200/400 (50%)", "OutOfMemory", "interrupted ", "waiting"):
            assert words in text, (width, words)
    assert any(line.startswith("  interrupted imdb") for line in lines)  # the longest state, and its run
    one = [line for line in status.table(groups, 200, everything=True) if "performer_hyperbolic" in line]
    assert "200/400" in one[0]  # a wide terminal has it on one line


def test_what_is_done_and_waits_is_counted_and_listed_on_request(tmp_path: Path) -> None:
    runs = [standing.Standing(name=f"r{number}", state="waiting") for number in range(50)]
    runs += [standing.Standing(name=f"d{number}", state="done", score=0.9) for number in range(7)]
    group = Group(name="multirun/x", runs=runs, launcher="slurm")
    lines = status.table([group], 80)
    assert lines[0] == "multirun/x: 57 jobs: 7 done, 50 waiting." and lines[-1] == "  … and 47 more waiting"
    assert len(lines) == 5
    everything = status.table([group], 80, everything=True)
    assert len(everything) == 58 and everything[-1].endswith("macro-F1 0.9000")


def test_a_sweep_says_what_is_left(tmp_path: Path) -> None:
    done = standing.Standing(name="a", state="done", kind="finetune", lasted=100.0)
    running = standing.Standing(name="b", state="running", kind="finetune", left=30.0)
    waiting = standing.Standing(name="c", state="waiting", kind="finetune")
    assert Group(name="g", runs=[done, running]).left == 30.0
    assert Group(name="g", runs=[done, running, running, waiting, waiting]).left == 130.0  # two at a time
    assert Group(name="g", runs=[running, waiting]).left is None and Group(name="g", runs=[done, waiting]).left is None


@pytest.mark.parametrize(("state", "code"), [("completed", 0), ("interrupted", 0), ("failed", 1), ("running", 1)])
def test_the_exit_code(tmp_path: Path, state: str, code: int) -> None:
    (make_run(tmp_path / "pretrain" / "a", state) / ".lock").touch()  # a running one without a process is stale
    result = subprocess.run(
        [sys.executable, "-m", "xcls.runs.status"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == code and result.stderr == "" and "\x1b" not in result.stdout
    assert result.stdout.startswith("pretrain: 1 run: 1 ")


def test_an_empty_project_and_a_wrong_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status.main([]) == 0 and "Nothing has run yet" in capsys.readouterr().out
    assert status.main(["multirun/nope"]) == 2 and "no such folder: multirun/nope" in capsys.readouterr().err


def test_watch_looks_again_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    make_run(tmp_path / "pretrain" / "a", "failed", cause="of a test")
    watch = subprocess.Popen(
        [sys.executable, "-m", "xcls.runs.status", "--watch", "0.2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    seen = ""
    while "of a test" not in seen:
        seen += watch.stdout.readline()
    make_run(tmp_path / "pretrain" / "a", "completed")
    while "1 done" not in seen:
        seen += watch.stdout.readline()
    watch.send_signal(signal.SIGINT)
    rest, error = watch.communicate(timeout=30)
    assert (watch.returncode, error) == (0, "") and "\x1b" not in seen + rest


def test_nothing_but_the_standard_library_is_imported() -> None:
    code = "import sys; before = set(sys.modules); import xcls.runs.status; print({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    out = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "{'xcls'}"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (99.4, "99 s"), (720, "12 min"), (7_500, "2 h 05 min"), (200_000, "2 d 7 h")]
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_a_thousand_runs_open_no_more_files_than_they_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1000):
        make_run(tmp_path / "multirun" / "x" / "d" / f"r{number}", "completed")
    opened: list[Path] = []
    monkeypatch.setattr(standing, "last_life", lambda folder: opened.append(folder) or [])
    [group] = standings([tmp_path / "multirun"], tmp_path, time.time())
    assert group.count("done") == 1000 and opened == []  # events belong to what runs alone

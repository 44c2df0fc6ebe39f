"""`make status`: every state from folders alone, damaged files, narrow terminals, exit codes."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from tests.conftest import ROOT
from xcls.runs import run_status, status
from xcls.runs.record import Record, write_record
from xcls.runs.run_status import RunStatus, duration, last_events, read_run
from xcls.runs.status import SweepStatus, read_all

NOW = 1_800_000_000.0


def make_run(folder: Path, run_status: str = "running", **changes: Any) -> Path:
    """A run's folder with a record as the program writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"mode": "finetune", "status": run_status, "hash": "ab" * 32, "seed": 0, "seq_len": 512, "steps": 400}
    settings |= {"step": 100, "started": NOW - 500, "device": {"kind": "cpu"}, **changes}
    write_record(Record(run=folder.name, **settings), folder)
    os.utime(folder / "record.json", (NOW - 800, NOW - 800))
    return folder


def make_events(folder: Path, *events: dict[str, Any], host: str | None = None, age: float = 0.0) -> None:
    """events.jsonl with a start, these, and its age in seconds."""
    lines = [{"event": "start", "time": NOW - 850, "host": host or socket.gethostname()}, *events]
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(folder / "events.jsonl", (NOW - age, NOW - age))


def step(number: int, ago: float) -> dict[str, Any]:
    return {"event": "step", "time": NOW - ago, "step": number, "step_loss": 0.5 - number / 1000}


@pytest.fixture
def hold() -> Iterator[Callable[[Path], None]]:
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
    job = {"overrides": ["seed=0"], "folder": "", "kind": "finetune", "device": None, "state": "waiting", "cause": None}
    content = {"started": NOW - 1000, "launcher": "gpu_server", "pid": os.getpid(), "host": socket.gethostname()}
    folder.mkdir(parents=True, exist_ok=True)
    content |= {"jobs": [{**job, "number": number, **entry} for number, entry in enumerate(jobs)], **changes}
    (folder / "sweep.json").write_text(json.dumps(content))


def test_a_running_run_shows_step_loss_speed_and_what_is_left(tmp_path: Path, hold: Any) -> None:
    folder = make_run(tmp_path / "finetune" / "a", costs={"tokens_per_s": 900.0})
    before = [step(10, 10_000), step(20, 9_000), {"event": "start", "time": NOW - 70}]  # another life, much slower
    evaluation = {"event": "eval", "time": NOW - 30, "step": 150, "tokens_per_s": 1234.0, "macro_f1": 0.71234}
    make_events(folder, *before, step(100, 60), evaluation, step(200, 20))
    hold(folder)
    [sweep] = read_all([tmp_path / "finetune"], tmp_path, NOW)
    [run] = sweep.runs
    assert (sweep.name, run.name, run.state, run.step, run.steps) == ("finetune", "a", "running", 200, 400)
    assert (run.loss, run.tokens_per_s, run.device) == (0.3, 1234.0, "cpu")
    assert run.left == pytest.approx(0.4 * 200)  # 100 steps took 40 s, evaluation included
    text = "\n".join(status.table([sweep], 160))
    for shown in ("200/400 (50%)", "0.3000", "0.7123", "1,234 tokens/s", "80 s left", "cpu"):
        assert shown in text


@pytest.mark.parametrize(
    ("lock", "host", "age", "state", "silent"),
    [
        ("free", None, 20, "stale", False),
        ("free", "gpu07", 20, "running", False),  # on another machine the lock tells nothing
        ("free", "gpu07", 740, "silent", True),
        ("none", None, 740, "silent", True),
        ("held", None, 740, "running", True),  # perhaps in a long evaluation
    ],
)
def test_a_run_without_a_process_or_without_a_sign(
    tmp_path: Path, hold: Any, lock: str, host: str | None, age: float, state: str, silent: bool
) -> None:
    folder = make_run(tmp_path / "a")
    make_events(folder, step(100, age + 40), step(200, age), host=host, age=age)
    if lock != "none":
        (folder / ".lock").touch()
    if lock == "held":
        hold(folder)
    run = read_run(folder, "a", NOW)
    assert (run.state, "silent" in run.note) == (state, silent)
    assert run.device == ("gpu07:cpu" if host else "cpu")


def test_a_slow_run_may_be_silent_for_longer(tmp_path: Path, hold: Any) -> None:
    folder = make_run(tmp_path / "a")
    os.utime(folder / "record.json", (NOW - 2_000, NOW - 2_000))
    make_events(folder, {"event": "start", "time": NOW - 10_000}, step(1, 6_000), step(2, 2_000), age=2_000)
    hold(folder)
    assert read_run(folder, "a", NOW).note == ""


def test_a_record_that_ends_between_two_looks_is_not_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "a")
    done = {"metrics": {"validation": {"macro_f1": 0.8}}}
    monkeypatch.setattr(run_status, "is_held", lambda place: bool(make_run(place, "completed", **done)) and False)
    assert (read_run(folder, "a", NOW).state, read_run(folder, "a", NOW).score) == ("done", 0.8)


def a_sweep(root: Path) -> Path:
    """Every state that a job of a sweep can be in."""
    sweep = root / "multirun" / "wnf"
    run = sweep / "imdb" / "finetune-sdpa-s"
    make_run(run.with_name(f"{run.name}0"), "completed", ended=NOW, metrics={"validation": {"macro_f1": 0.88}})
    make_run(run.with_name(f"{run.name}1"), "failed", cause="OutOfMemory: step 7, effective batch 32")
    make_run(run.with_name(f"{run.name}2"), "interrupted", cause="SIGTERM")
    make_run(run.with_name(f"{run.name}3"), "failed", cause="BadNumbers: not finite at step 9")
    make_run(root / "pretrain" / "p", "completed", mode="pretrain", ended=NOW - 400)
    jobs = [{"folder": "pretrain/p", "kind": "pretrain", "state": "skipped"}]
    states = ("done", "failed", "failed", "waiting", "running", "failed")
    jobs += [{"folder": f"multirun/wnf/imdb/finetune-sdpa-s{n}", "state": state} for n, state in enumerate(states)]
    jobs[5]["device"], jobs[6]["cause"] = "GPU-3", "dataset.path=nope.csv (exit code 2)"
    write_sweep(sweep, [*jobs, {"kind": "bench", "overrides": ["mode=bench"]}])
    return sweep


def test_a_sweep_joins_its_jobs_with_their_records(tmp_path: Path) -> None:
    sweep = a_sweep(tmp_path)
    make_run(tmp_path / "pretrain" / "alone", "completed")
    found = {one.name: one for one in read_all([tmp_path / "multirun", tmp_path / "pretrain"], tmp_path, NOW)}
    assert list(found) == ["multirun/wnf", "pretrain"]
    assert [run.name for run in found["pretrain"].runs] == ["alone"]  # the other one is a job of the sweep
    assert {run.name: (run.state, run.note) for run in found["multirun/wnf"].runs} == {
        "pretrain/p": ("done", ""),
        "imdb/finetune-sdpa-s0": ("done", ""),
        "imdb/finetune-sdpa-s1": ("failed", "OutOfMemory: step 7, effective batch 32"),  # the record knows best
        "imdb/finetune-sdpa-s2": ("interrupted", "SIGTERM"),
        "imdb/finetune-sdpa-s3": ("waiting", "again, after: BadNumbers: not finite at step 9"),
        "imdb/finetune-sdpa-s4": ("running", "starting"),
        "imdb/finetune-sdpa-s5": ("failed", "dataset.path=nope.csv (exit code 2)"),
        "mode=bench": ("waiting", ""),
    }
    assert [run.device for run in found["multirun/wnf"].runs if run.name.endswith("s4")] == ["GPU-3"]
    [alone] = read_all([sweep / "imdb" / "finetune-sdpa-s1"], tmp_path, NOW)  # a run folder by itself
    assert [run.state for run in alone.runs] == ["failed"]


def test_a_launcher_that_has_ended_is_told(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    jobs = [{"state": "waiting"}, {"state": "running", "folder": "multirun/x/d/r"}]
    write_sweep(tmp_path / "multirun" / "x", jobs, pid=child.pid)
    [sweep] = read_all([tmp_path / "multirun"], tmp_path, NOW)
    assert [run.state for run in sweep.runs] == ["waiting", "silent"] and "launcher has ended" in sweep.note
    write_sweep(tmp_path / "multirun" / "x", jobs[:1], pid=child.pid, host="login01")  # unknown from here
    assert read_all([tmp_path / "multirun"], tmp_path, NOW)[0].note == ""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"jobs": [{"number": 0}]}', "\x00\xff", "[" * 20_000])
def test_damaged_files_are_states_and_notes(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = a_sweep(tmp_path)
    (sweep / "sweep.json").write_text(text, encoding="latin-1")
    (sweep / "imdb" / "finetune-sdpa-s2" / "record.json").write_text(text, encoding="latin-1")
    [found] = read_all([tmp_path / "multirun"], tmp_path, NOW)
    assert "sweep.json" in found.note
    assert sorted(run.state for run in found.runs) == ["done", "failed", "failed", "unreadable"]
    monkeypatch.chdir(tmp_path)
    assert status.main(["multirun/wnf/imdb/finetune-sdpa-s2"]) == 1


def test_only_whole_events_of_the_tail_are_read(tmp_path: Path, hold: Any) -> None:
    folder = make_run(tmp_path / "a", steps=30_000)
    with open(folder / "events.jsonl", "wb") as file:
        for number in range(20_000):
            file.write(json.dumps(step(number, 30_000 - number)).encode() + b"\n")
        file.write(b'\xff\xfe\n[1]\n{"event": "step"}\n{"event": "step", "time": "x"}\n{"event": "st')
    hold(folder)
    events = last_events(folder)
    assert sum(len(json.dumps(event)) + 1 for event in events) <= run_status.TAIL < 1_000_000
    assert read_run(folder, "a", NOW - 10_000).step == events[-1]["step"] == 19_999


def test_no_line_is_wider_than_the_terminal(tmp_path: Path, hold: Any) -> None:
    sweep = a_sweep(tmp_path)
    name = "finetune-performer_hyperbolic-relative-medium-n16384-s0-abcdef-and-more-than-that-still"
    long = make_run(sweep / "imdb" / name)
    make_events(long, step(100, 60), step(200, 20))
    hold(long)
    found = read_all([tmp_path / "multirun"], tmp_path, NOW)
    found += read_all([long], tmp_path, NOW)
    for width in (40, 80, 200):
        lines = status.table(found, width, everything=True)
        assert max(map(len, lines)) <= width
        text = " ".join(" ".join(lines).split())
        assert not [word for word in ("200/400 (50%)", "OutOfMemory", "interrupted ", "waiting") if word not in text]
    assert any(name in line and "200/400" in line for line in lines)  # a wide terminal has it on one line


def test_what_is_done_and_waits_is_counted_and_listed_on_request() -> None:
    runs = [RunStatus(name=f"r{number}", state="waiting") for number in range(50)]
    runs += [RunStatus(name=f"d{number}", state="done", score=0.9) for number in range(7)]
    sweep = SweepStatus(name="multirun/x", runs=runs, launcher="slurm")
    lines = status.table([sweep], 80)
    assert len(lines) == 5 and "57 jobs: 7 done, 50 waiting" in lines[0] and "47 more waiting" in lines[-1]
    everything = status.table([sweep], 80, everything=True)
    assert len(everything) == 58 and everything[-1].endswith("macro-F1 0.9000")


def test_a_sweep_says_what_is_left() -> None:
    done = RunStatus(name="a", state="done", kind="finetune", lasted=100.0)
    running = RunStatus(name="b", state="running", kind="finetune", left=30.0)
    waiting = RunStatus(name="c", state="waiting", kind="finetune")
    left = [[done, running], [done, running, running, waiting, waiting], [running, waiting], [done, waiting]]
    assert [SweepStatus(name="s", runs=runs).left for runs in left] == [30.0, 130.0, None, None]  # two at a time


def test_exit_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert status.main([]) == 0 and "Nothing has run yet" in capsys.readouterr().out
    assert status.main(["multirun/nope"]) == 2 and "multirun/nope" in capsys.readouterr().err
    codes = {}
    for state in ("completed", "interrupted", "failed", "running"):
        (make_run(tmp_path / "pretrain" / "a", state) / ".lock").touch()  # a running one without a process is stale
        codes[state] = status.main(["pretrain"])
    assert codes == {"completed": 0, "interrupted": 0, "failed": 1, "running": 1}


def test_watch_looks_again_ends_with_ctrl_c_and_imports_the_standard_library_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "pretrain" / "a", "failed", cause="of a test")
    watch = subprocess.Popen(
        [sys.executable, "-S", "-m", "xcls.runs.status", "--watch", "0.2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watch.stdout is not None
    seen = ""
    while "of a test" not in seen:
        seen += watch.stdout.readline()
    make_run(tmp_path / "pretrain" / "a", "completed")
    while "1 done" not in seen:
        seen += watch.stdout.readline()
    watch.send_signal(signal.SIGINT)
    rest, error = watch.communicate(timeout=30)
    assert (watch.returncode, error) == (0, "") and "\x1b" not in seen + rest


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (99.4, "99 s"), (720, "12 min"), (7_500, "2 h 05 min"), (200_000, "2 d 7 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text

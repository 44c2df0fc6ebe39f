"""How the jobs of a sweep stand: what records, exit codes and output make of them, and what the sweep shows."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from hydra_plugins.xcls_launcher._progress import Screen, newest, numbers
from hydra_plugins.xcls_launcher.sweep import Job, Sweep, order
from xcls.runs.record import Events, Record, read_record, write_record
from xcls.runs.spec import JobSpec


def blank(status: str = "running", cause: str | None = None) -> Record:
    return Record(
        run="data/r", mode="finetune", status=status, hash="h", seed=0, seq_len=8, cause=cause, step=2, steps=10
    )


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    job = Job(
        number=0,
        overrides=["seed=0"],
        folder="multirun/x/data/r",
        kind="finetune",
        needs=[],
        hash="h",
        outline=JobSpec("finetune", record=blank()),
    )
    sweep = Sweep(name="x", root=tmp_path, launcher="gpu_server", jobs=[job])
    sweep.log(job).parent.mkdir(parents=True)
    return sweep


@pytest.mark.parametrize(
    ("code", "left", "state", "status", "cause"),
    [
        (0, "completed", "done", "completed", None),
        (None, "completed", "done", "completed", None),
        (None, "running", "failed", "interrupted", "it ended without a result"),
        (1, "failed", "failed", "failed", "told so"),
        (130, "interrupted", "failed", "interrupted", "told so"),
        (
            137,
            "running",
            "failed",
            "interrupted",
            "killed by SIGKILL (out of memory?); the same command goes on from its last checkpoint",
        ),
        (139, "running", "failed", "failed", "killed by SIGSEGV; the same command goes on from its last checkpoint"),
        (2, None, "failed", "failed", "dataset.text=body: no such column. (exit code 2)"),
        (0, "running", "failed", "failed", "dataset.text=body: no such column. (exit code 0)"),
    ],
)
def test_how_a_job_ended(
    sweep: Sweep, code: int | None, left: str | None, state: str, status: str, cause: str | None
) -> None:
    job = sweep.jobs[0]
    folder = sweep.root / job.folder
    folder.mkdir(parents=True)
    sweep.start(job, "a")
    sweep.log(job).write_text("submitit INFO starts\nrun.py: dataset.text=body: no such\n  column.\nsubmitit ERROR\n")
    if left is not None:
        write_record(blank(left, "told so" if left in ("failed", "interrupted") else None), folder)
    sweep.end(job, code)
    assert (job.state, job.cause) == (state, cause)
    assert (read_record(folder).status, read_record(folder).cause) == (status, cause)
    assert sweep.exit_code == (state != "done")
    entry = json.loads((sweep.folder / "sweep.json").read_text())["jobs"][0]
    assert entry == {
        "number": 0,
        "overrides": ["seed=0"],
        "folder": "multirun/x/data/r",
        "kind": "finetune",
        "needs": [],
        "device": "a",
        "state": state,
        "cause": cause,
        "exit_code": code,
    }


@pytest.mark.parametrize(
    ("code", "left", "counts"),
    [
        (130, "interrupted", {"stopped": 1}),
        (None, "interrupted", {"stopped": 1}),
        (1, "failed", {"failed": 1}),
        (137, "running", {"failed": 1}),
    ],
)
def test_a_stopped_job_is_no_failure(
    sweep: Sweep, capsys: pytest.CaptureFixture[str], code: int | None, left: str, counts: dict[str, int]
) -> None:
    job = sweep.jobs[0]
    folder = sweep.root / job.folder
    folder.mkdir(parents=True)
    sweep.start(job, "a")
    write_record(blank(left, None if left == "running" else "stopped by SIGINT"), folder)
    sweep.end(job, code)
    screen = Screen(sweep)
    screen.ended(job)
    screen.end(2)
    said = capsys.readouterr().err
    stopped = left == "interrupted"
    assert sweep.counts() == counts and sweep.exit_code == 1
    assert ("stopped r: by SIGINT 2/10\n" in said, "FAILED r: " in said) == (stopped, not stopped)
    assert f"sweep x: 1 {'stopped' if stopped else 'failed'}, " in said
    assert (
        json.loads((sweep.folder / "sweep.json").read_text())["jobs"][0]["state"] == "failed"
    )  # as make status reads it


def test_what_a_sweep_says_works_where_it_was_started(
    sweep: Sweep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sweep.root = tmp_path / "Bob's xcls"
    sweep.jobs[0].state = "done"
    elsewhere = f"cd {shlex.quote(str(sweep.root))} && "
    for place, prefix, file in (
        (sweep.root, "", "multirun/x/sweep.json"),
        (tmp_path / "work", elsewhere, str(sweep.folder / "sweep.json")),
    ):
        place.mkdir()
        monkeypatch.chdir(place)
        Screen(sweep).begin()
        Screen(sweep).end(0)
        said = capsys.readouterr().err
        assert f" {file}\n" in said and f": {prefix}python report.py 'runs=[multirun/x]'\n" in said


def test_a_record_of_an_earlier_time_is_no_cause(sweep: Sweep) -> None:
    job = sweep.jobs[0]
    folder = sweep.root / job.folder
    folder.mkdir(parents=True)
    write_record(blank("failed", "an old story"), folder)
    os.utime(folder / "record.json", (1, 1))
    sweep.start(job)
    sweep.log(job).write_text("run.py: the disk is full\n")
    sweep.end(job, 2)
    assert job.cause == "the disk is full (exit code 2)"


def test_somebody_elses_record_is_left_alone(sweep: Sweep) -> None:
    folder = sweep.root / sweep.jobs[0].folder
    folder.mkdir(parents=True)
    other = blank()
    other.hash = "another"
    write_record(other, folder)
    sweep.start(sweep.jobs[0])
    sweep.end(sweep.jobs[0], 137)
    assert sweep.jobs[0].state == "failed" and read_record(folder).status == "running"


def test_needs_come_first_and_settle(sweep: Sweep) -> None:
    kinds = [("baseline", []), ("pretrain", []), ("finetune", [0, 1]), ("finetune", [0]), ("pretrain", [])]
    sweep.jobs = [
        Job(number=n, overrides=[str(n)], folder="", kind=kind, needs=needs) for n, (kind, needs) in enumerate(kinds)
    ]
    order(sweep)
    assert [job.overrides[0] for job in sweep.jobs] == [
        "1",
        "0",
        "2",
        "3",
        "4",
    ]  # the last pretraining is needed by nobody
    assert [job.needs for job in sweep.jobs] == [[], [], [1, 0], [1], []]
    assert [job.number for job in sweep.ready()] == [0, 1, 4]
    sweep.jobs[1].state = "failed"  # a baseline that failed stops nobody
    assert [job.number for job in sweep.ready()] == [0, 3, 4] and sweep.blocked() == []
    sweep.jobs[0].state, sweep.jobs[0].cause = "failed", "no memory"
    assert [job.number for job in sweep.blocked()] == [2] and "no memory" in sweep.jobs[2].cause
    assert sweep.counts() == {"failed": 3, "waiting": 2} and sweep.exit_code == 1


GRID = [f"attention={a} seq_len={n} seed={s}" for a in ("sdpa", "performer") for n in (512, 64) for s in (2, 0)]


@pytest.mark.parametrize(
    "typed", [GRID, sorted(GRID, key=lambda words: words.split()[1:]), [" ".join(w.split()[::-1]) for w in GRID]]
)
def test_the_mechanisms_of_a_seed_take_turns(sweep: Sweep, typed: list[str]) -> None:
    needs = {number: [8] for number in range(0, 8, 2)}
    sweep.jobs = [
        Job(number=n, overrides=words.split(), folder="", kind="finetune", needs=needs.get(n, []))
        for n, words in enumerate(typed)
    ]
    sweep.jobs.append(Job(number=8, overrides=["mode=baseline"], folder="", kind="baseline", needs=[]))
    before = {" ".join(sorted(job.overrides)): len(job.needs) for job in sweep.jobs}
    order(sweep)
    ordered = [dict(word.split("=") for word in job.overrides) for job in sweep.jobs]
    assert ordered[0] == {"mode": "baseline"}
    cells = [(cell["seed"], cell["seq_len"]) for cell in ordered[1:]]
    assert cells[::2] == cells[1::2] and len(set(cells)) == 4, "the two mechanisms of a cell are neighbours"
    assert [seed for seed, _ in cells] == [cells[0][0]] * 4 + [cells[-1][0]] * 4, "a seed is done before the next one"
    assert {" ".join(sorted(job.overrides)): len(job.needs) for job in sweep.jobs} == before
    assert all(job.needs in ([], [0]) and job.number == place for place, job in enumerate(sweep.jobs))


def test_what_a_running_job_shows(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    job = sweep.jobs[0]
    folder = sweep.root / job.folder
    assert newest(folder) == {} and numbers(folder) == ""
    folder.mkdir(parents=True)
    write_record(blank(), folder)
    events = Events(folder)
    events.add("step", {"step": 3, "step_loss": 0.5})
    events.add("eval", {"step": 4, "macro_f1": 0.71234, "val_loss": 0.6})
    events.add("step", {"step": 5, "step_loss": 0.25})
    with open(folder / "events.jsonl", "a") as file:
        file.write('{"event": "step", "st')  # half written
    assert numbers(folder) == "5/10 loss 0.25 macro_f1 0.712"
    sweep.start(job, "GPU-1")
    screen = Screen(sweep)
    screen.quiet, screen.every = False, 0.0
    screen.tick()
    assert capsys.readouterr().err == "1 running | GPU-1: r 5/10 loss 0.25 macro_f1 0.712\n"
    screen.quiet = True
    screen.tick()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("state", ["done", "failed"])
def test_a_long_sweep_has_few_lines(sweep: Sweep, capsys: pytest.CaptureFixture[str], state: str) -> None:
    sweep.jobs = [Job(number=n, overrides=[str(n)], folder="", kind="finetune", needs=[]) for n in range(1000)]
    screen = Screen(sweep)
    screen.begin()
    for job in sweep.jobs:
        job.state, job.cause = state, "no memory"
        screen.ended(job)
    screen.end(0)
    said = capsys.readouterr().err.splitlines()
    assert len(said) < 50 and (state == "failed" or "[1000/1000]" in said[-3])
    assert (sum(line.startswith("done ") for line in said), sum(line.startswith("FAILED ") for line in said)) == {
        "done": (20, 0),
        "failed": (0, 20),
    }[state]

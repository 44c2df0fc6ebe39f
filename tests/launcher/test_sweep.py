"""Jobs of a sweep: what records, exit codes and output make of their states, their order, and what a sweep prints."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from hydra_plugins.xcls_launcher._job import Job
from hydra_plugins.xcls_launcher._progress import Progress
from hydra_plugins.xcls_launcher._sweep import Sweep, in_order
from tests.launcher.conftest import blank
from xcls.runs.record import read_record, write_record
from xcls.runs.spec import JobSpec


def job(*overrides: str, kind: str = "finetune", folder: str = "", needs: tuple[Job, ...] = ()) -> Job:
    spec = JobSpec(kind, hash="h" if folder else None, record=blank() if folder else None)
    return Job(overrides=list(overrides), folder=folder, spec=spec, needs=list(needs))


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """A sweep of one job, whose folder is there."""
    sweep = Sweep(name="x", root=tmp_path, launcher="gpu_server", jobs=[job("seed=0", folder="multirun/x/data/r")])
    sweep.log(sweep.jobs[0]).parent.mkdir(parents=True)
    (tmp_path / sweep.jobs[0].folder).mkdir(parents=True)
    return sweep


@pytest.mark.parametrize(
    ("code", "left", "state", "status", "cause"),
    [
        (0, "completed", "done", "completed", None),
        (None, "completed", "done", "completed", None),
        (None, "running", "failed", "interrupted", "without a result"),
        (1, "failed", "failed", "failed", "its own words"),
        (130, "interrupted", "stopped", "interrupted", "its own words"),
        (137, "running", "failed", "interrupted", "SIGKILL"),
        (139, "running", "failed", "failed", "SIGSEGV"),
        (2, None, "failed", "failed", "dataset.text=body: no such column. (exit code 2)"),
        (0, "running", "failed", "failed", "exit code 0"),
        (
            2,
            "failed before",
            "failed",
            "failed",
            "exit code 2",
        ),  # a record of an earlier time tells nothing of this one
    ],
)
def test_how_a_job_ended(
    sweep: Sweep,
    capsys: pytest.CaptureFixture[str],
    code: int | None,
    left: str | None,
    state: str,
    status: str,
    cause: str | None,
) -> None:
    [only], folder = sweep.jobs, sweep.root / sweep.jobs[0].folder
    sweep.start(only, "a")
    sweep.log(only).write_text("it starts\nrun.py: dataset.text=body: no such\n  column.\n")
    if left is not None:
        ended = None if left == "running" else 1.0 if "before" in left else only.began
        words = "its own words" if left in ("failed", "interrupted") else None
        write_record(blank(status=left.split()[0], cause=words, ended=ended), folder)
    sweep.end(only, code)
    assert ("stopped" if only.stopped else only.state) == state and sweep.exit_code == (state != "done")
    assert (only.cause is None) if cause is None else (cause in str(only.cause))
    assert read_record(folder).status == status
    [entry] = json.loads((sweep.folder / "sweep.json").read_text())["jobs"]
    assert (entry["state"], entry["cause"]) == ("done" if state == "done" else "failed", only.cause)
    assert (entry["overrides"], entry["device"], entry["exit_code"]) == (["seed=0"], "a", code)
    progress = Progress(sweep)
    progress.ended(only)
    progress.end(0)
    said = capsys.readouterr().err
    assert (state if state != "failed" else "FAILED") in said and f"1 {state}" in said and str(only.cause or "") in said
    assert ("2/10" in said) == (state != "failed")


def test_needs_come_first_and_settle(sweep: Sweep) -> None:
    base, need, alone = job(kind="baseline"), job(kind="pretrain"), job("alone", kind="pretrain")
    both, late = job("both", needs=(base, need)), job("late", needs=(base,))
    sweep.jobs = in_order([base, alone, both, need, late])
    assert sweep.jobs == [need, base, alone, both, late] and [one.number for one in sweep.jobs] == list(range(5))
    assert sweep.jobs[3].entry["needs"] == [1, 0]
    assert sweep.ready() == [need, base, alone]
    base.state = "failed"  # stops no run: only the report misses it
    assert sweep.ready() == [need, alone, late] and sweep.fail_blocked() == []
    need.state, need.cause = "failed", "no memory"
    assert sweep.fail_blocked() == [both] and "no memory" in str(both.cause)
    assert Progress(sweep).counts() == "3 failed, 2 waiting" and sweep.exit_code == 1


GRID = [f"attention={a} seq_len={n} seed={s}" for a in ("sdpa", "performer") for n in (512, 64) for s in (2, 0)]


@pytest.mark.parametrize("typed", [GRID, sorted(GRID, key=lambda words: words.split()[1:])])
def test_the_mechanisms_of_a_seed_take_turns(typed: list[str]) -> None:
    baseline = job("mode=baseline", kind="baseline")
    jobs = [job(*words.split(), needs=(baseline,)) for words in typed]
    first, *ordered = in_order([*jobs, baseline])
    assert first is baseline and {" ".join(one.overrides) for one in ordered} == set(typed)
    cells = [tuple(one.overrides[1:]) for one in ordered]
    assert cells[::2] == cells[1::2] and len(set(cells)) == 4, "the two mechanisms of a cell are neighbours"
    assert [seed for _, seed in cells] == [cells[0][1]] * 4 + [cells[-1][1]] * 4, "a seed is done before the next one"


def test_what_a_sweep_says_works_where_it_was_started(
    sweep: Sweep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sweep.root = tmp_path / "Bob's xcls"
    sweep.jobs[0].state = "done"
    for place, file in ((sweep.root, "multirun/x/sweep.json"), (tmp_path / "work", str(sweep.folder / "sweep.json"))):
        place.mkdir()
        monkeypatch.chdir(place)
        Progress(sweep).begin()
        Progress(sweep).end(0)
        said = capsys.readouterr().err
        assert f" {file}\n" in said and "python report.py 'runs=[multirun/x]'\n" in said
        assert (f"cd {shlex.quote(str(sweep.root))} && " in said) == (os.getcwd() != str(sweep.root))

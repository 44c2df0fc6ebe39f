"""Finding records: what is there, each once; what cannot be read is listed and changes nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xcls.config.schema import UserError
from xcls.report.load import KILLED, collect, final_status
from xcls.runs.run_status import is_held


def test_a_run_folder_a_sweep_and_both_give_each_run_once(make, tmp_path):
    sweep = make.save(make.seeds("sdpa"), tmp_path)
    one = sweep / "demo" / "finetune-sdpa-rope-tiny-n512-s1"
    assert [run.record.seed for run in collect([one], tmp_path).runs] == [1]
    found = collect([one, sweep, "multirun", one / "record.json"], tmp_path)
    assert [run.record.seed for run in found.runs] == [0, 1, 2]
    assert found.runs[0].place == "multirun/demo/demo/finetune-sdpa-rope-tiny-n512-s0"


@pytest.mark.parametrize(
    "text", ["{", "[]", "\x00\xff", '{"schema_version": 99}', '{"run": "x"}', "[" * 100_000, '{"seed": ' + "9" * 5000]
)
def test_unreadable_records_are_listed(make, tmp_path, text):
    sweep = make.save(make.seeds("sdpa"), tmp_path)
    (sweep / "bad").mkdir()
    (sweep / "bad" / "record.json").write_text(text, encoding="latin-1")
    found = collect([sweep], tmp_path)
    assert len(found.runs) == 3 and [place for place, _ in found.unreadable] == ["multirun/demo/bad"]


@pytest.mark.parametrize(
    ("change", "sealed"),
    [
        ({"metrics": {"test": 3}}, False),
        ({"seed": "0"}, False),
        ({"pretrain": "base"}, False),
        ({"choices": {"dataset": {}}}, False),
        ({"study": "half a pair: \ud800"}, False),
        ({"macro_f1": 0.99}, True),  # edited by hand
        ({}, False),  # of an older version: no seal
    ],
    ids=str,
)
def test_records_that_no_run_wrote_are_listed(make, tmp_path, change, sealed):
    sweep = make.save([make.finetune()], tmp_path)
    (path,) = sweep.rglob("record.json")
    content = {**json.loads(path.read_text()), **change}
    if not sealed:
        del content["seal"]
    path.write_text(json.dumps(content))
    found = collect([sweep], tmp_path)
    assert (len(found.runs), len(found.unreadable)) == ((0, 1) if change else (1, 0))


def test_a_changed_file_that_the_record_vouches_for_is_listed_and_a_lost_one_is_noted(make, tmp_path):
    sweep = make.save([*make.seeds("sdpa"), make.finetune(seed=3, status="running")], tmp_path)
    first, second, _, running = (path.parent for path in sorted(sweep.rglob("record.json")))
    for folder in (first, running):  # a run that is still writing is not called changed
        (folder / "metrics.csv").write_text("step\n1\n", encoding="utf-8")
    (second / "metrics.csv").unlink()
    found = collect([sweep], tmp_path)
    assert [run.record.seed for run in found.runs] == [1, 2, 3]
    assert "metrics.csv" in found.unreadable[0][1] and second.name in found.notes[0]


def test_links_and_what_is_no_file_do_not_hang_the_report(make, tmp_path):
    elsewhere = make.save(make.seeds("sdpa"), tmp_path / "disk")
    sweeps = tmp_path / "multirun"
    for name in ("pipe", "folder"):
        (sweeps / name).mkdir(parents=True)
    for name, target in {"linked": elsewhere, "again": elsewhere, "round": sweeps, "self": sweeps / "self"}.items():
        (sweeps / name).symlink_to(target)
    os.mkfifo(sweeps / "pipe" / "record.json")
    (sweeps / "folder" / "record.json").mkdir()
    found = collect(["multirun"], tmp_path)
    assert [run.record.seed for run in found.runs] == [0, 1, 2]
    assert [Path(place).name for place, _ in found.unreadable] == ["folder", "pipe"]


def test_a_folder_that_is_not_there_is_refused_unless_it_is_a_usual_one(tmp_path):
    assert collect(["multirun", "pretrain", "finetune"], tmp_path).runs == []
    with pytest.raises(UserError, match="multirun/typo"):
        collect(["multirun/typo"], tmp_path)


def test_the_completed_baseline_of_the_same_rows_is_found_elsewhere(make, tmp_path):
    sweep = make.save(make.seeds("sdpa"), tmp_path)
    other = make.baseline(0.7, run="demo/tfidf_logreg-s0-x", data={"fingerprint": "o", "train_rows_hash": "rows"})
    failed = make.baseline(run="demo/tfidf_logreg-s0-y", status="failed", cause="no memory")
    make.save([make.baseline(), other, failed], tmp_path, sweep="baselines")
    found = collect([sweep], tmp_path)
    own = "multirun/baselines/demo/tfidf_logreg-s0-abcdef"
    assert [run.place for run in found.runs if run.record.mode == "baseline"] == [own] and own in found.notes[0]
    shutil.copytree(tmp_path / "multirun" / "baselines" / "demo", sweep / "demo", dirs_exist_ok=True)
    again = collect([sweep], tmp_path)
    assert again.notes == [] and sum(run.record.mode == "baseline" for run in again.runs) == 3  # its own is enough


HOLD = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"


def test_a_run_that_no_process_holds_was_killed(make, tmp_path):
    made = [make.finetune(seed=seed, status="running", step=12, steps=40, metrics={}) for seed in range(3)]
    folder = make.save(made, tmp_path)
    locks = [folder / record.run / ".lock" for record in made[:2]]
    for lock in locks:
        lock.touch()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(locks[1])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        told = {run.record.seed: final_status(run) for run in collect([folder], tmp_path).runs}
        assert [is_held(folder / record.run) for record in made] == [False, True, None]
        process.communicate("\n")
    assert told[0][0] == KILLED and "step 12 of 40" in told[0][1]
    assert told[1] == told[2] == ("running", "")  # alive; and one whose lock did not come along


def fake_api(files: dict[str, bytes]) -> Any:
    """W&B's public API with one run that has these files."""

    def download(name: str) -> Any:
        def into(root: str, replace: bool) -> None:
            Path(root).mkdir(parents=True, exist_ok=True)
            (Path(root) / name).write_bytes(files[name])

        return into

    def run(path: str) -> Any:
        if path != "lab/demo/abc":
            raise ValueError(f"could not find run {path}")
        return SimpleNamespace(files=lambda: [SimpleNamespace(name=name, download=download(name)) for name in files])

    return lambda timeout: SimpleNamespace(run=run)


def test_a_run_is_read_from_wandb_by_its_address(make, tmp_path, monkeypatch):
    sweep = make.save([make.finetune()], tmp_path)
    (folder,) = [path.parent for path in sweep.rglob("record.json")]
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("wandb.Api", fake_api({**files, "output.log": b""}))
    (run,) = collect(["wandb:lab/demo/runs/abc"], tmp_path).runs
    assert run.record == collect([sweep], tmp_path).runs[0].record and (run.folder / "metrics.csv").is_file()
    assert len(collect(["multirun"], tmp_path).runs) == 1  # what was downloaded is not found twice
    for address in ("wandb:lab/demo", "wandb:lab/demo/other"):
        with pytest.raises(UserError, match=address):
            collect([address], tmp_path)
    monkeypatch.setattr("wandb.Api", fake_api({"output.log": b""}))
    with pytest.raises(UserError, match="record.json"):
        collect(["wandb:lab/demo/abc"], tmp_path)

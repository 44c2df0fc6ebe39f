"""Finding records: what is there, each once; what cannot be read is listed and spoils nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from xcls.config.schema import UserError
from xcls.report.load import collect
from xcls.runs.record import read_record, write_record


def test_a_run_folder_a_sweep_and_both_give_each_run_once(make, tmp_path):
    sweep = make.save(make.seeds("sdpa"), tmp_path)
    one = sweep / "demo" / "finetune-sdpa-rope-tiny-n512-s1"
    assert [run.record.seed for run in collect([one], tmp_path).runs] == [1]
    assert [run.record.seed for run in collect([one, sweep, "multirun", one / "record.json"], tmp_path).runs] == [
        0,
        1,
        2,
    ]
    assert collect(["multirun"], tmp_path).runs[0].place == "multirun/demo/demo/finetune-sdpa-rope-tiny-n512-s0"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Expecting"),
        ("[]", "not a JSON object"),
        ("\x00\xff", "record.json"),
        ('{"schema_version": 99}', "newer"),
        ('{"run": "x"}', "missing"),
        ("[" * 100_000, "record.json"),
        ('{"schema_version": ' + "9" * 5000 + "}", "record.json"),
    ],
)
def test_unreadable_records_are_listed(make, tmp_path, text, said):
    sweep = make.save(make.seeds("sdpa"), tmp_path)
    (sweep / "bad").mkdir()
    (sweep / "bad" / "record.json").write_text(text, encoding="latin-1")
    found = collect([sweep], tmp_path)
    assert len(found.runs) == 3 and [item.place for item in found.unreadable] == ["multirun/demo/bad"]
    assert said in found.unreadable[0].reason or "recursion" in found.unreadable[0].reason


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": None},
        {"metrics": {"test": 3}},
        {"costs": []},
        {"seed": "0"},
        {"pretrain": "base"},
        {"cause": ["x"]},
        {"choices": {"dataset": {}}},
        {"device": {"kind": []}},
        {"command": [3]},
        {"metrics": {"test": {"macro_f1": 10**400}}},
        {"study": "half a pair: \ud800"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_records_of_wrong_types_are_listed(make, tmp_path, change):
    sweep = make.save([make.finetune()], tmp_path)
    (path,) = sweep.rglob("record.json")
    content = {**json.loads(path.read_text()), **change}
    del content["seal"]
    path.write_text(json.dumps(content))
    found = collect([sweep], tmp_path)
    assert (len(found.runs), len(found.unreadable)) == (0, 1)
    assert any(word in found.unreadable[0].reason for word in (next(iter(change)), "surrogates", "macro_f1"))


def test_a_record_cut_at_any_byte_spoils_nothing_else(make, tmp_path):
    sweep = make.save(make.seeds("sdpa"), tmp_path)
    path = sweep / "demo" / "finetune-sdpa-rope-tiny-n512-s1" / "record.json"
    whole = path.read_bytes()
    for end in range(0, len(whole) - 2, 97):
        path.write_bytes(whole[:end])
        found = collect([sweep], tmp_path)
        assert [run.record.seed for run in found.runs] == [0, 2] and [item.place for item in found.unreadable] == [
            "multirun/demo/demo/finetune-sdpa-rope-tiny-n512-s1"
        ]


def test_a_record_edited_by_hand_is_listed_and_one_of_an_older_version_is_taken(make, tmp_path):
    sweep = make.save([make.finetune()], tmp_path)
    (path,) = sweep.rglob("record.json")
    better = json.loads(path.read_text())
    better["metrics"]["validation"]["macro_f1"] = 0.99
    path.write_text(json.dumps(better))
    found = collect([sweep], tmp_path)
    assert found.runs == [] and "its seal does not fit" in found.unreadable[0].reason
    del better["seal"]
    path.write_text(json.dumps(better))
    assert len(collect([sweep], tmp_path).runs) == 1


def test_a_changed_file_that_the_record_vouches_for_is_listed_and_a_lost_one_is_noted(make, tmp_path):
    sweep = make.save(make.seeds("sdpa"), tmp_path)
    first, second, _ = (path.parent for path in sorted(sweep.rglob("record.json")))
    with open(first / "metrics.csv", "a", encoding="utf-8") as file:
        file.write("15,3.0,0.999,0.1\n")
    (second / "metrics.csv").unlink()
    found = collect([sweep], tmp_path)
    assert [run.record.seed for run in found.runs] == [1, 2]
    assert "metrics.csv was changed after the run wrote it" in found.unreadable[0].reason
    assert found.notes == [f"{found.runs[0].place}: metrics.csv is gone; what is made from it is missing here."]


def test_a_run_that_is_still_writing_is_not_called_changed(make, tmp_path):
    sweep = make.save([make.finetune(status="running")], tmp_path)
    (folder,) = [path.parent for path in sweep.rglob("record.json")]
    (folder / "metrics.csv").write_text("step\n1\n", encoding="utf-8")
    found = collect([sweep], tmp_path)
    assert len(found.runs) == 1 and found.unreadable == []


def test_circles_of_links_end_and_a_linked_sweep_is_found_once(make, tmp_path):
    elsewhere = make.save(make.seeds("sdpa"), tmp_path / "disk")
    sweeps = tmp_path / "multirun"
    sweeps.mkdir()
    (sweeps / "linked").symlink_to(elsewhere)
    (sweeps / "again").symlink_to(elsewhere)
    (sweeps / "round").symlink_to(sweeps)
    (sweeps / "self").symlink_to(sweeps / "self")
    (elsewhere / "up").symlink_to(tmp_path)
    found = collect(["multirun"], tmp_path)
    assert [run.record.seed for run in found.runs] == [0, 1, 2] and found.unreadable == []


def test_a_record_that_is_no_file_does_not_hang_the_report(make, tmp_path):
    sweep = make.save([make.finetune()], tmp_path)
    for name in ("pipe", "folder", "circle"):
        (sweep / name).mkdir()
    os.mkfifo(sweep / "pipe" / "record.json")
    (sweep / "folder" / "record.json").mkdir()
    (sweep / "circle" / "record.json").symlink_to(sweep / "circle" / "record.json")
    found = collect([sweep], tmp_path)
    assert len(found.runs) == 1 and [Path(item.place).name for item in found.unreadable] == ["circle", "folder", "pipe"]


def test_a_folder_that_is_not_there_is_refused_unless_it_is_a_usual_one(tmp_path):
    assert collect(["multirun", "pretrain", "finetune"], tmp_path).runs == []
    with pytest.raises(UserError, match="multirun/typo"):
        collect(["multirun/typo"], tmp_path)


def test_the_baseline_of_the_same_rows_is_found_elsewhere(make, tmp_path):
    sweep = make.save(make.seeds("sdpa"), tmp_path)
    other = make.baseline(
        0.7, run="demo/tfidf_logreg-s0-other", data={"fingerprint": "other", "train_rows_hash": "rows"}
    )
    make.save([make.baseline(), other], tmp_path, sweep="baselines")
    found = collect([sweep], tmp_path)
    assert [run.place for run in found.runs if run.record.mode == "baseline"] == [
        "multirun/baselines/demo/tfidf_logreg-s0-abcdef"
    ]
    assert found.notes == [
        "The baseline multirun/baselines/demo/tfidf_logreg-s0-abcdef was found by the fingerprint of its data."
    ]
    shutil.copytree(tmp_path / "multirun" / "baselines" / "demo", sweep / "demo", dirs_exist_ok=True)
    again = collect([sweep], tmp_path)
    assert again.notes == [] and sum(run.record.mode == "baseline" for run in again.runs) == 2  # its own is enough


def test_a_baseline_that_did_not_complete_is_not_fetched(make, tmp_path):
    sweep = make.save(make.seeds("sdpa"), tmp_path)
    make.save([make.baseline(status="failed", cause="no memory")], tmp_path, sweep="baselines")
    assert all(run.record.mode == "finetune" for run in collect([sweep], tmp_path).runs)


def test_a_record_that_is_written_again_is_sealed_again(make, tmp_path):
    sweep = make.save([make.finetune()], tmp_path)
    (folder,) = [path.parent for path in sweep.rglob("record.json")]
    record = read_record(folder, sealed=True)
    record.metrics["eval.test"] = {"macro_f1": 0.5}
    write_record(record, folder)
    assert read_record(folder, sealed=True).metrics["eval.test"] == {"macro_f1": 0.5}

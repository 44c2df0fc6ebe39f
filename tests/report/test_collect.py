"""Finding records: what is there, each once; what cannot be read is listed and spoils nothing."""

from __future__ import annotations

import json

import pytest

from xcls.report.collect import collect
from xcls.schema import UserError


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
    "change", [{"metrics": None}, {"metrics": {"test": 3}}, {"costs": []}, {"seed": "0"}, {"pretrain": "base"}], ids=str
)
def test_records_of_wrong_types_are_listed(make, tmp_path, change):
    sweep = make.save([make.finetune()], tmp_path)
    (path,) = sweep.rglob("record.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    found = collect([sweep], tmp_path)
    assert (len(found.runs), len(found.unreadable)) == (0, 1)
    assert next(iter(change)) in found.unreadable[0].reason


def test_a_folder_that_is_not_there_is_refused_unless_it_is_a_usual_one(tmp_path):
    assert collect(["multirun", "pretrain", "finetune"], tmp_path).runs == []
    with pytest.raises(UserError, match="multirun/typo"):
        collect(["multirun/typo"], tmp_path)

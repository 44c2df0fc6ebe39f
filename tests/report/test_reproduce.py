"""reproduce.sh: valid shell, the right order, the data checked first, nothing from a record run as shell."""

from __future__ import annotations

import json
import subprocess

import pytest

from xcls.report.reproduce import check, command_for, script, script_for
from xcls.schema import UserError


def syntax(text):
    return subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, timeout=20)


def commands(text):
    return [
        line.removeprefix('"$PYTHON" ').strip()
        for line in text.splitlines()
        if line.startswith('"$PYTHON" ') and "-m xcls" not in line
    ]


def test_baseline_then_pretraining_then_fine_tuning_then_the_report(make):
    pretrain = make.finetune(
        mode="pretrain", run="pretrain-sdpa", command=["mode=pretrain", "attention=sdpa", "sweep=demo"]
    )
    text = script(
        [*make.seeds("sdpa", (0.9, 0.9)), make.baseline(), pretrain],
        ["runs=[multirun/demo]", "out=multirun/demo/report"],
    )
    assert commands(text) == [
        "run.py mode=baseline sweep=demo hydra.mode=RUN",
        "run.py mode=pretrain attention=sdpa sweep=demo hydra.mode=RUN",
        "run.py mode=finetune attention=sdpa seed=0 sweep=demo hydra.mode=RUN",
        "run.py mode=finetune attention=sdpa seed=1 sweep=demo hydra.mode=RUN",
        "report.py 'runs=[multirun/demo]' out=multirun/demo/report",
    ]
    assert text.index("xcls.report.reproduce <<") < text.index("run.py mode=baseline") and syntax(text).returncode == 0


def test_what_did_not_complete_is_a_comment(make):
    text = script([make.finetune(), make.finetune(seed=1, status="failed", cause="OOM\nrm -rf /")], ["out=x"])
    assert len(commands(text)) == 2
    assert "# not run, failed (OOM rm -rf /): demo/finetune-sdpa-rope-tiny-n512-s1" in text


def test_one_run(make):
    text = script_for(
        make.finetune(command=["exp=a b", "attention=sdpa", "dataset.path=$(touch evil)"], run="x\n$(touch evil)")
    )
    assert commands(text) == ["run.py mode=finetune 'exp=a b' attention=sdpa 'dataset.path=$(touch evil)'"]
    assert syntax(text).returncode == 0 and not any(line.startswith("$(") for line in text.splitlines())


def test_a_pretraining_run_brings_the_config_that_may_have_been_edited(make):
    record = make.finetune(
        mode="pretrain", command=["mode=pretrain", "exp=base"], config={"pretraining.lr": 1e-05, "exp": "base"}
    )
    text = command_for(record)
    assert "pretraining.lr: 1.0e-05\n" in text and 'choices.attention: "sdpa"\n' in text and "\nexp:" not in text
    assert text.endswith('"$PYTHON" run.py mode=pretrain exp=base\n') and syntax(text).returncode == 0


def test_the_script_stops_before_any_work_when_the_data_differ(make, tmp_path):
    (tmp_path / "xcls").mkdir()
    (tmp_path / "run.py").write_text("open('worked', 'w')")
    (tmp_path / "deep").mkdir()
    text = script_for(make.finetune())
    (tmp_path / "deep" / "reproduce.sh").write_text(text)
    (tmp_path / "no").write_text('#!/bin/sh\ncase "$*" in *xcls.report.reproduce*) exit 2;; esac\ntouch worked\n')
    (tmp_path / "no").chmod(0o755)
    done = subprocess.run(
        ["bash", "deep/reproduce.sh"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(tmp_path / "no")},
        timeout=20,
    )
    assert done.returncode == 2 and not (tmp_path / "worked").exists()


def expected(fingerprint):
    return [{"dataset": "toy", "fingerprint": fingerprint, "source": {"_target_": "toy_source.Toy", "path": "a"},
             "extra": [], "versions": {"pytest": "0.0.1", "cuda": "12.6", "python": None}}]  # fmt: skip


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A data source whose fingerprint is its path."""
    (tmp_path / "toy_source.py").write_text(
        "class Toy:\n    def __init__(self, *, path):\n        self.path = path\n"
        "    def fingerprint(self):\n        return 'print of ' + self.path\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_check_accepts_the_same_data_and_tells_other_versions(toy):
    notes = check(json.loads(json.dumps(expected("print of a"))))
    assert notes == [f"pytest is {pytest.__version__} here, 0.0.1 in the record."]


def test_the_check_refuses_other_data(toy):
    with pytest.raises(
        UserError, match="toy is not the one of the record: fingerprint print of a, expected print of b"
    ):
        check(expected("print of b"))

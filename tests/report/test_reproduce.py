"""reproduce.sh: valid shell, the right order, data checked first, numbers last, nothing from a record run as shell."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT, Project
from xcls.config.schema import UserError
from xcls.report.reproduce import check_data, compare
from xcls.runs.record import read_record
from xcls.runs.reproduce import expectation, script, script_for


def commands(text):
    """The commands of a valid script, without the checks."""
    assert subprocess.run(["bash", "-n"], input=text, text=True, timeout=20).returncode == 0
    lines = [line.removeprefix('"$PYTHON" ').strip() for line in text.splitlines() if line.startswith('"$PYTHON" ')]
    return [line.removesuffix(' "$@"') for line in lines if "-m xcls" not in line]


def file_of(text):
    """The configuration that a script lays down for its only run."""
    return yaml.safe_load(text.partition("<<'CONFIG'\n")[2].partition("CONFIG\n")[0])


def test_baseline_then_pretraining_then_fine_tuning_then_the_report(make):
    first = make.finetune(mode="pretrain", run="z", hash="a" * 64, config={"sweep": "demo"})
    second = make.finetune(mode="pretrain", run="y", hash="b" * 64, pretrain={"hash": "a" * 64, "folder": "z"})
    ft = make.finetune(hash="c" * 64, config={"sweep": "demo"}, pretrain={"hash": "b" * 64, "folder": "multirun/z"})
    lost = make.finetune(seed=1, status="failed", cause="OOM\nrm -rf /")
    text = script([ft, lost, second, first, make.baseline(hash="d" * 64)], ["runs=[multirun/a b]", "out=x"])
    made = commands(text)
    assert made == [
        "run.py mode=baseline template=multirun/templates/dddddddddddd.yaml resume=true",
        "run.py mode=pretrain template=multirun/templates/aaaaaaaaaaaa.yaml sweep=demo resume=true",
        "run.py mode=pretrain template=multirun/templates/bbbbbbbbbbbb.yaml pretrain=z checkpoint=best resume=true",
        "run.py mode=finetune template=multirun/templates/cccccccccccc.yaml sweep=demo pretrain=multirun/z "
        "checkpoint=best resume=true",
        "report.py 'runs=[multirun/a b]' out=x",
    ]
    places = [text.index(part) for part in ("reproduce before", "mode=baseline", "reproduce after", "report.py")]
    assert places == sorted(places) and f"# not run, failed (OOM rm -rf /): {lost.run}" in text


def test_code_of_most_of_the_runs_is_laid_down_and_the_others_are_named(make):
    def of(seed, commit, checksum):
        return make.finetune(seed=seed, commit=commit, files={"code.patch": checksum} if checksum else {})

    records = [of(0, "a" * 40 + "-dirty", "1" * 64), of(1, "a" * 40 + "-dirty", "1" * 64), of(2, "b" * 40, "")]
    text = script(records, ["out=x"], patches={"1" * 64: "diff --git a/x b/x\n+`touch evil`\n"})
    assert f"commit={'a' * 40}\n" in text and text.count("+`touch evil`\n") == 1 and len(commands(text)) == 4
    named = [line for line in text.splitlines() if line.startswith("echo ")]
    assert len(named) == 1 and "-s2 " in named[0] and "b" * 40 in named[0]
    lost = [line for line in script(records, ["out=x"]).splitlines() if line.startswith("echo ")]
    assert len(lost) == 2 and "\nchanges()" not in script(records, ["out=x"])


def test_the_whole_configuration_is_laid_down_and_nothing_of_a_record_is_shell(make):
    evil = "x\n$(touch evil)\nEXPECTED\ntouch evil"
    config = {"a\nCONFIG\ntouch evil": evil, "finetuning.lr": 1e-05, "dataset.path": evil, "exp": "a b", "bench.x": 1}
    text = script_for(make.finetune(run=evil, hash="e" * 64, commit="c; touch evil", config=config))
    assert commands(text) == [
        "run.py mode=finetune template=multirun/templates/eeeeeeeeeeee.yaml 'exp=a b' resume=true"
    ]
    assert not any(line.startswith(("$(", "touch")) for line in text.splitlines())
    laid = file_of(text)
    assert (laid["finetuning.lr"], laid["dataset.path"], laid["choices.attention"]) == (1e-05, evil, "sdpa")
    assert (laid["hardware.threads"], laid["hardware.dtype"]) == (1, "fp32") and not {"exp", "bench.x"} & set(laid)
    on_gpu = file_of(script_for(make.finetune(device={"kind": "cuda", "dtype": "fp16"})))
    assert on_gpu["hardware.dtype"] == "fp16" and "hardware.threads" not in on_gpu


def test_the_script_stops_before_any_work_when_the_data_differ(make, tmp_path):
    (tmp_path / "xcls").mkdir()
    (tmp_path / "run.py").write_text("open('worked', 'w')")
    (tmp_path / "reproduce.sh").write_text(script_for(make.finetune()))
    (tmp_path / "no").write_text('#!/bin/sh\ncase "$*" in *report.reproduce*) exit 2;; esac\ntouch worked\n')
    (tmp_path / "no").chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(tmp_path / "no")}
    done = subprocess.run(["bash", "reproduce.sh"], cwd=tmp_path, env=environment, timeout=20)
    assert done.returncode == 2 and not list(tmp_path.rglob("worked"))


def expected(fingerprint):
    source = {"_target_": "toy_source.Toy", "path": "a"}
    versions = {"pytest": "0.0.1", "cuda": "12.6", "python": None}
    return [{"dataset": "toy", "fingerprint": fingerprint, "source": source, "extra": [], "versions": versions}]


def test_the_check_accepts_the_same_data_and_refuses_others(tmp_path, monkeypatch):
    (tmp_path / "toy_source.py").write_text(
        "class Toy:\n    def __init__(self, *, path):\n        self.path = path\n"
        "    def fingerprint(self):\n        return 'print of ' + self.path\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (note,) = check_data(expected("print of a"))
    assert pytest.__version__ in note and "0.0.1" in note and len(check_data(expected("print of b"), "b")) == 1
    with pytest.raises(UserError, match="print of b"):
        check_data(expected("print of b"))


@pytest.mark.parametrize(
    ("change", "device", "good"),
    [
        (0.0, {}, True),
        (1e-12, {}, False),  # on the same machine
        (0.01, {"threads": 7}, True),
        (0.03, {"threads": 7}, False),
        (1e-12, {"kind": "cuda"}, True),
    ],
)
def test_the_same_bits_are_owed_on_the_same_machine_and_closeness_elsewhere(make, change, device, good):
    record = make.finetune(device=device if "kind" in device else {})
    wanted = json.loads(json.dumps(expectation(record)))
    wanted["device"].update(device)
    record.metrics["validation"]["macro_f1"] += change
    (line,), right = compare([wanted], {record.hash: record}, 0.02)
    assert right is good and (change == 0 or "validation macro_f1" in line)
    assert compare([wanted], {}, 0.02)[1] is False


def again(project, script, *words):
    """Runs a reproduce.sh with the tests' own Python."""
    environment = {**project.environment, "PYTHON": sys.executable}
    line = ["bash", str(script), *words]
    return subprocess.run(line, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=280)


def results_of(folder):
    """What must come out the same: every score and row count, the predictions, the curves without their times."""
    found = {}
    for path in sorted(folder.rglob("record.json")):
        record = read_record(path.parent)
        rows = [line.split(",")[:9] for line in (path.parent / "metrics.csv").read_text().splitlines()]
        found[record.hash] = (record.mode, record.metrics, rows, record.files.get("predictions.parquet"))
    return found


MINE = """
from xcls.attention.softmax import Sdpa


class Mine(Sdpa):
    def attend(self, q, k, v, masks):
        return super().attend(1.5 * q, k, v, masks)
"""


def clone(source, folder, commit):
    for words in (["clone", "-q", str(source), str(folder)], ["-C", str(folder), "checkout", "-q", commit]):
        subprocess.run(["git", *words], check=True)
    return Project(folder)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_clone_makes_the_same_numbers_to_the_bit(project, tmp_path):
    """A study with pretraining, baseline and a mechanism that nobody committed; then one run of it, data elsewhere."""
    first = Project(tmp_path / "first")
    for name in ("conf", "xcls", "hydra_plugins"):
        shutil.copytree(ROOT / name, first.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run.py", "report.py", "rows.csv"):
        shutil.copy(project.folder / name, first.folder / name)
    (first.folder / ".gitignore").write_text("__pycache__/\n/finetune/\n/pretrain/\n/multirun/\n/cache/\n/leases/\n")
    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"]
    for words in (["init", "-q"], ["add", "-A"], commit):
        subprocess.run(["git", *words], cwd=first.folder, check=True)
    (first.folder / "xcls" / "attention" / "mine.py").write_text(MINE)
    options = (first.folder / "conf" / "attention" / "sdpa.yaml").read_text()
    options = options.replace("softmax.Sdpa", "mine.Mine").replace("name: sdpa", "name: mine")
    (first.folder / "conf" / "attention" / "mine.yaml").write_text(options)
    sweep = first.run("-m", "seed=0,1", "attention=mine", "pretrain=auto", "exp=study", timeout=280)
    assert sweep.returncode == 0, sweep.stderr
    report = first.run("runs=[multirun/study]", "out=multirun/study/report", script="report.py")
    assert report.returncode == 0, report.stderr
    made = results_of(first.folder)
    assert sorted(mode for mode, *_ in made.values()) == ["baseline", "finetune", "finetune", "pretrain"]
    (own,) = first.folder.glob("multirun/study/*/finetune-*-s1-*/reproduce.sh")
    commit = read_record(own.parent).commit
    assert commit.endswith("-dirty")

    second = clone(first.folder, tmp_path / "second", commit.removesuffix("-dirty"))
    whole = first.folder / "multirun" / "study" / "report" / "reproduce.sh"
    done = again(second, whole)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the same to the bit") == 4 and results_of(second.folder) == made
    assert (second.folder / "multirun" / "study" / "report" / "index.html").is_file()
    once_more = again(second, whole)
    assert once_more.returncode == 2 and "fresh clone" in once_more.stderr

    third = clone(first.folder, tmp_path / "third", commit.removesuffix("-dirty"))
    (third.folder / "rows.csv").rename(third.folder / "elsewhere.csv")
    done = again(third, own, "dataset.path=elsewhere.csv")
    assert done.returncode == 0 and done.stdout.count("the same to the bit") == 2, done.stdout + done.stderr
    found = results_of(third.folder)
    assert {"pretrain", "finetune"} <= {mode for mode, *_ in found.values()}
    assert all(made[name][:3] == result[:3] for name, result in found.items())  # ids name the file

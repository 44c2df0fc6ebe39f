"""reproduce.sh: valid shell, the right order, data checked first, numbers last, nothing from a record run as shell."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT, Project
from xcls.config.schema import UserError
from xcls.data.files import Files
from xcls.report.reproduce import command_for, expectation, script, script_for
from xcls.report.reproduce_check import check_data, check_fresh, compare, furthest
from xcls.runs.record import read_record


def syntax(text):
    return subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, timeout=20)


def commands(text):
    lines = [
        line.removeprefix('"$PYTHON" ').strip()
        for line in text.splitlines()
        if line.startswith('"$PYTHON" ') and "-m xcls" not in line
    ]
    return [line.removesuffix(' "$@"') for line in lines]


HERE = "hardware.threads=1 hardware.dtype=fp32"  # where the records were made


def test_baseline_then_pretraining_then_fine_tuning_then_the_report(make):
    pretrain = make.finetune(
        mode="pretrain", run="pretrain-sdpa", hash="p" * 64, command=["mode=pretrain", "attention=sdpa", "sweep=demo"]
    )
    text = script(
        [*make.seeds("sdpa", (0.9, 0.9)), make.baseline(), pretrain],
        ["runs=[multirun/demo]", "out=multirun/demo/report"],
    )
    assert commands(text) == [
        "run.py mode=baseline sweep=demo hydra.mode=RUN",
        f"run.py mode=pretrain attention=sdpa sweep=demo {HERE} hydra.mode=RUN",
        f"run.py mode=finetune attention=sdpa seed=0 sweep=demo {HERE} hydra.mode=RUN",
        f"run.py mode=finetune attention=sdpa seed=1 sweep=demo {HERE} hydra.mode=RUN",
        "report.py 'runs=[multirun/demo]' out=multirun/demo/report",
    ]
    places = [
        text.index(part)
        for part in ("reproduce_check before", "run.py mode=baseline", "reproduce_check after", "report.py")
    ]
    assert places == sorted(places) and syntax(text).returncode == 0


def test_a_run_comes_after_the_run_it_starts_from_whatever_their_names(make):
    first = make.finetune(run="z", command=["exp=z"])
    second = make.finetune(
        "performer", run="a", command=["exp=a", "pretrain=z"], pretrain={"hash": first.hash, "folder": "finetune/z"}
    )
    assert [line.split("exp=")[1][0] for line in commands(script([second, first], ["out=x"]))[:2]] == ["z", "a"]


def test_a_report_lays_down_the_code_of_most_of_its_runs_and_names_the_others(make):
    def of(seed, commit, checksum):
        return make.finetune(seed=seed, commit=commit, files={"code.patch": checksum} if checksum else {})

    records = [of(0, "a" * 40 + "-dirty", "1" * 64), of(1, "a" * 40 + "-dirty", "1" * 64), of(2, "b" * 40, "")]
    text = script(records, ["out=x"], patches={"1" * 64: "diff --git a/x b/x\n+`touch evil`\n"})
    assert f"commit={'a' * 40}\n" in text and text.count("+`touch evil`\n") == 1 and "not at hand" not in text
    named = [line for line in text.splitlines() if line.startswith("echo ")]
    assert len(named) == 1 and "-s2 " in named[0] and "b" * 40 in named[0] and syntax(text).returncode == 0
    lost = script(records, ["out=x"])
    assert "git apply" not in lost and "not at hand" in lost and "git apply" not in script(records[2:], ["out=x"])


def test_what_did_not_complete_is_a_comment(make):
    text = script([make.finetune(), make.finetune(seed=1, status="failed", cause="OOM\nrm -rf /")], ["out=x"])
    assert len(commands(text)) == 2
    assert "# not run, failed (OOM rm -rf /): demo/finetune-sdpa-rope-tiny-n512-s1" in text


def test_one_run_on_as_many_threads_in_its_dtype_and_it_can_go_on(make):
    evil = "x\n$(touch evil)\nEXPECTED\ntouch evil"
    record = make.finetune(
        command=["exp=a b", "attention=sdpa", "dataset.path=$(touch evil)"],
        run=evil,
        commit="c; touch evil",
        config={"a\nCONFIG\ntouch evil": evil},
    )
    text = script_for(record)
    assert commands(text) == [
        f"run.py mode=finetune 'exp=a b' attention=sdpa 'dataset.path=$(touch evil)' {HERE} resume=true"
    ]
    assert syntax(text).returncode == 0 and not any(line.startswith(("$(", "touch")) for line in text.splitlines())


def test_what_was_typed_is_not_typed_twice(make):
    text = command_for(make.finetune(command=["exp=a", "hardware.threads=2", "hardware.dtype=bf16", "resume=true"]))
    assert text == '"$PYTHON" run.py mode=finetune exp=a hardware.threads=2 hardware.dtype=bf16 resume=true "$@"\n'


def test_on_a_gpu_the_threads_are_not_fixed(make):
    text = command_for(make.finetune(device={"kind": "cuda", "dtype": "fp16"}, command=["exp=a"]))
    assert "threads" not in text and "hardware.dtype=fp16" in text


def test_a_pretraining_run_brings_the_config_that_may_have_been_edited(make):
    record = make.finetune(
        mode="pretrain",
        command=["mode=pretrain", "exp=base"],
        config={"pretraining.lr": 1e-05, "exp": "base", "bench.name": "x"},
    )
    text = command_for(record)
    assert (
        "pretraining.lr: 1.0e-05\n" in text
        and 'choices.attention: "sdpa"\n' in text
        and "\nexp:" not in text
        and "bench" not in text
    )
    assert (
        text.startswith("mkdir -p pretrain/base\n[ -e pretrain/base/config.yaml ] || cat > pretrain/base/config.yaml")
        and syntax(text).returncode == 0
    )
    assert text.endswith(f'"$PYTHON" run.py mode=pretrain exp=base {HERE} resume=true "$@"\n')


def test_a_run_made_from_a_template_brings_it(make):
    record = make.baseline(
        command=["mode=baseline", "template=/gone/multirun/x/config.yaml", "sweep=demo"], hash="ab" * 32
    )
    text = command_for(record)
    assert (
        "/gone" not in text
        and "cat > multirun/templates/abababababab.yaml" in text
        and "baseline.max_iter: 1000\n" in text
    )
    assert text.endswith(
        '"$PYTHON" run.py mode=baseline template=multirun/templates/abababababab.yaml sweep=demo hydra.mode=RUN "$@"\n'
    )


def test_a_run_started_from_another_folder_starts_from_the_one_in_the_clone(make):
    record = make.finetune(
        command=["exp=ft", "pretrain=/elsewhere/xcls/pretrain/base"], pretrain={"folder": "pretrain/base", "hash": "x"}
    )
    assert "pretrain=pretrain/base" in command_for(record)


def test_the_script_stops_before_any_work_when_the_data_differ(make, tmp_path):
    (tmp_path / "xcls").mkdir()
    (tmp_path / "run.py").write_text("open('worked', 'w')")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "reproduce.sh").write_text(script_for(make.finetune()))
    (tmp_path / "no").write_text('#!/bin/sh\ncase "$*" in *xcls.report.reproduce_check*) exit 2;; esac\ntouch worked\n')
    (tmp_path / "no").chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(tmp_path / "no")}
    for folder in (tmp_path, tmp_path / "deep"):
        done = subprocess.run(
            ["bash", str(tmp_path / "deep" / "reproduce.sh")], cwd=folder, env=environment, timeout=20
        )
        assert done.returncode == 2 and not list(tmp_path.rglob("worked"))


def test_the_script_works_in_the_clone_it_is_started_in(make, tmp_path):
    for place in ("old", "again"):
        (tmp_path / place / "xcls").mkdir(parents=True)
        (tmp_path / place / "run.py").touch()
    (tmp_path / "old" / "reproduce.sh").write_text(script_for(make.finetune()))
    (tmp_path / "say").write_text("#!/bin/sh\npwd >> %s\ncat > /dev/null\n" % (tmp_path / "said"))
    (tmp_path / "say").chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(tmp_path / "say")}
    done = subprocess.run(["bash", "../old/reproduce.sh"], cwd=tmp_path / "again", env=environment, timeout=20)
    assert done.returncode == 0 and set((tmp_path / "said").read_text().split()) == {str(tmp_path / "again")}
    outside = subprocess.run(
        ["bash", str(shutil.copy(tmp_path / "old" / "reproduce.sh", tmp_path))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=20,
    )
    assert outside.returncode == 2 and b"inside a clone" in outside.stderr


def expected(fingerprint):
    return [
        {
            "dataset": "toy",
            "fingerprint": fingerprint,
            "source": {"_target_": "toy_source.Toy", "path": "a"},
            "extra": [],
            "versions": {"pytest": "0.0.1", "cuda": "12.6", "python": None},
        }
    ]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A data source whose fingerprint is its path."""
    (tmp_path / "toy_source.py").write_text(
        "class Toy:\n    def __init__(self, *, path):\n        self.path = path\n"
        "    def fingerprint(self):\n        return 'print of ' + self.path\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_check_accepts_the_same_data_and_tells_other_versions(toy):
    notes = check_data(json.loads(json.dumps(expected("print of a"))))
    assert notes == [f"pytest is {pytest.__version__} here, 0.0.1 in the record."]


def test_the_check_refuses_other_data(toy):
    with pytest.raises(
        UserError, match="toy is not the one of the record: fingerprint print of a, expected print of b"
    ):
        check_data(expected("print of b"))


def test_the_check_looks_where_the_user_says_the_data_lie(toy):
    assert len(check_data(expected("print of there"), "there")) == 1


def test_where_every_run_is_here_already_there_is_nothing_to_make_again(make, tmp_path):
    first, second = make.seeds("sdpa", (0.9, 0.8))
    make.save([first], tmp_path)
    check_fresh([expectation(first), expectation(second)], tmp_path)
    with pytest.raises(UserError, match="fresh clone"):
        check_fresh([expectation(first)], tmp_path)


@pytest.mark.parametrize(
    ("change", "device", "good", "said"),
    [
        (0.0, {}, True, "the same to the bit"),
        (1e-12, {}, False, "OTHER than on the first time"),
        (0.01, {"threads": 7}, True, "differs by up to 0.01 (validation macro_f1)"),
        (0.03, {"threads": 7}, False, "OUTSIDE of 0.02"),
        (1e-12, {"kind": "cuda"}, True, "differs by up to"),
    ],
)
def test_the_same_bits_are_owed_on_the_same_machine_and_closeness_elsewhere(make, tmp_path, change, device, good, said):
    record = make.finetune(device=device if "kind" in device else {})
    wanted = json.loads(json.dumps(expectation(record)))
    wanted["device"].update(device)
    record.metrics["validation"]["macro_f1"] += change
    make.save([record], tmp_path)
    (line,), right = compare([wanted], tmp_path, 0.02)
    assert right is good and said in line
    (line,), right = compare([{**wanted, "hash": "0" * 64}], tmp_path, 0.02)
    assert not right and "MISSING" in line


def test_the_data_are_checked_with_the_settings_of_their_labels(make, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\none,A\ntwo,a\nthree,b\n")
    labels = {"casefold": True, "missing": ["nan"], "many": False}
    record = make.finetune(
        data={"name": "files", "fingerprint": Files(path=str(tmp_path / "a.csv"), labels=labels).fingerprint()}
    )
    record.config.update(
        {
            "dataset.path": str(tmp_path / "a.csv"),
            "dataset.text": "text",
            "dataset.label": "label",
            "dataset.source._target_": "xcls.data.files.Files",
            **{f"dataset.labels.{key}": value for key, value in labels.items()},
        }
    )
    wanted = {**json.loads(json.dumps(expectation(record))), "versions": {}}
    assert wanted["source"]["labels"] == labels and check_data([wanted]) == []
    record.config["dataset.labels.casefold"] = False
    with pytest.raises(UserError, match="fingerprint"):
        check_data([expectation(record)])


def test_losses_differ_by_their_share_and_a_missing_score_by_everything():
    assert furthest({"test": {"loss": 2.0, "f1": None}}, {"test": {"loss": 2.02, "f1": None}}) == (
        pytest.approx(0.01),
        "test loss",
    )
    assert furthest({"test": {"f1": 0.5}}, {"test": {}})[0] == float("inf")


def copy_of(project, folder):
    """A second copy of the project with the same data and nothing that was run."""
    folder.mkdir()
    for name in ("conf", "xcls", "hydra_plugins"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("run.py", "report.py", "rows.csv"):
        shutil.copy(project.folder / name, folder / name)
    return Project(folder)


@pytest.fixture
def make_repository(project):
    """A function of a folder: makes it a repository with one commit of the project and its data."""

    def make(folder):
        for name in ("conf", "xcls", "hydra_plugins"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("run.py", "report.py", "rows.csv"):
            shutil.copy(project.folder / name, folder / name)
        (folder / ".gitignore").write_text("__pycache__/\n/finetune/\n/cache/\n/leases/\n")
        for words in (
            ["init", "-q"],
            ["add", "-A"],
            ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"],
        ):
            subprocess.run(["git", *words], cwd=folder, check=True)
        return Project(folder)

    return make


def again(project, script, *words):
    """Runs a reproduce.sh with the tests' own Python."""
    environment = {**project.environment, "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", str(script), *words], cwd=project.folder, env=environment, capture_output=True, text=True, timeout=280
    )


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


@pytest.mark.slow
def test_a_clone_of_the_commit_makes_the_numbers_of_a_mechanism_that_nobody_committed(make_repository, tmp_path):
    first = make_repository(tmp_path / "first")
    mine = first.folder / "xcls" / "attention" / "mine.py"
    mine.write_text(MINE)
    options = (first.folder / "conf" / "attention" / "sdpa.yaml").read_text()
    (first.folder / "conf" / "attention" / "mine.yaml").write_text(
        options.replace("softmax.Sdpa", "mine.Mine").replace("name: sdpa", "name: mine")
    )
    run = ("attention=mine", "exp=one")
    done = first.run(*run, fresh=True)
    assert done.returncode == 0, done.stderr
    folder = first.folder / "finetune" / "one"
    record = read_record(folder)
    assert len(record.warnings) == 1 and "test part" in record.warnings[0] and record.commit.endswith("-dirty")
    assert set(record.code) == {"attention", "position"}

    second = tmp_path / "second"
    for words in (
        ["clone", "-q", str(first.folder), str(second)],
        ["-C", str(second), "checkout", "-q", record.commit.removesuffix("-dirty")],
    ):
        subprocess.run(["git", *words], check=True)
    assert not (second / "xcls" / "attention" / "mine.py").exists()
    done = again(Project(second), folder / "reproduce.sh")
    assert done.returncode == 0 and done.stdout.count("the same to the bit") == 1, done.stdout + done.stderr
    assert (second / "xcls" / "attention" / "mine.py").read_text() == MINE and results_of(second) == results_of(
        first.folder
    )

    mine.write_text("# no other code\n" + MINE)
    assert first.run(*run, "resume=true", fresh=True).returncode == 0
    mine.write_text(MINE.replace("1.5", "0.5"))
    done = first.run(*run, "resume=true", fresh=True)
    assert done.returncode == 2 and "code of attention" in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_fresh_copy_makes_the_same_numbers_to_the_bit_pretraining_and_baseline_included(project, tmp_path_factory):
    for name in ("conf", "xcls", "hydra_plugins"):  # outside a repository: what is not committed here plays no part
        (project.folder / name).unlink()
        shutil.copytree(ROOT / name, project.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    sweep = project.run("-m", "seed=0,1", "attention=performer", "pretrain=auto", "exp=study", timeout=280)
    assert sweep.returncode == 0, sweep.stderr
    report = project.run("runs=[multirun/study]", "out=multirun/study/report", script="report.py")
    assert report.returncode == 0, report.stderr
    first = results_of(project.folder)
    assert sorted(mode for mode, *_ in first.values()) == ["baseline", "finetune", "finetune", "pretrain"]

    second = copy_of(project, tmp_path_factory.mktemp("again") / "clone")
    script = project.folder / "multirun" / "study" / "report" / "reproduce.sh"
    done = again(second, script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the same to the bit") == 4 and results_of(second.folder) == first
    assert (second.folder / "multirun" / "study" / "report" / "index.html").is_file()

    once_more = again(second, script)
    assert once_more.returncode == 2 and "fresh clone" in once_more.stderr

    third = copy_of(project, tmp_path_factory.mktemp("one") / "clone")
    (own,) = project.folder.glob("multirun/study/*/finetune-*-s1-*/reproduce.sh")
    done = again(third, own)
    assert done.returncode == 0, done.stdout + done.stderr
    made = results_of(third.folder)
    assert {"pretrain", "finetune"} <= {mode for mode, *_ in made.values()} and all(
        first[name] == result for name, result in made.items()
    )

    fourth = copy_of(project, tmp_path_factory.mktemp("other") / "clone")
    (fourth.folder / "rows.csv").write_text("text,label\nother,good\nrows,bad\n")
    done = again(fourth, own)
    assert (
        done.returncode == 2
        and "is not the one of the record" in done.stderr
        and not list(fourth.folder.rglob("record.json"))
    )
    moved = copy_of(project, tmp_path_factory.mktemp("moved") / "clone")
    (moved.folder / "rows.csv").rename(moved.folder / "elsewhere.csv")
    done = again(moved, own, "dataset.path=elsewhere.csv")
    assert done.returncode == 0 and done.stdout.count("the same to the bit") == 2, done.stdout + done.stderr

"""The report as a whole: its files, the same bytes from the same runs, nothing unescaped; and the command line."""

from __future__ import annotations

import csv
import os
import random
import re
import subprocess
import sys

import pytest

from tests.report.examples import PROJECT, contents, from_yaml, records, report, rows
from tests.report.scale import make_runs
from xcls.config.schema import UserError
from xcls.report.settings import Settings
from xcls.report.tables import FIRST
from xcls.report.write import write_report

COLUMNS = (
    "run, mode, status, cause, dataset, attention, position, size, seq_len, seed, batch_size, "
    "dtype, device, params, macro_f1, accuracy, weighted_f1, auroc, test_macro_f1, time_per_epoch, "
    "time_per_step, tokens_per_s, max_gpu_mem_MiB, max_rss_MiB, PASS_WNF, PASS_WNF_TEST"
).split(", ")


def test_results_has_the_columns_of_the_design_then_every_hyperparameter(make, tmp_path):
    report(make, tmp_path)
    found = rows(tmp_path / "out" / "results.csv")
    assert list(found[0])[: len(COLUMNS)] == COLUMNS == list(FIRST) and len(found) == 13
    hyper = [name for name in found[0] if "." in name]
    assert hyper == sorted(hyper) and {"finetuning.lr", "attention.name", "baseline.max_iter"} <= set(hyper)
    by_run = {row["run"].partition("/")[2]: row for row in found}
    good, bad = by_run["finetune-performer-rope-tiny-n512-s0"], by_run["finetune-reformer-rope-tiny-n512-s3"]
    assert (good["macro_f1"], good["PASS_WNF"], good["params"], good["batch_size"]) == (
        "0.904",
        "PASS",
        "1000000",
        "32",
    )
    assert (bad["status"], bad["cause"], bad["macro_f1"], bad["PASS_WNF"]) == (
        "failed",
        "NaN in the loss at step 7",
        "",
        "",
    )
    assert by_run["tfidf_logreg-s0-abcdef"]["attention"] == by_run["tfidf_logreg-s0-abcdef"]["attention.name"] == ""


def test_groups_and_claims_files(make, tmp_path):
    report(make, tmp_path)
    groups = {row["label"]: row for row in rows(tmp_path / "out" / "groups.csv")}
    assert {k: (g["n"], g["not_completed"], g["rank"], g["PASS_WNF"]) for k, g in groups.items()} == {
        "sdpa": ("3", "2", "1", "PASS"),
        "performer": ("3", "0", "2", "PASS"),
        "reformer": ("3", "1", "3", "FAIL"),
        "TF-IDF + LogReg": ("1", "0", "", ""),
    }
    assert (
        float(groups["sdpa"]["macro_f1_mean"]) == pytest.approx(0.911) and groups["sdpa"]["macro_f1_sd"][:6] == "0.0010"
    )
    claims = rows(tmp_path / "out" / "wnf.csv")
    (ratio,) = [
        r
        for r in claims
        if (r["label"], r["measured"], r["reference"], r["split"]) == ("performer", "time ratio", "sdpa", "validation")
    ]
    assert (ratio["value"], ratio["threshold"], ratio["margin"], ratio["state"]) == ("0.7", "0.8", "0.1", "PASS")
    fused = {
        r["claim_state"]
        for r in claims
        if r["reference"] == "sdpa_fused" and r["label"] == "performer" and r["claim"] == "WNF-1 cost"
    }
    assert fused == {"MISSING"}


def test_the_same_runs_give_the_same_bytes_in_any_order(make, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    first = report(make, one)
    shuffled = records(make)
    random.Random(1).shuffle(shuffled)
    (two / "out" / "plots").mkdir(parents=True)
    (two / "out" / "plots" / "learning-old.png").write_bytes(b"of an earlier report")
    second = report(make, two, shuffled)
    made = contents(one / "out")
    assert first == second and made == contents(two / "out")
    assert {"results.csv", "groups.csv", "wnf.csv", "report.md", "index.html", "reproduce.sh"} <= set(made)
    assert sorted(name for name in made if name.startswith("plots/")) == [
        "plots/learning-demo.png",
        "plots/quality_vs_rss_growth_MiB-demo.png",
        "plots/quality_vs_time_per_epoch-demo.png",
        "plots/seeds-demo.png",
    ]


def test_the_order_of_the_folders_in_the_list_changes_nothing(make, tmp_path):
    made = records(make)
    make.save(made[:5], tmp_path, sweep="a")
    make.save(made[5:], tmp_path, sweep="b")
    texts = []
    for number, runs in enumerate((["multirun/a", "multirun/b"], ["multirun/b", "multirun/a", "multirun/a"])):
        texts.append(
            write_report(Settings(runs=runs, out=f"out{number}"), root=tmp_path).replace(f"out{number}", "out")
        )
    one, two = contents(tmp_path / "out0"), contents(tmp_path / "out1")
    differ = [name for name in one if one[name].replace(b"out0", b"out") != two[name].replace(b"out1", b"out")]
    assert texts[0] == texts[1] and differ == [] and set(one) == set(two)


def test_what_is_printed(make, tmp_path):
    text = report(make, tmp_path)
    lines = text.splitlines()
    assert lines[0] == "Demonstration: small"
    assert any(re.match(r"\| performer +\| PASS +\| PASS +\| 3 \| 0.905 ± 0.001 .*\(0.70×\)", line) for line in lines)
    assert any(
        line.startswith("demo: performer passes: 30 % less time, 40 % less memory, macro-F1 −0.60 pp") for line in lines
    )
    assert len(lines) <= 20
    assert lines[-1].startswith("13 runs. The page: out/index.html (also: 3 runs ")


def test_report_md_has_headline_matrix_groups_claims_and_the_runs_that_failed(make, tmp_path):
    report(make, tmp_path)
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[4].startswith("performer passes: 30 % less time")
    assert any(re.match(r"\| performer +\| 3 \| 0\.70× \(≤ 0\.8×\) ✓ .*\| PASS +\| PASS", line) for line in lines)
    assert sum(bool(re.search(r"\| (failed|interrupted|running) .*\| multirun/", line)) for line in lines) == 3
    groups, claims = text[text.index("## Groups") :].split("## Claims")
    assert groups.count("\n| ") == 5 and "time_per_epoch_best" in groups
    assert claims.count("\n| ") == 1 + len(rows(tmp_path / "out" / "wnf.csv")) and "| time ratio " in claims


def test_a_lone_run_without_a_baseline_still_has_a_report(make, tmp_path):
    text = report(make, tmp_path, [make.finetune(costs={}, params={}, device={})])
    assert "MISSING" in text and "Only one run of an encoder was found" in text


def test_two_runs_with_different_settings_are_enough(make, tmp_path):
    made = [make.finetune(run="demo/a"), make.finetune(run="demo/b", config={"finetuning.lr": 1e-3})]
    text = report(make, tmp_path, made)
    assert "Only one run" not in text and "lr=0.0005" in text and "lr=0.001" in text


def test_texts_that_a_spreadsheet_would_run_get_an_apostrophe(make, tmp_path):
    evil = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "fine"]
    made = [
        make.finetune(seed=seed, status="failed", cause=cause, config={"=key": cause})
        for seed, cause in enumerate(evil)
    ]
    report(make, tmp_path, made)
    found = rows(tmp_path / "out" / "results.csv")
    assert [row["cause"] for row in found] == [f"'{cause}" for cause in evil[:-1]] + ["fine"] and "'=key" in found[0]
    for file in (tmp_path / "out").glob("*.csv"):
        cells = [cell for row in csv.reader(file.open(newline="", encoding="utf-8")) for cell in row]
        assert [cell for cell in cells if cell[:1] in "=+-@\t\r" and cell and not number(cell)] == []


def number(text):
    return re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text) is not None


def test_a_name_in_a_record_cannot_leave_the_folder_of_the_report(make, tmp_path):
    made = make.seeds("sdpa")
    for record in made:
        record.choices = {**record.choices, "dataset": "../../../evil/\0name"}
    before = set(tmp_path.parent.rglob("*"))
    report(make, tmp_path, made)
    written = {path for path in set(tmp_path.parent.rglob("*")) - before if "multirun" not in path.parts}
    assert written and all(path.is_relative_to(tmp_path / "out") for path in written)


def test_pretraining_runs_alone(make, tmp_path):
    report(make, tmp_path, [make.finetune(mode="pretrain", metrics={"validation": {"val_loss": 3.0}})])
    assert "plots/pretraining.png" in contents(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rank_by": "macrof1"}, "macro_f1"),
        ({"runs": []}, "at least one folder"),
        ({"runs": ["empty"]}, "no record.json"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(tmp_path, change, said):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=said):
        write_report(Settings(**{"runs": ["empty"], "out": "out", **change}), root=tmp_path)
    assert not (tmp_path / "out").exists()


def run(arguments, root, also=""):
    script = f"import runpy, sys\nrunpy.run_path({str(PROJECT / 'report.py')!r}, run_name='__main__')\n{also}"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    environment.pop("HYDRA_FULL_ERROR", None)
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)


def test_the_command_line_makes_the_report_without_torch(make, tmp_path):
    make.save(records(make), tmp_path)
    also = "assert 'torch' not in sys.modules and 'matplotlib' in sys.modules"
    before = set(tmp_path.rglob("*"))
    done = run(
        ["runs=[multirun/demo]", "out=multirun/report", "claims.families.performer.max_loss_pp=0.5"], tmp_path, also
    )
    assert done.returncode == 0, done.stderr
    whole = (tmp_path / "multirun" / "report" / "report.md").read_text(encoding="utf-8")
    assert re.search(r"\| performer .*\| FAIL ", done.stdout) and "0.60 (≤ 0.5) ✗" in whole
    written = set(tmp_path.rglob("*")) - before
    assert {path.relative_to(tmp_path).parts[:2] for path in written} == {("multirun", "report")}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rank_bye=macro_f1"], "rank_bye: unknown key. Did you mean 'rank_by'?"),
        (["+nope=1"], "nope: unknown key."),
        (["+claims.families.performer.max_los_pp=1"], "max_loss_pp"),
        (["claims.families.perfromer.max_loss_pp=1"], "performer.max_loss_pp"),
        (["claims.seq_len=abc"], "claims.seq_len"),
        (["rank_by=speed"], "rank_by=speed: one of"),
        (["runs=[multirun/typo]"], "multirun/typo: no such folder"),
        (["runs=[a, b"], "no such folder"),
        (["-m", "rank_by=auroc,accuracy"], "without -m"),
    ],
    ids=str,
)
def test_bad_input_is_one_message_and_exit_code_2(make, tmp_path, arguments, said):
    done = run(arguments, tmp_path)
    assert done.returncode == 2, done.stderr
    assert (
        said in done.stderr
        and done.stderr.startswith("report.py: ")
        and "Traceback" not in done.stderr
        and done.stdout == ""
    )
    assert list(tmp_path.iterdir()) == []


def test_many_runs_are_all_in_the_tables_and_the_best_in_the_plots(tmp_path):
    make_runs(240, tmp_path)
    write_report(Settings(runs=["multirun"], out="out", claims=from_yaml()), root=tmp_path)
    made = contents(tmp_path / "out")
    assert len(rows(tmp_path / "out" / "results.csv")) == 241 and len(rows(tmp_path / "out" / "groups.csv")) == 81
    assert made["index.html"].decode().count("<td>failed</td>") == 4
    assert len([name for name in made if name.endswith(".png")]) == 4

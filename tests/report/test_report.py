"""The report as a whole: its files, the same bytes from the same runs, nothing unescaped; and the command line."""

from __future__ import annotations

import csv
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from xcls.report.settings import Settings
from xcls.report.tables import FIRST
from xcls.report.write import write_report
from xcls.schema import UserError

PROJECT = Path(__file__).parents[2]
COLUMNS = (
    "run, mode, status, cause, dataset, attention, position, size, seq_len, seed, batch_size, "
    "dtype, device, params, macro_f1, accuracy, weighted_f1, auroc, test_macro_f1, time_per_epoch, "
    "time_per_step, tokens_per_s, max_gpu_mem_MiB, max_rss_MiB, PASS_WNF, PASS_WNF_TEST"
).split(", ")
EVIL = '<script>alert("x")</script> & more'


def records(make):
    return [
        *make.seeds("sdpa", (0.910, 0.912, 0.911), study="Demonstration: small"),
        *make.seeds("performer", (0.904, 0.905, 0.906), time=7.0, memory=60.0),
        *make.seeds("reformer", (0.85, 0.86, 0.87)),
        make.finetune("reformer", 3, status="failed", cause="NaN in the loss at step 7", metrics={}, costs={}),
        make.finetune("sdpa", 3, status="interrupted", cause="SIGTERM", metrics={}),
        make.finetune("sdpa", 4, status="running", metrics={}),
        make.baseline(0.855),
    ]


def report(make, root, made=None):
    make.save(records(make) if made is None else made, root)
    settings = Settings(runs=["multirun"], out="out", claims=from_yaml())
    return write_report(settings, root=root)


def from_yaml():
    import yaml

    from xcls.report.settings import claims_from
    from xcls.schema import flatten

    return claims_from(flatten(yaml.safe_load((PROJECT / "conf" / "report.yaml").read_text())["claims"]))


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


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
    assert first == second and contents(one / "out") == contents(two / "out")
    assert len(contents(one / "out")) == 9  # three CSV files, report.md, index.html, reproduce.sh, three plots


def test_what_is_printed(make, tmp_path):
    text = report(make, tmp_path)
    lines = text.splitlines()
    assert lines[0] == "Demonstration: small"
    assert any(re.match(r"\| performer +\| 3 \| 0.905 ± 0.001 .*\(0.70×\).*\| PASS ", line) for line in lines)
    assert (
        "- performer takes 30 % less time per epoch and 40 % less memory at −0.60 pp macro-F1 against sdpa (n = 3). "
        "It passes." in lines
    )
    assert any(line.startswith("- TF-IDF + LogReg reaches 0.855") for line in lines)
    assert sum("| failed " in line or "| interrupted " in line or "| running " in line for line in lines) == 3
    assert lines[-1].endswith("The page: out/index.html")


def test_nothing_from_a_record_reaches_the_page_unescaped(make, tmp_path):
    made = [
        make.finetune(seed=s, study=EVIL, config={EVIL: EVIL}, versions={"torch": EVIL}, commit=EVIL) for s in range(3)
    ]
    made.append(make.finetune(seed=3, status="failed", cause=EVIL, config={"finetuning.lr": EVIL}))
    for record in made:
        record.choices = {**record.choices, "attention": EVIL, "dataset": EVIL}
        record.device = {**record.device, "name": EVIL}
    report(make, tmp_path, made)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") > 8


def test_the_page_stands_alone_and_says_the_answer_first(make, tmp_path):
    report(make, tmp_path)
    page = (tmp_path / "out" / "index.html").read_text()
    assert not re.search(r'(src|href)=(?!"data:)', page) and "url(" not in page and "@import" not in page
    assert page.count("data:image/png;base64,") == 3
    order = [
        "Demonstration: small",
        "performer takes 30 % less time",
        "<table>",
        "<img",
        "did not complete",
        "finetuning.lr",
        "torch 2.13.0",
    ]
    places = [page.find(words) for words in order]
    assert places == sorted(places) and places[0] > 0


def test_a_lone_run_without_a_baseline_still_has_a_report(make, tmp_path):
    text = report(make, tmp_path, [make.finetune(costs={}, params={}, device={})])
    assert "MISSING" in text and "No mechanism can be compared with sdpa yet" in text


def test_pretraining_runs_alone(make, tmp_path):
    report(make, tmp_path, [make.finetune(mode="pretrain", metrics={"validation": {"val_loss": 3.0}})])
    assert "plots/pretraining.png" in contents(tmp_path / "out")


def test_curves_of_a_changed_file_are_not_drawn(make, tmp_path):
    sweep = make.save([make.finetune()], tmp_path)
    (table,) = sweep.rglob("metrics.csv")
    table.write_text("step,epoch,macro_f1\n1,1,0.999\n")
    write_report(Settings(runs=[str(sweep)], out="out"), root=tmp_path)
    assert "plots/learning-demo.png" not in contents(tmp_path / "out")


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
    assert re.search(r"\| performer .*\| FAIL ", done.stdout) and "loss (pp) 0.600, ≤ 0.5 is claimed" in done.stdout
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
        (["runs=[a, b"], "without blanks"),
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

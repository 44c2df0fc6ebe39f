"""The further tables: ranks, modifications, costs, and how runs ended."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.report.examples import board_of, from_yaml, rows, study_of
from tests.report.predicted import sweep
from xcls.report.claims import FAIL
from xcls.report.comparisons import bills_of, further_tables, modifications
from xcls.report.conditions import unlike_groups
from xcls.report.load import KILLED, collect, final_status, held
from xcls.report.measures import survived
from xcls.report.settings import Cost, Settings
from xcls.report.tables import claim_rows
from xcls.report.text import unfinished
from xcls.report.write import write_report

ORIGINALS = {"smyrf": "reformer"}


def rows_of(made, name):
    return next(one for one in made if one.name == name and one.board is None).rows


def test_ranks_leave_out_what_failed_and_what_was_not_measured(make, tmp_path):
    records = [
        *make.seeds("sdpa", (0.90, 0.92), time=9.0),
        *make.seeds("performer", (0.93, 0.93), time=5.0),
        make.finetune("reformer", status="failed", cause="OOM", metrics={}),
        make.baseline(0.95),
    ]
    ranks = {row["mechanism"]: row for row in rows_of(further_tables(study_of(make, tmp_path, records)), "ranking")}
    assert {name: (row["macro_f1"], row["time_per_epoch"], row["n"]) for name, row in ranks.items()} == {
        "TF-IDF + LogReg": (1, None, 1),
        "performer": (2, 1, 2),
        "sdpa": (3, 2, 2),
    }


def test_costs_rank_within_a_device_and_money_over_all(make, tmp_path):
    def costs(seconds):
        return {"time_per_epoch": seconds, "wall_seconds": seconds}

    records = [
        make.finetune("sdpa", costs=costs(9.0)),
        make.finetune("performer", costs=costs(5.0), device={"name": "B"}),
    ]
    made = further_tables(study_of(make, tmp_path, records, cost=Cost(price_per_hour=1.0)))
    found = [(row["time_per_epoch"], row["train_hours"], row["train_money"]) for row in rows_of(made, "ranking")]
    assert sorted(found) == [(1, 1, 1), (1, 1, 2)]


def test_a_modification_stands_beside_every_original_it_has(make, tmp_path):
    names = ["performer", "performer_band", "performer_band_oprf", "reformer", "smyrf", "window"]
    records = [make.finetune(name, macro_f1=0.9 + 0.01 * place, time=10.0 + place) for place, name in enumerate(names)]
    made = study_of(make, tmp_path, [*records, make.finetune("performer_relu", seq_len=64)])
    found = modifications(made.boards[0], made.judge, ORIGINALS)
    assert [(row["mechanism"].split()[0], row["original"].split()[0]) for row in found] == [
        ("performer_band", "performer"),
        ("performer_band_oprf", "performer"),
        ("performer_band_oprf", "performer_band"),
        ("smyrf", "reformer"),
    ]
    assert found[0]["macro_f1_pp"] == pytest.approx(1.0) and found[0]["time_ratio"] == pytest.approx(1.1)
    assert (found[0]["n"], found[0]["n_original"]) == (1, 1) and "names no predictions" in found[0]["no_interval"]


def test_costs_under_other_versions_are_not_compared_in_silence(make, tmp_path):
    new = {"torch": "2.14.0"}
    records = [*make.seeds("sdpa"), *make.seeds("performer", time=5.0, versions=new), make.baseline(0.8)]
    made = study_of(make, tmp_path, records)
    board, groups = board_of(made)
    told = "torch 2.14.0 against 2.13.0"
    assert unlike_groups(groups["performer"], groups["sdpa"]) == [told]
    measured = {
        row["measured"]: row["measured_differently"]
        for row in claim_rows(made, [board], ["sdpa"], ["validation"])
        if row["label"] == "performer"
    }
    assert measured["time ratio"] == told and measured["macro-F1 loss (pp)"] is None


def test_the_costs_of_the_whole_are_in_one_table(make, tmp_path):
    fine = {
        "wall_seconds": 3600.0,
        "inference_examples_per_s": 100.0,
        "tokenize_ms_per_example": 10.0,
        "latency_ms": 7.0,
    }
    base = make.baseline(0.8, costs={"train_seconds": 36.0, "inference_examples_per_s": 1000.0})
    records = [
        make.finetune("sdpa", costs=fine),
        make.finetune("performer", costs={**fine, "wall_seconds": 1800.0}),
        base,
    ]
    made = study_of(make, tmp_path, records, cost=Cost(price_per_hour=2.0, watts=50.0, currency="CHF"))
    table = {row["mechanism"]: row for row in rows_of(further_tables(made), "costs")}
    own = table["performer"]
    assert (own["train_hours"], own["train_CHF"], own["train_kWh"], own["latency_ms"]) == (0.5, 1.0, 0.025, 7.0)
    assert own["million_documents_hours"] == pytest.approx(0.02e6 / 3600)
    assert own["million_documents_CHF"] == pytest.approx(0.02e6 / 3600 * 2)
    assert own["pays_against_reference"] == "from the first document"
    assert own["pays_against_baseline"].startswith("never") and table["TF-IDF + LogReg"]["train_CHF"] == 0.02
    assert bills_of(made, made.boards[0]).keys() == {g.id for g in [*made.boards[0].groups, *made.boards[0].baselines]}


HOLD = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"


def test_a_run_that_nobody_holds_was_killed(make, tmp_path):
    made = [make.finetune(seed=seed, status="running", step=12, steps=40, metrics={}) for seed in range(3)]
    folder = make.save(made, tmp_path)
    locks = [folder / record.run / ".lock" for record in made[:2]]
    for lock in locks:
        lock.touch()
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(locks[1])], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        found = collect([folder], tmp_path)
        told = {run.record.seed: final_status(run) for run in found.runs}
        assert [held(folder / record.run) for record in made] == [False, True, None]
    finally:
        process.kill()
        process.communicate()
    assert told[0][0] == KILLED and "after step 12 of 40" in told[0][1]
    assert told[1] == told[2] == ("running", "")  # alive; and one whose lock did not come along
    assert held(folder / made[1].run) is False  # its process is dead now


def test_killed_and_unreadable_runs_are_listed_with_cause_and_folder_and_nowhere_else(make, tmp_path):
    dead = make.finetune("performer", 3, status="running", macro_f1=0.1, step=3, steps=9)
    folder = make.save(
        [*make.seeds("performer"), dead, make.finetune("reformer", status="failed", cause="OOM", metrics={})], tmp_path
    )
    (folder / dead.run / ".lock").touch()
    (folder / "broken").mkdir()
    (folder / "broken" / "record.json").write_text("{")
    listed = {row[-1]: row for row in unfinished(collect([folder], tmp_path))[1]}
    assert {place.rpartition("/")[2]: row[1] for place, row in listed.items()} == {
        dead.run.rpartition("/")[2]: "killed",
        "finetune-reformer-rope-tiny-n512-s0": "failed",
        "broken": "unreadable",
    }
    write_report(Settings(runs=["multirun"], out="out", claims=from_yaml()), root=tmp_path)
    (result,) = [row for row in rows(tmp_path / "out" / "results.csv") if row["seed"] == "3"]
    assert result["status"] == "killed" and "no process holds" in result["cause"] and result["PASS_WNF"] == ""
    (group,) = [row for row in rows(tmp_path / "out" / "groups.csv") if row["label"] == "performer"]
    assert (group["n"], group["not_completed"], float(group["macro_f1_mean"])) == ("3", "1", pytest.approx(0.9))
    assert [row["mechanism"] for row in rows(tmp_path / "out" / "ranking.csv")] == ["performer"]


@pytest.mark.parametrize("kind", ["bad_step", "restart", "halved"])
def test_what_a_run_survived_fails_its_stability(make, judged, kind):
    faulty = [{"kind": kind, "step": 7, "cause": "NaN: the loss"}]
    records = [*make.seeds("sdpa"), make.baseline(0.8)]
    assert judged(records, "sdpa").state == "PASS"
    records[1].faults = faulty
    verdict = judged(records, "sdpa")
    claim = next(claim for claim in verdict.claims if claim.code == "WNF-2 stability")
    assert (claim.state, verdict.state) == (FAIL, FAIL)
    assert claim.reason == f"seed 1: {kind} at step 7: NaN: the loss" and survived(records[0]) == []


def test_all_tables_come_in_every_form_from_the_same_rows(make, tmp_path):
    sweep(make, tmp_path, rows=60, skills={"sdpa": 1.5, "performer": 1.4, "performer_band": 1.6, "baseline": 0.8})
    settings = Settings(runs=["multirun"], out="out", claims=from_yaml())
    write_report(settings, root=tmp_path)
    page, text = ((tmp_path / "out" / name).read_text() for name in ("index.html", "report.md"))
    for name, title in (
        ("differences", "Differences of macro-F1"),
        ("costs", "What it costs"),
        ("ranking", "Ranks"),
        ("modifications", "Modifications beside their originals"),
    ):
        assert rows(tmp_path / "out" / f"{name}.csv") and title in page and f"demo: {title}" in text
    first = rows(tmp_path / "out" / "differences.csv")[0]
    shown = f"{float(first['interval_low']):.4g}"
    assert shown in text and shown in page

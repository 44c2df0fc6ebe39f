"""The further tables: ranks, modifications, mode=bench beside the runs, costs, and how runs ended."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from tests.report.predicted import sweep
from tests.report.test_report import from_yaml, rows
from xcls.report.aggregate import group_runs, make_boards, survived
from xcls.report.bench_ratio import agree, measured
from xcls.report.circumstances import unlike_groups
from xcls.report.collect import collect
from xcls.report.compare import claims_table, unfinished
from xcls.report.differences import Differences
from xcls.report.endings import KILLED, ending, held
from xcls.report.ranking import modifications
from xcls.report.settings import Cost, Intervals, Settings
from xcls.report.sheets import Context, bills_of, disagreements, further_sheets
from xcls.report.verdict import FAIL, Judge
from xcls.report.write import claims_for, write_report

ORIGINALS = {"smyrf": "reformer"}


def context(make, root, records, *, benches=(), **settings):
    found = collect([make.save(records, root)], root)
    boards = make_boards(group_runs(found), "macro_f1")
    judge = Judge(claims_for(asdict(from_yaml()), ()), Differences(settings=Intervals()))
    given = Settings(originals=ORIGINALS, **settings)
    return Context(boards, judge, ["sdpa", "sdpa_fused"], found, benches, given)


def sheet(made, name):
    return next(one for one in made if one.name == name and one.board is None).rows


def test_ranks_leave_out_what_failed_and_what_was_not_measured(make, tmp_path):
    records = [
        *make.seeds("sdpa", (0.90, 0.92), time=9.0), *make.seeds("performer", (0.93, 0.93), time=5.0),
        make.finetune("reformer", status="failed", cause="OOM", metrics={}), make.baseline(0.95),
    ]  # fmt: skip
    ranks = {row["mechanism"]: row for row in sheet(further_sheets(context(make, tmp_path, records)), "ranking")}
    assert {name: (row["macro_f1"], row["time_per_epoch"], row["n"]) for name, row in ranks.items()} == {
        "TF-IDF + LogReg": (1, None, 1), "performer": (2, 1, 2), "sdpa": (3, 2, 2),
    }  # fmt: skip


def test_costs_rank_within_a_device_and_money_over_all(make, tmp_path):
    def costs(seconds):
        return {"time_per_epoch": seconds, "wall_seconds": seconds}

    records = [make.finetune("sdpa", costs=costs(9.0)), make.finetune("performer", costs=costs(5.0), device={"name": "B"})]
    made = further_sheets(context(make, tmp_path, records, cost=Cost(price_per_hour=1.0)))
    found = [(row["time_per_epoch"], row["train_hours"], row["train_money"]) for row in sheet(made, "ranking")]
    assert sorted(found) == [(1, 1, 1), (1, 1, 2)]


def test_a_modification_stands_beside_every_original_it_has(make, tmp_path):
    names = ["performer", "performer_band", "performer_band_oprf", "reformer", "smyrf", "window"]
    records = [make.finetune(name, macro_f1=0.9 + 0.01 * place, time=10.0 + place) for place, name in enumerate(names)]
    made = context(make, tmp_path, [*records, make.finetune("performer_relu", seq_len=64)])
    found = modifications(made.boards[0], made.judge, ORIGINALS)
    assert [(row["mechanism"].split()[0], row["original"].split()[0]) for row in found] == [
        ("performer_band", "performer"), ("performer_band_oprf", "performer"),
        ("performer_band_oprf", "performer_band"), ("smyrf", "reformer"),
    ]  # fmt: skip
    assert found[0]["macro_f1_pp"] == pytest.approx(1.0) and found[0]["time_ratio"] == pytest.approx(1.1)
    assert (found[0]["n"], found[0]["n_original"]) == (1, 1) and "names no predictions" in found[0]["no_interval"]


def bench_of(root, *, training=(100.0, 80.0), device="a test CPU", part="step", torch="2.13.0", name="b", **changes):
    nodes = {
        "sdpa": {"name": "sdpa", "_target_": "xcls.attention.sdpa.X"},
        "performer": {"name": "performer_favor", "_target_": "xcls.attention.performer.X"},
    }
    common = {
        "origin": "xcls", "part": part, "position": "rope", "seq_len": 512, "dtype": "fp32", "batch": 16, "rounds": 7,
        "compile": False, "status": "completed", **changes,
    }  # fmt: skip
    made = {
        "device": {"kind": "cpu", "name": device, "threads": 1}, "versions": {"torch": torch}, "attentions": nodes,
        "settings": {"width": 128, "num_heads": None, "num_layers": None},
        "rows": [
            {**common, "mechanism": mechanism, "training_ms": ms, "training_MiB": 10.0}
            for mechanism, ms in zip(nodes, training)
        ],
    }  # fmt: skip
    folder = root / "multirun" / "bench" / name
    folder.mkdir(parents=True)
    (folder / "bench.json").write_text(json.dumps(made), encoding="utf-8")


def both(make, root, **options):
    """The groups of performer and sdpa, and the measurement that stands beside them."""
    records = [make.finetune("sdpa"), make.finetune("performer", **options)]
    made = context(make, root, records)
    groups = {group.label: group for group in made.boards[0].groups}
    return measured(groups["performer"], groups["sdpa"], collect([root / "multirun" / "bench"], root).benches)


def test_the_likest_measurement_stands_beside_the_runs(make, tmp_path):
    bench_of(tmp_path, part="core", training=(100.0, 50.0), name="a")
    bench_of(tmp_path, training=(100.0, 80.0), name="b")
    found, reason = both(make, tmp_path)
    assert (found.time, found.memory, found.place, reason) == (0.8, 1.0, "multirun/bench/b", "")
    assert found.unlike == () and found.what.startswith("step, ")


def test_whole_trainings_are_liker_still_and_compared_round_by_round(make, tmp_path):
    bench_of(tmp_path)
    bench_of(tmp_path, name="t", part=None, stage="finetune")
    path = tmp_path / "multirun" / "bench" / "t" / "bench.json"
    data = json.loads(path.read_text())
    data["size"] = {"width": 128}
    for row, speeds in zip(data["rows"], ([10.0, 20.0, 10.0], [20.0, 30.0, 50.0])):
        row.update(contender=row.pop("mechanism"), speeds=speeds, memory_MiB=5.0)
    path.write_text(json.dumps(data))
    found, _ = both(make, tmp_path)
    assert found.place == "multirun/bench/t" and found.time == 0.5  # the ratios of the rounds: 1/2, 2/3, 1/5


@pytest.mark.parametrize(
    "change",
    [{"seq_len": 1024}, {"dtype": "bf16"}, {"status": "failed"}, {"device": "another CPU"}, {"origin": "performer-pytorch"}],
    ids=lambda change: next(iter(change)),
)
def test_a_measurement_under_other_conditions_does_not_count(make, tmp_path, change):
    bench_of(tmp_path, **change)
    found, reason = both(make, tmp_path)
    assert found is None and reason.startswith("not measured at 512 tokens in fp32")
    assert ("another CPU" in reason) == ("device" in change)


def test_other_settings_of_a_mechanism_are_another_mechanism(make, tmp_path):
    bench_of(tmp_path)
    assert both(make, tmp_path, config={"attention.num_features": 64})[0] is None


def test_what_differs_otherwise_is_said(make, tmp_path):
    bench_of(tmp_path, torch="2.12.0", position="none", compile=True)
    found, _ = both(make, tmp_path)
    assert found.unlike == (
        "compile False in the runs, True in the bench", "torch 2.13.0 in the runs, 2.12.0 in the bench",
        "position rope in the runs",
    )  # fmt: skip


def test_a_disagreement_is_told(make, tmp_path):
    assert (agree(0.8, 0.7), agree(1.2, 1.0), agree(None, 0.5)) == ("yes", "yes", "")
    assert agree(1.1, 0.9) == "no: the runs say dearer, the bench cheaper"
    bench_of(tmp_path, training=(100.0, 120.0))
    records = [make.finetune("sdpa"), make.finetune("performer", time=8.0)]
    benches = collect([tmp_path / "multirun" / "bench"], tmp_path).benches
    made = further_sheets(context(make, tmp_path, records, benches=benches))
    (row,) = [row for row in sheet(made, "bench_ratios") if row["mechanism"] == "performer"]
    assert (row["time_ratio"], row["bench_time_ratio"]) == (0.8, 1.2) and row["agree"].startswith("no: the runs say cheaper")
    (told,) = disagreements(made)
    assert told.startswith("performer against sdpa: the time ratio of the runs is 0.80, that of mode=bench 1.20")


def test_costs_under_other_versions_are_not_compared_in_silence(make, tmp_path):
    new = {"torch": "2.14.0"}
    records = [*make.seeds("sdpa"), *make.seeds("performer", time=5.0, versions=new), make.baseline(0.8)]
    made = context(make, tmp_path, records)
    board = made.boards[0]
    groups = {group.label: group for group in board.groups}
    told = "torch 2.14.0 against 2.13.0"
    assert unlike_groups(groups["performer"], groups["sdpa"]) == [told]
    header, table = claims_table(board, made.judge, "sdpa", "validation")
    reasons = {(row[0], row[header.index("measured")]): row[-1] for row in table}
    assert f"measured differently: {told}" in reasons["performer", "time ratio"]
    assert told not in reasons["performer", "macro-F1 loss (pp)"]


def test_the_costs_of_the_whole_are_in_one_table(make, tmp_path):
    fine = {"wall_seconds": 3600.0, "inference_examples_per_s": 100.0, "tokenize_ms_per_example": 10.0, "latency_ms": 7.0}
    base = make.baseline(0.8, costs={"train_seconds": 36.0, "inference_examples_per_s": 1000.0})
    records = [make.finetune("sdpa", costs=fine), make.finetune("performer", costs={**fine, "wall_seconds": 1800.0}), base]
    made = context(make, tmp_path, records, cost=Cost(price_per_hour=2.0, watts=50.0, currency="CHF"))
    table = {row["mechanism"]: row for row in sheet(further_sheets(made), "costs")}
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
        told = {run.record.seed: ending(run) for run in found.runs}
        assert [held(folder / record.run) for record in made] == [False, True, None]
    finally:
        process.kill()
        process.communicate()
    assert told[0][0] == KILLED and "after step 12 of 40" in told[0][1]
    assert told[1] == told[2] == ("running", "")  # alive; and one whose lock did not come along
    assert held(folder / made[1].run) is False  # its process is dead now


def test_killed_and_unreadable_runs_are_listed_with_cause_and_folder_and_nowhere_else(make, tmp_path):
    dead = make.finetune("performer", 3, status="running", macro_f1=0.1, step=3, steps=9)
    folder = make.save([*make.seeds("performer"), dead, make.finetune("reformer", status="failed", cause="OOM", metrics={})], tmp_path)
    (folder / dead.run / ".lock").touch()
    (folder / "broken").mkdir()
    (folder / "broken" / "record.json").write_text("{")
    listed = {row[-1]: row for row in unfinished(collect([folder], tmp_path))[1]}
    assert {place.rpartition("/")[2]: row[1] for place, row in listed.items()} == {
        dead.run.rpartition("/")[2]: "killed", "finetune-reformer-rope-tiny-n512-s0": "failed", "broken": "unreadable",
    }  # fmt: skip
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
        ("differences", "Differences of macro-F1"), ("costs", "What it costs"), ("ranking", "Ranks"),
        ("modifications", "Modifications beside their originals"),
    ):  # fmt: skip
        assert rows(tmp_path / "out" / f"{name}.csv") and title in page and f"demo: {title}" in text
    first = rows(tmp_path / "out" / "differences.csv")[0]
    shown = f"{float(first['interval_low']):.4g}"
    assert shown in text and shown in page

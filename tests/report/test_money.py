"""Time, money and energy; numbers computed by hand."""

from __future__ import annotations

import pytest

from tests.report.examples import rows
from xcls.config.schema import UserError
from xcls.report.costs import bill, break_even, count_children, pays
from xcls.report.groups import group_runs, results_by_dataset
from xcls.report.load import collect
from xcls.report.settings import Cost, Price, Settings, check_numbers
from xcls.report.write import write_report

FINE = {"wall_seconds": 3600.0, "inference_examples_per_s": 100.0, "tokenize_ms_per_example": 10.0}


def bills(make, root, records, cost=Cost()):
    """Label -> (group, bill)."""
    found = collect([make.save(records, root)], root)
    (board,) = results_by_dataset(group_runs(found), "macro_f1")
    children = count_children([run.record for run in found.runs])
    groups = [*board.groups, *board.baselines]
    return {g.label: (g, bill(g, parents=found.parents, children=children, cost=cost)) for g in groups}


def parent_of(make, seed=0, wall=7200.0, **fields):
    return make.finetune(
        "sdpa", seed, mode="pretrain", run=f"p{seed}", metrics={}, costs={"wall_seconds": wall}, **fields
    )


def child(make, seed, parent, **options):
    return make.finetune("sdpa", seed, pretrain={"folder": "x", "hash": parent.hash}, costs=dict(FINE), **options)


def test_pretraining_counts_in_full_and_its_share_is_told(make, tmp_path):
    parent = parent_of(make)
    records = [parent, *(child(make, seed, parent) for seed in range(3))]
    cost = Cost(price_per_hour=0.5, watts=100.0)
    _, own = bills(make, tmp_path, records, cost)["sdpa"]
    assert (own.finetune_s, own.pretrain_s, own.train_s, own.shared_s) == (3600.0, 7200.0, 10800.0, 2400.0)
    assert own.train_money == pytest.approx(3 * 0.5) and own.train_wh == pytest.approx(300.0)


def test_a_document_costs_its_tokenisation_and_its_share_of_a_batch(make, tmp_path):
    _, own = bills(make, tmp_path, [make.finetune(costs=dict(FINE))], Cost(price_per_hour=3.6, watts=36.0))["sdpa"]
    assert own.document_s == pytest.approx(0.02) and own.pretrain_s == 0
    assert own.document_money == pytest.approx(0.02 * 0.001) and own.document_wh == pytest.approx(0.02 * 0.01)


def test_what_was_not_measured_is_missing(make, tmp_path):
    _, own = bills(make, tmp_path, [make.finetune(step=20)])["sdpa"]  # an old record: 0.1 s a step
    assert own.train_s == pytest.approx(2.0)
    assert (own.document_s, own.train_money, own.train_wh) == (None, None, None)
    gone = make.finetune(pretrain={"folder": "nowhere", "hash": "ab"}, costs=dict(FINE))
    _, own = bills(make, tmp_path / "b", [gone], Cost(price_per_hour=1.0))["sdpa"]
    assert (own.finetune_s, own.pretrain_s, own.train_s, own.train_money) == (3600.0, None, None, None)


def test_a_gpu_s_own_meter_wins_over_watts(make, tmp_path):
    costs = {**FINE, "energy_wh": 80.0}
    _, own = bills(make, tmp_path, [make.finetune(costs=costs)], Cost(watts=400.0))["sdpa"]
    assert own.train_wh == 80.0 and own.document_wh == pytest.approx(0.02 * 80 / 3600)


def test_machines_have_prices_of_their_own(make, tmp_path):
    cost = Cost(price_per_hour=1.0, devices={"A100": Price(4.0, 400.0), "A100 80GB": Price(5.0, None)})
    records = [
        make.finetune(costs=dict(FINE), device={"kind": "cuda", "name": "NVIDIA A100 80GB"}),
        make.finetune("performer", costs=dict(FINE)),
    ]
    made = bills(make, tmp_path, records, cost)
    assert {own.train_money for _, own in made.values()} == {5.0, 1.0}


def test_a_baseline_is_its_fit_and_reads_text(make, tmp_path):
    base = make.baseline(costs={"train_seconds": 2.0, "wall_seconds": 60.0, "inference_examples_per_s": 1000.0})
    _, own = bills(make, tmp_path, [base, make.finetune()])["TF-IDF + LogReg"]
    assert (own.train_s, own.document_s) == (2.0, 0.001)


@pytest.mark.parametrize(
    ("mine", "other", "documents", "words"),
    [
        ((10.0, 1.0), (4.0, 3.0), 3.0, "after 3 documents"),
        ((4.0, 1.0), (10.0, 3.0), 0.0, "from the first document"),
        ((4.0, 3.0), (10.0, 1.0), 3.0, "only up to 3 documents"),
        ((10.0, 3.0), (4.0, 1.0), None, "never: it costs no less to train, and no less to run"),
        ((10.0, 1.0), (4.0, 1.0), None, "never: it costs no less to train, and no less to run"),
        ((4.0, 1.0), (4.0, 1.0), 0.0, "equal"),
    ],
)
def test_break_even(mine, other, documents, words):
    assert break_even(mine, other) == (documents, words)


def test_break_even_is_in_money_else_in_time_on_one_device(make, tmp_path):
    quick = {**FINE, "wall_seconds": 7200.0, "inference_examples_per_s": 1000.0}
    records = [make.finetune(costs=dict(FINE)), make.finetune("performer", costs=quick)]
    (one, first), (two, second) = (bills(make, tmp_path, records)[name] for name in ("performer", "sdpa"))
    documents, words = pays(one, two, first, second)
    assert documents == pytest.approx(3600 / 0.009) and words == "after 400,000 documents, by time"
    dear = Cost(price_per_hour=9.0)
    (one, first), (two, second) = (bills(make, tmp_path, records, dear)[name] for name in ("performer", "sdpa"))
    assert pays(one, two, first, second)[1] == "after 400,000 documents"


def test_times_on_different_devices_are_not_set_against_each_other(make, tmp_path):
    records = [make.finetune(costs=dict(FINE)), make.finetune("performer", costs=dict(FINE), device={"name": "B"})]
    made = list(bills(make, tmp_path, records).values())
    (one, first), (two, second) = made
    documents, words = pays(one, two, first, second)
    assert documents is None and "without prices" in words and "device" in words


@pytest.mark.parametrize(
    ("cost", "key"),
    [
        (Cost(price_per_hour=-1.0), "cost.price_per_hour"),
        (Cost(devices={"T4": Price(watts=float("nan"))}), "cost.devices.T4.watts"),
    ],
)
def test_impossible_prices_are_refused(cost, key):
    with pytest.raises(UserError, match=key):
        check_numbers(Settings(cost=cost))


def test_the_tuned_baseline_has_its_cost_and_it_is_said_who_pays_what(make, tmp_path):
    base = make.baseline(costs={"train_seconds": 2.0, "tuned.train_seconds": 7200.0})
    make.save([base, *make.seeds("sdpa")], tmp_path)
    write_report(Settings(runs=["multirun"], out="out", cost=Cost(price_per_hour=0.5, watts=100.0)), root=tmp_path)
    costs = {row["mechanism"]: row for row in rows(tmp_path / "out" / "costs.csv")}
    tuned = costs["TF-IDF + LogReg, tuned"]
    assert (tuned["train_hours"], tuned["train_EUR"], tuned["train_kWh"], tuned["dataset"]) == (
        "2.0",
        "1.0",
        "0.2",
        "demo",
    )
    assert tuned["macro_f1"] == "0.87" and tuned["million_documents_hours"] == ""
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "a baseline pays its fit alone, the tuned one every fit that was tried" in page
    assert "<td>7,200 in all</td>" in page.replace(' class="num"', "").replace(' data-v="7200.0"', "")

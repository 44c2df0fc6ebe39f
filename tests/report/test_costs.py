"""Time, money and energy; numbers computed by hand."""

from __future__ import annotations

import pytest

from tests.report.examples import report, rows
from xcls.config.schema import UserError
from xcls.report.costs import break_even
from xcls.report.settings import Cost, Price, Settings, check

FINE = {"wall_seconds": 3600.0, "inference_examples_per_s": 100.0, "tokenize_ms_per_example": 10.0}


def costs_of(make, root, records, cost=Cost()):
    """Mechanism -> row of costs.csv."""
    report(make, root, records, cost=cost)
    return {row["mechanism"]: row for row in rows(root / "out" / "costs.csv")}


def numbers(row, *names):
    return [float(row[name]) for name in names]


def test_pretraining_counts_in_full(make, tmp_path):
    parent = make.finetune(mode="pretrain", run="p", metrics={}, costs={"wall_seconds": 7200.0})
    origin = {"folder": "x", "hash": parent.hash}
    children = [make.finetune(seed=seed, pretrain=origin, costs=dict(FINE)) for seed in range(3)]
    own = costs_of(make, tmp_path, [parent, *children], Cost(price_per_hour=0.5, watts=100.0))["sdpa"]
    assert numbers(own, "finetune_hours", "pretrain_hours", "train_hours") == pytest.approx([1.0, 2.0, 3.0])
    assert numbers(own, "train_EUR", "train_kWh") == pytest.approx([1.5, 0.3])
    gone = make.finetune(pretrain={"folder": "nowhere", "hash": "ab"}, costs=dict(FINE))
    own = costs_of(make, tmp_path / "b", [gone], Cost(price_per_hour=1.0))["sdpa"]
    assert (own["finetune_hours"], own["train_hours"], own["train_EUR"]) == ("1.0", "", "")


def test_a_baseline_is_its_fit_alone(make, tmp_path):
    costs = {"train_seconds": 36.0, "tuned.train_seconds": 7200.0, "inference_examples_per_s": 1000.0}
    made = costs_of(make, tmp_path, [make.baseline(costs=costs), *make.seeds("sdpa")], Cost(price_per_hour=0.5))
    assert list(made) == ["sdpa", "TF-IDF + LogReg"]
    assert numbers(made["TF-IDF + LogReg"], "train_hours", "documents_per_s") == [0.01, 1000.0]


@pytest.mark.parametrize(
    ("mine", "other", "documents"),
    [
        ((10.0, 1.0), (4.0, 3.0), 3.0),
        ((4.0, 1.0), (10.0, 3.0), 0.0),  # from the first document
        ((4.0, 3.0), (10.0, 1.0), 3.0),  # only up to these
        ((10.0, 3.0), (4.0, 1.0), None),  # never
        ((10.0, 1.0), (4.0, 1.0), None),
        ((4.0, 1.0), (4.0, 1.0), 0.0),
    ],
)
def test_break_even(mine, other, documents):
    assert break_even(mine, other)[0] == documents


@pytest.mark.parametrize(
    ("cost", "device", "documents"),
    [(Cost(), {}, 4e5), (Cost(price_per_hour=9.0), {}, 4e5), (Cost(), {"name": "B"}, None)],
)
def test_break_even_is_in_money_else_in_time_on_one_device(make, tmp_path, cost, device, documents):
    quick = {**FINE, "wall_seconds": 7200.0, "inference_examples_per_s": 1000.0}
    base = make.baseline(costs={**FINE, "train_seconds": 7.2}, device={"name": "a test CPU"})
    records = [make.finetune("performer", costs=quick, device=device), base]
    own = costs_of(make, tmp_path, records, cost)["performer"]
    assert own["documents_to_pay_against_baseline"] == ""  # a document takes 0.011 s, with the baseline 0.01 s
    base.costs["inference_examples_per_s"] = 100 / 2.9  # now 0.029 s: 7,192.8 s more to train, 0.018 s less for each
    told = costs_of(make, tmp_path, records, cost)["performer"]["documents_to_pay_against_baseline"]
    assert (float(told) if told else None) == (documents and pytest.approx(documents, rel=0.01))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (Settings(cost=Cost(price_per_hour=-1.0)), "cost.price_per_hour"),
        (Settings(cost=Cost(devices={"T4": Price(watts=float("nan"))})), "cost.devices.T4.watts"),
    ],
)
def test_impossible_prices_are_refused(settings, key):
    with pytest.raises(UserError, match=key):
        check(settings)

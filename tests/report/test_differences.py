"""Intervals between groups: what they tell, and what is said where there can be none."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT
from tests.report.predicted import examples, guess, sweep, with_predictions
from xcls.config.schema import UserError
from xcls.report.claims import ClaimEvaluator
from xcls.report.groups import group_runs, results_by_dataset
from xcls.report.intervals import BROKEN, HOLDS, OPEN, Differences, Interval
from xcls.report.load import Found, Run, collect
from xcls.report.predictions import Unusable, read_predictions
from xcls.report.settings import Intervals, Settings, check_numbers
from xcls.report.write import claims_for
from xcls.runs.record import sha256, write_record

SKILLS = {"sdpa": 1.6, "performer": 1.5, "baseline": 0.8}
DEFAULT = Intervals()


def grouped(found: Found):
    """The only board of these runs, and its groups and baselines by their labels."""
    (board,) = results_by_dataset(group_runs(found), "macro_f1")
    return board, {group.label: group for group in [*board.groups, *board.baselines]}


def loaded(make, root, **options):
    folder = sweep(make, root, **{"skills": SKILLS, "rows": 120, **options})
    return collect([folder], root)


def asked(found, *, settings=DEFAULT, split="test", mine="performer", other="sdpa"):
    board, groups = grouped(found)
    return Differences(settings=settings).between(groups[mine], groups[other], board, split)


@pytest.mark.parametrize(
    ("low", "high", "relation", "threshold", "told"),
    [
        (0.2, 0.9, "<=", 1.0, HOLDS),
        (0.2, 1.0, "<=", 1.0, HOLDS),
        (0.2, 1.1, "<=", 1.0, OPEN),
        (1.0, 1.4, "<=", 1.0, OPEN),
        (1.1, 1.4, "<=", 1.0, BROKEN),
        (3.0, 9.0, ">=", 3.0, HOLDS),
        (2.9, 9.0, ">=", 3.0, OPEN),
        (1.0, 3.0, ">=", 3.0, OPEN),
        (1.0, 2.9, ">=", 3.0, BROKEN),
    ],
)
def test_what_an_interval_tells_of_a_threshold(low, high, relation, threshold, told):
    assert Interval(0.5, low, high).tells(relation, threshold) == told


def test_a_difference_has_its_interval_and_what_was_drawn(make, tmp_path):
    found = loaded(make, tmp_path)
    interval = asked(found)
    assert interval.low < interval.value < interval.high
    assert (interval.examples, interval.over, interval.reason) == (120, "examples and seeds", "")
    turned = asked(found, mine="sdpa", other="performer")
    assert turned == Interval(-interval.value, -interval.high, -interval.low, 120, "examples and seeds")


def test_one_seed_tells_nothing_of_seeds(make, tmp_path):
    found = loaded(make, tmp_path, seeds=1)
    assert asked(found).over == "examples (one seed)"
    assert asked(found, other="TF-IDF + LogReg").over == "examples (one seed)"


def test_intervals_do_not_depend_on_order_or_company(make, tmp_path):
    found = loaded(make, tmp_path, skills={**SKILLS, "reformer": 1.0})
    expected = asked(found)
    found.runs.reverse()
    assert asked(found) == expected
    found.runs = [run for run in found.runs if run.record.choices["attention"] != "reformer"]
    assert asked(found) == expected


def test_groups_beyond_the_limit_are_told_so(make, tmp_path):
    found = loaded(make, tmp_path)
    interval = asked(found, settings=Intervals(most_groups=1))
    assert interval.low is None and "intervals.most_groups" in interval.reason
    board, groups = grouped(found)
    kept = Differences(settings=Intervals(most_groups=0), references=["sdpa", "performer_favor"])
    assert kept.between(groups["performer"], groups["sdpa"], board, "test").low is not None


def one_run(make, root, **fields):
    labels, hard = examples(50, seed=1)
    record = make.finetune("sdpa", 0, **fields)
    folder = root / "run"
    with_predictions(record, folder, {"test": (labels, guess(labels, hard, skill=1.0, seed=0))})
    return Run(folder, "run", record)


def test_predictions_are_read_in_the_order_of_their_ids(make, tmp_path):
    run = one_run(make, tmp_path)
    again = read_predictions(run)["test"]
    labels, hard = examples(50, seed=1)
    order = np.argsort([f"test-{row}" for row in range(50)])
    np.testing.assert_array_equal(again.labels, labels[order])
    np.testing.assert_array_equal(again.said, guess(labels, hard, skill=1.0, seed=0).argmax(1)[order])
    assert again.macro_f1 == pytest.approx(run.record.metrics["test"]["macro_f1"], abs=1e-12)


def damage(run: Run) -> None:
    path = run.folder / "predictions.parquet"
    path.write_bytes(path.read_bytes()[:-10])


def seal_anew(run: Run) -> None:
    run.record.files["predictions.parquet"] = sha256(run.folder / "predictions.parquet")
    write_record(run.record, run.folder)


def rewrite(run: Run, change) -> None:
    path = run.folder / "predictions.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    seal_anew(run)


def cut_and_seal(run: Run) -> None:
    damage(run)
    seal_anew(run)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: run.record.files.clear(), "names no predictions"),
        (lambda run: (run.folder / "predictions.parquet").unlink(), "No such file"),
        (damage, "checksum"),
        (cut_and_seal, "cannot be read"),
        (lambda run: rewrite(run, lambda t: t.drop_columns(["id"])), "no column id"),
        (lambda run: rewrite(run, lambda t: t.drop_columns(["p_bad"])), "no probabilities"),
        (lambda run: rewrite(run, lambda t: t.take([*range(50), 7])), "an example twice"),
        (lambda run: run.record.metrics["test"].update(macro_f1=0.5), "its record says 0.5"),
    ],
    ids=["unnamed", "missing", "damaged", "cut", "column", "class", "twice", "scores"],
)
def test_unusable_predictions_say_why(make, tmp_path, spoil, said):
    run = one_run(make, tmp_path)
    spoil(run)
    with pytest.raises(Unusable, match=said):
        read_predictions(run)


def test_reading_them_needs_neither_torch_nor_pandas(make, tmp_path):
    one_run(make, tmp_path)
    code = (
        "import sys; from pathlib import Path; from xcls.runs.record import read_record; from xcls.report.load import Run; "
        "from xcls.report.predictions import read_predictions as read; folder = Path(sys.argv[1]); "
        "print(sorted(read(Run(folder, '', read_record(folder)))), {'torch', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "['test'] set()\n", done.stderr


def test_a_group_with_one_unusable_run_has_no_interval(make, tmp_path):
    found = loaded(make, tmp_path)
    place = next(
        i for i, r in enumerate(found.runs) if (r.record.choices["attention"], r.record.seed) == ("performer", 1)
    )
    found.runs[place] = replace(found.runs[place], record=replace(found.runs[place].record, files={}))
    interval = asked(found)
    assert interval.low is None and interval.reason == "performer: seed 1: its record names no predictions"


def test_other_examples_have_no_interval(make, tmp_path):
    found = loaded(make, tmp_path)
    labels, hard = examples(120, seed=1)
    for seed in range(3):
        record = make.finetune("reformer", seed)
        made = {"test": (labels, guess(labels, hard, skill=1.0, seed=seed))}
        make.save([record], tmp_path)
        with_predictions(
            record, tmp_path / "multirun" / "demo" / record.run, made, ids=[f"other-{row}" for row in range(120)]
        )
    found = collect([tmp_path / "multirun"], tmp_path)
    assert asked(found, mine="reformer").reason == "reformer and sdpa were scored on different examples"
    assert (
        asked(found, mine="reformer", split="validation").reason == "reformer: a run has no predictions for validation"
    )


def test_the_verdict_stays_by_the_rule_and_the_interval_stands_beside_it(make, tmp_path):
    from dataclasses import asdict

    from tests.report.test_report import from_yaml

    found = loaded(make, tmp_path)
    board, groups = grouped(found)
    judges = [ClaimEvaluator(claims_for(asdict(from_yaml()), ()), one) for one in (None, Differences(settings=DEFAULT))]
    verdicts = [judge.verdict(groups["performer"], board, "sdpa", "validation") for judge in judges]
    plain = [[(m.name, m.value, m.state) for c in verdict.claims for m in c.measured] for verdict in verdicts]
    assert plain[0] == plain[1] and [c.state for c in verdicts[0].claims] == [c.state for c in verdicts[1].claims]
    loss = next(m for c in verdicts[1].claims for m in c.measured if "loss" in m.name)
    assert loss.told == OPEN and loss.interval.low < loss.value < loss.interval.high
    assert loss.value == pytest.approx(loss.interval.value, abs=1e-7)


@pytest.mark.parametrize("change", [{"level": 1.0}, {"level": 0.1}, {"most_groups": -1}], ids=str)
def test_impossible_settings_are_refused(change):
    with pytest.raises(UserError, match=rf"intervals\.{next(iter(change))}="):
        check_numbers(Settings(intervals=Intervals(**change)))

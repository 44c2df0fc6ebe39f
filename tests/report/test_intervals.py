"""Intervals: against formulas written out, how often they hold the truth, and what is said where there can be none."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.special import stdtrit
from sklearn.metrics import f1_score

from tests.report.conftest import Make
from tests.report.coverage import SCATTER, SEEDS, SIZES, World, covered
from tests.report.examples import from_yaml, rows, study_of
from tests.report.predicted import CLASSES, examples, guess, sweep, with_predictions
from xcls.report.intervals import BROKEN, HOLDS, OPEN, Differences, Interval, Sample, half_width, row_strata
from xcls.report.load import Run
from xcls.report.predictions import Predictions, Unusable, read_predictions
from xcls.report.settings import Intervals, Settings
from xcls.report.write import write_report
from xcls.runs.record import sha256

SKILLS = {"sdpa": 1.6, "performer": 1.5, "baseline": 0.8}


def told(labels, said, classes=3):
    return Predictions("", classes, np.asarray(labels), np.asarray(said))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The root of a report over two mechanisms and a baseline, all with predictions."""
    root = tmp_path_factory.mktemp("recompute")
    sweep(Make, root, skills=SKILLS)
    write_report(Settings(runs=["multirun"], out="out", claims=from_yaml()), root=root)
    return root


def read(root, folder, split):
    """Labels and probabilities of a run, ordered by id."""
    found = sorted(pq.read_table(root / folder / "predictions.parquet").to_pylist(), key=lambda row: row["id"])
    found = [row for row in found if row["split"] == split]
    labels = np.array([CLASSES.index(row["label"]) for row in found])
    return labels, np.array([[row[f"p_{name}"] for name in CLASSES] for row in found])


def test_one_interval_is_that_of_a_bootstrap_of_examples_and_of_welch(made):
    """Performer against SDPA on test: rows drawn anew in each class for the examples, Welch's formulas for the
    seeds."""
    wanted = ("performer", "sdpa", "test")
    (row,) = [r for r in rows(made / "out" / "differences.csv") if (r["mechanism"], r["against"], r["split"]) == wanted]
    assert (row["n"], row["n_against"], row["examples"], row["drawn"]) == ("3", "3", "300", "examples and seeds")
    runs = {name: [r for r in rows(made / "out" / "results.csv") if f"-{name}-" in r["run"]] for name in wanted[:2]}
    said = np.array([[read(made, r["folder"], "test")[1].argmax(1) for r in own] for own in runs.values()])
    labels, draw, replicates = read(made, runs["sdpa"][0]["folder"], "test")[0], np.random.default_rng(11), 1000
    found = np.empty((2, 3, replicates))
    for replicate in range(replicates):
        drawn = np.concatenate([draw.choice(own, len(own)) for own in (np.flatnonzero(labels == c) for c in range(3))])
        for place in np.ndindex(2, 3):
            found[(*place, replicate)] = told(labels[drawn], said[place][drawn]).macro_f1
    scores = np.array([[f1_score(labels, one, average="macro") for one in own] for own in said])
    value, scatter = 100 * (scores[0].mean() - scores[1].mean()), scores.var(1, ddof=1) / 3
    assert float(row["difference_pp"]) == pytest.approx(value, abs=1e-7)
    own = (found - found.mean(1, keepdims=True)).var(-1).mean(1) / 2
    freedom = scatter.sum() ** 2 / (scatter**2 / 2).sum()
    seeds = max(0.0, scatter.sum() - 0.8 * own.sum())
    examples_ = (found[0].mean(0) - found[1].mean(0)).var()
    half = 100 * (stdtrit(100, 0.975) ** 2 * examples_ + stdtrit(freedom, 0.975) ** 2 * seeds) ** 0.5
    ends = [float(row["interval_low"]), float(row["interval_high"])]
    assert ends == pytest.approx([value - half, value + half], abs=0.16 * half)


def test_the_claim_shows_the_interval_and_the_verdict_stays_by_the_rule(made):
    claims = rows(made / "out" / "wnf.csv")
    own = [r for r in claims if (r["label"], r["reference"], r["split"]) == ("performer", "sdpa", "validation")]
    loss = next(row for row in own if row["measured"] == "macro-F1 loss (pp)")
    assert float(loss["interval_low"]) < 1.0 < float(loss["interval_high"]) and loss["interval_says"] == OPEN
    assert loss["state"] == ("PASS" if float(loss["value"]) <= 1.0 else "FAIL")


def sample(scores, own=0.0):
    return Sample("", np.asarray(scores, float), np.zeros(2), np.zeros(2, int), 0.0, own)


def test_seeds_alone_give_welch_s_interval():
    """Two groups of three with the same scatter: t with four degrees of freedom; one without scatter: with two."""
    one, still, error = sample([0.88, 0.90, 0.92]), sample([0.9, 0.9, 0.9]), (0.0004 / 3) ** 0.5
    assert half_width(one, one, level=0.95) == pytest.approx(2.776445 * error * 2**0.5, rel=1e-6)
    assert half_width(one, still, level=0.95) == pytest.approx(4.302653 * error, rel=1e-6)
    explained = half_width(sample([0.88, 0.90, 0.92], own=4e-4), still, level=0.95)  # not counted twice
    assert explained == pytest.approx(0.2**0.5 * half_width(one, still, level=0.95))


def test_groups_that_agree_may_still_differ_on_other_rows():
    """1,000 rows of two classes, none named otherwise: as if two had been, 0.28 points with the t of four degrees."""
    labels = np.repeat([0, 1], 500)
    same = Sample.of([told(labels, labels, 2)])
    assert half_width(same, same, level=0.95) == pytest.approx(2.776445 * 2**0.5 / 1000, rel=1e-6)


def test_classes_of_one_row_are_drawn_together():
    np.testing.assert_array_equal(row_strata(np.array([0, 1, 2, 2]), 3), [3, 3, 2, 2])
    np.testing.assert_array_equal(row_strata(np.array([0, 1, 1, 2, 2, 2]), 3), [3, 3, 3, 2, 2, 2])  # one needs another


CELLS = [(name, seeds, kind, False) for name in ("2 x 200", "40 x 2") for seeds in SEEDS for kind in SCATTER]
CELLS += [(name, (3, 3), "both", True) for name in ("2, 380 and 20", "8, 200 … 4", "40 x 2", "1000 x 1")]


def test_intervals_hold_the_truth_in_some_studies():
    """A quick look; the next test counts in earnest. 120 studies: 0.95 - 3 standard errors."""
    assert covered(World(SIZES["40 x 2"], (3, 3), SCATTER["both"]), studies=120).share >= 0.89


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seeds", "kind", "any_class"), CELLS)
def test_intervals_hold_the_truth_as_often_as_they_say(name, seeds, kind, any_class):
    """93 to 97 of 100, where seeds make nothing up to 98.2 (docs/intervals.md has the table of 2,000 studies); here
    of 1,000, whose two standard errors are 1.6 points at 93 and 0.8 at 98.2."""
    found = covered(World(SIZES[name], seeds, SCATTER[kind], any_class=any_class), studies=1000)
    assert 0.914 <= found.share <= 0.99


@pytest.mark.parametrize(
    ("low", "high", "relation", "threshold", "expected"),
    [
        (0.2, 1.0, "<=", 1.0, HOLDS),
        (1.0, 1.4, "<=", 1.0, OPEN),
        (1.1, 1.4, "<=", 1.0, BROKEN),
        (3.0, 9.0, ">=", 3.0, HOLDS),
        (1.0, 3.0, ">=", 3.0, OPEN),
        (1.0, 2.9, ">=", 3.0, BROKEN),
    ],
)
def test_what_an_interval_tells_of_a_threshold(low, high, relation, threshold, expected):
    assert Interval(0.5, low, high).compare(relation, threshold) == expected


def asked(study, mine="performer", other="sdpa", split="test", **settings):
    """The interval between two groups of the only data set."""
    (results,) = study.datasets
    groups = {group.label: group for group in results.every}
    return Differences(settings=Intervals(**settings)).between(groups[mine], groups[other], split)


def test_a_difference_has_a_direction_and_one_seed_tells_nothing_of_seeds(make, tmp_path):
    sweep(make, tmp_path, rows=120, skills=SKILLS, seeds=1)
    study = study_of(make, tmp_path)
    there, back = asked(study), asked(study, "sdpa", "performer")
    assert (there.value, there.low, there.high) == (-back.value, -back.high, -back.low) and there.low < there.value
    assert there.over == asked(study, other="TF-IDF + LogReg").over == "examples (one seed)"
    assert "intervals.most_groups" in asked(study, most_groups=1).reason


def test_groups_without_usable_or_equal_examples_have_no_interval(make, tmp_path):
    sweep(make, tmp_path, rows=120, skills=SKILLS)
    labels, hard = examples(120, seed=1)
    other = make.finetune("reformer")
    make.save([other], tmp_path)
    made = {"test": (labels, guess(labels, hard, skill=1.0, seed=0))}
    names = [f"other-{row}" for row in range(120)]
    with_predictions(other, tmp_path / "multirun" / "demo" / other.run, made, ids=names)
    study = study_of(make, tmp_path)
    assert "different examples" in asked(study, "reformer").reason
    assert "validation" in asked(study, "reformer", split="validation").reason
    run = next(run for run in study.found.runs if "performer" in run.record.run and run.record.seed == 1)
    run.record.files.clear()
    assert "seed 1" in asked(study).reason and asked(study).low is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: None, "checksum"),
        (lambda table: b"PAR1", "cannot be read"),
        (lambda table: table.drop_columns(["id"]), "id"),
        (lambda table: table.drop_columns(["p_bad"]), "probabilities"),
        (lambda table: table.take([*range(50), 7]), "twice"),
        (lambda table: table.slice(0, 40), "macro_f1"),
    ],
    ids=["changed", "cut", "column", "class", "twice", "scores"],
)
def test_unusable_predictions_say_why(make, tmp_path, change, said):
    labels, hard = examples(50, seed=1)
    record, path = make.finetune("sdpa", 0), tmp_path / "predictions.parquet"
    with_predictions(record, tmp_path, {"test": (labels, guess(labels, hard, skill=1.0, seed=0))})
    run = Run(tmp_path, "run", record)
    assert list(read_predictions(run)) == ["test"]
    table = change(pq.read_table(path))
    if table is None or isinstance(table, bytes):
        path.write_bytes(table or b"other")
    else:
        pq.write_table(table, path)
    if table is not None:
        record.files[path.name] = sha256(path)
    with pytest.raises(Unusable, match=said):
        read_predictions(run)

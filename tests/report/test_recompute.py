"""The report's numbers made again by hand, from predictions.parquet with scikit-learn, and compared with its tables."""

from __future__ import annotations

import csv

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.special import stdtrit
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from tests.report.predicted import CLASSES, sweep
from tests.report.test_report import from_yaml
from xcls.report.settings import Settings
from xcls.report.write import write_report

SKILLS = {"sdpa": 1.6, "performer": 1.5, "baseline": 0.8}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(root, its tables) of a report over two mechanisms and a baseline."""
    from tests.report.conftest import Make

    root = tmp_path_factory.mktemp("recompute")
    sweep(Make, root, skills=SKILLS)
    settings = Settings(runs=["multirun"], out="out", claims=from_yaml())
    write_report(settings, root=root)
    tables = {}
    for path in (root / "out").glob("*.csv"):
        with open(path, newline="") as file:
            tables[path.stem] = list(csv.DictReader(file))
    return root, tables


def read(root, folder, split):
    """Labels and probabilities of a run, ordered by id."""
    rows = sorted(pq.read_table(root / folder / "predictions.parquet").to_pylist(), key=lambda row: row["id"])
    rows = [row for row in rows if row["split"] == split]
    labels = np.array([CLASSES.index(row["label"]) for row in rows])
    return labels, np.array([[row[f"p_{name}"] for name in CLASSES] for row in rows])


def test_every_run(made):
    root, tables = made
    runs = [row for row in tables["results"] if row["status"] == "completed"]
    assert len(runs) == 7
    for row in runs:
        for split, prefix in (("validation", ""), ("test", "test_")):
            labels, probabilities = read(root, row["folder"], split)
            said = probabilities.argmax(1)
            again = {
                "macro_f1": f1_score(labels, said, average="macro"),
                "accuracy": accuracy_score(labels, said),
                "auroc": roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
            }
            for name, value in again.items():
                assert float(row[prefix + name]) == pytest.approx(value, abs=1e-12), (row["run"], split, name)


def group_scores(root, tables, label, split="test"):
    (group,) = [row for row in tables["groups"] if row["label"] == label]
    runs = [row for row in tables["results"] if row["group"] == group["group"] and row["status"] == "completed"]
    pairs = [read(root, row["folder"], split) for row in sorted(runs, key=lambda row: int(row["seed"]))]
    return group, pairs[0][0], [probabilities.argmax(1) for _, probabilities in pairs]


def test_every_group(made):
    root, tables = made
    for label in ("sdpa", "performer"):
        group, labels, said = group_scores(root, tables, label)
        again = [f1_score(labels, one, average="macro") for one in said]
        assert float(group["test_macro_f1_mean"]) == pytest.approx(np.mean(again), abs=1e-12)
        assert float(group["test_macro_f1_sd"]) == pytest.approx(np.std(again, ddof=1), abs=1e-12)
        assert group["n"] == group["test_macro_f1_n"] == "3"


def by_hand(labels, said):
    """Macro-F1 as scikit-learn has it, without its checks of every call."""
    classes = int(max(labels.max(), said.max())) + 1
    counts = np.bincount(labels * classes + said, minlength=classes**2).reshape(classes, classes)
    sizes = counts.sum(0) + counts.sum(1)
    return (2 * np.diag(counts)[sizes > 0] / sizes[sizes > 0]).mean()


def test_one_interval(made):
    """Performer against SDPA on test: rows drawn anew in each class for the examples, Welch's formulas for the seeds."""
    root, tables = made
    (row,) = [
        row
        for row in tables["differences"]
        if (row["mechanism"], row["against"], row["split"]) == ("performer", "sdpa", "test")
    ]
    assert (row["n"], row["n_against"], row["examples"], row["drawn"]) == ("3", "3", "300", "examples and seeds")
    groups = [group_scores(root, tables, label) for label in ("performer", "sdpa")]
    labels = groups[0][1]
    draw, replicates = np.random.default_rng(11), 1500
    found = np.empty((2, 3, replicates))
    for replicate in range(replicates):
        rows = np.concatenate([draw.choice(own, len(own)) for own in (np.flatnonzero(labels == c) for c in range(3))])
        for place, (_, _, said) in enumerate(groups):
            for run, one in enumerate(said):
                found[place, run, replicate] = by_hand(labels[rows], one[rows])
    means, own, scatter = [], [], []
    for place, (_, _, said) in enumerate(groups):
        scores = [f1_score(labels, one, average="macro") for one in said]
        assert scores == pytest.approx([by_hand(labels, one) for one in said], abs=1e-12)
        means.append(np.mean(scores))
        own.append(np.mean([np.var(found[place, run] - found[place].mean(0)) for run in range(3)]) * 3 / 2 / 3)
        scatter.append(np.var(scores, ddof=1) / 3)
    value = 100 * (means[0] - means[1])
    assert float(row["difference_pp"]) == pytest.approx(value, abs=1e-7)
    freedom = sum(scatter) ** 2 / sum(part**2 / 2 for part in scatter)
    seeds = max(0.0, sum(scatter) - 0.8 * sum(own))
    examples = np.var(found[0].mean(0) - found[1].mean(0))
    half = 100 * (stdtrit(100, 0.975) ** 2 * examples + stdtrit(freedom, 0.975) ** 2 * seeds) ** 0.5
    assert float(row["interval_low"]) == pytest.approx(value - half, abs=0.16 * half)
    assert float(row["interval_high"]) == pytest.approx(value + half, abs=0.16 * half)


def test_the_claims_show_the_interval_of_the_same_difference(made):
    _, tables = made
    claims = [
        r for r in tables["wnf"] if (r["label"], r["reference"], r["split"]) == ("performer", "sdpa", "validation")
    ]
    gain = next(row for row in claims if row["measured"] == "macro-F1 gain (pp)")
    (row,) = [
        row
        for row in tables["differences"]
        if (row["mechanism"], row["against"], row["split"]) == ("performer", "TF-IDF + LogReg", "validation")
    ]
    assert gain["value"] == row["difference_pp"] and gain["interval_low"] == row["interval_low"] != ""
    assert (gain["n"], gain["n_reference"], gain["n_baseline"]) == ("3", "3", "1")
    loss = next(row for row in claims if row["measured"] == "macro-F1 loss (pp)")
    assert float(loss["interval_low"]) < float(loss["value"]) < float(loss["interval_high"])

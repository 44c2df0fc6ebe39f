"""The bootstrap against a slow and readable one, and how often its intervals cover the truth."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from xcls.report.bootstrap import Sample, difference, f1_replicates, percentile_interval
from xcls.report.predictions import Predictions, f1_of


def world(draw, rows, *, classes=3, skill=1.0, runs=2, own=0.6):
    """Labels [rows], and what runs of one skill say [runs][rows]."""
    labels = draw.integers(0, classes, rows)
    hard = draw.normal(0, 1, rows)
    right = skill + hard + draw.normal(0, own, (runs, rows)) > 0
    return labels, [np.where(row, labels, (labels + 1) % classes) for row in right]


def plain_replicates(labels, said, *, classes, replicates, seed):
    """Draws examples one replicate at a time, and lets scikit-learn score them."""
    draw = np.random.default_rng(seed)
    found = np.empty((len(said), replicates))
    for replicate in range(replicates):
        rows = draw.integers(len(labels), size=len(labels))
        for run, one in enumerate(said):
            found[run, replicate] = f1_score(
                labels[rows], one[rows], labels=range(classes), average="macro", zero_division=0.0
            )
    return found


@pytest.mark.parametrize(("rows", "classes"), [(40, 3), (9, 4), (200, 2)])
def test_replicates_are_those_of_the_plain_bootstrap(rows, classes):
    labels, said = world(np.random.default_rng(1), rows, classes=classes, runs=3)
    settings = {"classes": classes, "replicates": 60, "seed": 5}
    draws = np.random.default_rng(5).integers(rows, size=(60, rows), dtype=np.int32)  # the same draws, spelt out
    expected = np.array([
        [f1_score(labels[d], one[d], labels=range(classes), average="macro", zero_division=0.0) for d in draws]
        for one in said
    ])  # fmt: skip
    np.testing.assert_allclose(f1_replicates(labels, said, **settings), expected, rtol=0, atol=1e-12)


def test_the_interval_is_that_of_the_plain_bootstrap():
    labels, said = world(np.random.default_rng(2), 150, runs=2)
    settings = {"classes": 3, "replicates": 1500}
    fast = f1_replicates(labels, said, seed=0, **settings)
    slow = plain_replicates(labels, said, seed=1, **settings)  # other draws: equal but for chance
    ends = [percentile_interval(100 * (one[0] - one[1]), 0.95) for one in (fast, slow)]
    assert ends[0] == pytest.approx(ends[1], abs=0.6) and ends[0][1] - ends[0][0] > 5


def test_runs_are_paired_and_other_runs_change_nothing():
    labels, said = world(np.random.default_rng(3), 120, runs=3)
    settings = {"classes": 3, "replicates": 200, "seed": 0}
    both = f1_replicates(labels, [said[0], said[0]], **settings)
    np.testing.assert_array_equal(both[0], both[1])
    np.testing.assert_array_equal(f1_replicates(labels, said, **settings)[0], f1_replicates(labels, said[:1], **settings)[0])


def test_a_class_that_is_neither_there_nor_named_counts_as_nothing():
    labels, said = np.array([0, 0, 1]), np.array([0, 1, 1])
    expected = f1_score(labels, said, labels=range(4), average="macro", zero_division=0.0)
    assert Predictions("", 4, labels, said).macro_f1 == pytest.approx(expected, abs=1e-12)
    assert f1_of(np.array(0.0), np.array(0.0), np.array(0.0)) == 0.0


def sample(scores, replicates):
    return Sample(np.asarray(scores, float), np.asarray(replicates, float))


def test_the_scatter_of_seeds_beyond_that_of_examples_counts():
    flat = np.zeros((3, 50))
    assert sample([0.90, 0.92, 0.94], 0.9 + flat).seed_variance == pytest.approx(0.0004 / 3)
    assert sample([0.90], flat[:1]).seed_variance == 0.0
    noisy = np.random.default_rng(0).normal(0, 0.05, (3, 4000))  # the examples alone explain a scatter of 0.05
    assert sample([0.90, 0.92, 0.94], noisy).seed_variance == 0.0


def test_welch_s_degrees_of_freedom():
    """Two groups of three with the same scatter: t with four degrees of freedom; one without scatter: with two."""
    flat = np.full((3, 200_000), 0.9)
    one, still = sample([0.88, 0.90, 0.92], flat), sample([0.9, 0.9, 0.9], flat)
    error = (2 * 0.0004 / 3) ** 0.5
    both = percentile_interval(difference(one, one, seed=0, name="a"), 0.95)
    assert both == pytest.approx((-2.776 * error, 2.776 * error), rel=0.03)
    alone = percentile_interval(difference(one, still, seed=0, name="a"), 0.95)
    assert alone == pytest.approx((-4.303 * error / 2**0.5, 4.303 * error / 2**0.5), rel=0.05)


def test_the_draws_of_seeds_depend_on_the_pair_alone():
    flat = np.full((3, 20), 0.9)
    one, other = sample([0.88, 0.90, 0.92], flat), sample([0.8, 0.9, 0.9], flat)
    first = difference(one, other, seed=0, name="a b")
    np.testing.assert_array_equal(first, difference(one, other, seed=0, name="a b"))
    assert not np.array_equal(first, difference(one, other, seed=0, name="a c"))
    assert not np.array_equal(first, difference(one, other, seed=1, name="a b"))


def experiment(draw, *, rows, seeds, scatter, own):
    """A whole study in small: labels, and what `seeds` runs of two mechanisms say; a seed shifts the skill."""
    labels, hard, groups = draw.integers(0, 2, rows), draw.normal(0, 1, rows), []
    for skill in (1.0, 1.15):
        shift = draw.normal(0, scatter, (seeds, 1))
        right = skill + shift + hard + draw.normal(0, own, (seeds, rows)) > 0
        groups.append(np.where(right, labels, 1 - labels))
    return labels, groups


def truth(scatter, own):
    """The difference of mean macro-F1 over all examples and seeds there could be."""
    draw, found = np.random.default_rng(99), []
    for _ in range(300):
        labels, groups = experiment(draw, rows=4000, seeds=4, scatter=scatter, own=own)
        means = [np.mean([Predictions("", 2, labels, one).macro_f1 for one in group]) for group in groups]
        found.append(means[1] - means[0])
    return float(np.mean(found))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "scatter", "own"),
    [(3, 0.0, 0.3), (3, 0.05, 0.3), (3, 0.2, 0.3), (3, 0.5, 0.1), (3, 0.1, 1.0), (2, 0.2, 0.3), (5, 0.2, 0.3)],
)
def test_intervals_cover_the_truth_as_often_as_they_say(seeds, scatter, own):
    """95 of 100, whether the examples or the seeds matter most. Redrawing the few seeds themselves falls far short."""
    target, studies, replicates = truth(scatter, own), 400, 800
    covered = redrawn = 0
    for study in range(studies):
        draw = np.random.default_rng(study)
        labels, groups = experiment(draw, rows=400, seeds=seeds, scatter=scatter, own=own)
        drawn = f1_replicates(labels, [*groups[0], *groups[1]], classes=2, replicates=replicates, seed=study)
        samples = [
            Sample(np.array([Predictions("", 2, labels, one).macro_f1 for one in group]), part)
            for group, part in zip(groups, (drawn[:seeds], drawn[seeds:]))
        ]
        low, high = percentile_interval(difference(samples[1], samples[0], seed=study, name=""), 0.95)
        covered += low <= target <= high
        chosen = [draw.integers(seeds, size=(seeds, replicates)) for _ in samples]
        naive = [np.take_along_axis(one.replicates, rows, axis=0).mean(0) for one, rows in zip(samples, chosen)]
        low, high = percentile_interval(naive[1] - naive[0], 0.95)
        redrawn += low <= target <= high
    assert 0.92 <= covered / studies <= 0.985  # two standard errors of 400 studies are 0.022
    if scatter >= 0.2:
        assert redrawn / studies < 0.91 and covered > redrawn


def test_an_interval_is_not_a_matter_of_the_draws() -> None:
    """Three seeds a group: other draws of Student's t move the ends by little of the interval's width."""
    draw = np.random.default_rng(0)
    pair = [Sample(0.7 + 0.02 * draw.standard_normal(3), 0.7 + 1e-3 * draw.standard_normal((3, 5000))) for _ in range(2)]
    ends = np.array([percentile_interval(difference(*pair, seed=0, name=name), 0.95) for name in "abcdefgh"])
    widths = ends[:, 1] - ends[:, 0]
    assert widths.mean() > 0.05 and np.ptp(ends, axis=0).max() < 0.02 * widths.mean()

"""Runs that did not learn: named as such, no claim about quality from them, advice about training."""

from __future__ import annotations

import numpy as np
import pytest

from tests.report.examples import from_yaml, rows, study_of
from tests.report.predicted import CLASSES, examples, guess, with_predictions
from xcls.report.claims import MISSING
from xcls.report.settings import Settings
from xcls.report.summary import headline
from xcls.report.write import write_report
from xcls.runs.record import is_guess

MECHANISMS = ("sdpa", "performer", "reformer")


def nine(make, root, *, learn=(), learned_baseline=True, seq_len=512):
    """Three seeds of three mechanisms and a baseline; all but those in `learn` name the majority alone."""
    data = {split: examples(90, seed=number) for number, split in enumerate(("validation", "test"))}
    counts = {split: dict(zip(CLASSES, np.bincount(labels).tolist())) for split, (labels, _) in data.items()}
    majority = np.tile([0.5, 0.3, 0.2], (90, 1))
    records = [make.finetune(name, seed, seq_len=seq_len) for name in MECHANISMS for seed in range(3)] + [
        make.baseline()
    ]
    for place, record in enumerate(records):
        skilled = learned_baseline if record.mode == "baseline" else (record.choices["attention"], record.seed) in learn
        record.data["classes"] = counts
        made = {
            split: (labels, guess(labels, hard, skill=2.0, seed=place) if skilled else majority)
            for split, (labels, hard) in data.items()
        }
        make.save([record], root)
        with_predictions(record, root / "multirun" / "demo" / record.run, made)
    return root


ALL = [(name, seed) for name in MECHANISMS for seed in range(3)]


def judged(make, root):
    study = study_of(make, root)
    (board,) = study.boards
    return board, study.judge, {group.attention.partition("_")[0]: group for group in board.groups}


@pytest.mark.parametrize(
    ("macro_f1", "classes", "guess_"),
    [
        (2 * 0.447 / 1.447 / 8, 8, True),
        (0.125, 8, True),
        (0.126, 8, False),
        (0.3333, 2, True),
        (0.5, 2, True),
        (0.51, 2, False),
        (None, 2, False),
        (1.0, 1, True),
    ],
)
def test_what_needs_no_text(macro_f1, classes, guess_):
    assert is_guess(macro_f1, classes) is guess_


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.9, 0.1], [0.6, 0.3, 0.1], [0.125] * 8])
def test_no_labels_drawn_at_random_reach_more_than_one_over_the_classes(shares):
    draw, there = np.random.default_rng(0), np.asarray(shares)
    named = np.vstack([draw.dirichlet(np.ones(len(there)), 200), np.eye(len(there)), there])
    expected = (2 * named * there / (named + there)).mean(axis=1)
    assert expected.max() <= 1 / len(there) + 1e-12 and expected[-1] == pytest.approx(1 / len(there))


def test_nine_runs_that_name_the_majority_alone_claim_nothing(make, tmp_path):
    board, judge, groups = judged(make, nine(make, tmp_path))
    for name in MECHANISMS:
        for split in ("validation", "test"):
            verdict = judge.verdict(groups[name], board, "sdpa", split)
            assert {claim.code: claim.state for claim in verdict.claims if claim.state != MISSING} == {}
            quality = [m for claim in verdict.claims for m in claim.measured if "loss" in m.name or "gain" in m.name]
            assert quality and all(m.value is None and m.told == "" for m in quality)
            assert all(m.interval is None or m.interval.low is None for m in quality)
            assert all("learned nothing" in claim.reason for claim in verdict.claims)
    found = headline(board, judge, ["sdpa", "sdpa_fused"])
    assert found.state == MISSING and "finetuning.lr" in found.next and "seq_len" not in found.next


def test_the_advice_is_about_training_at_other_lengths_too(make, tmp_path):
    board, judge, _ = judged(make, nine(make, tmp_path, seq_len=128))
    found = headline(board, judge, ["sdpa"])
    assert "finetuning.max_steps" in found.next and "seq_len" not in found.next + found.text


def test_a_reference_that_learned_nothing_is_none(make, tmp_path):
    board, judge, groups = judged(make, nine(make, tmp_path, learn=[one for one in ALL if one[0] != "sdpa"]))
    verdict = judge.verdict(groups["performer"], board, "sdpa", "validation")
    measured = {m.name: m for claim in verdict.claims for m in claim.measured}
    assert (
        measured["macro-F1 loss (pp)"].value is None and "sdpa learned nothing" in measured["macro-F1 loss (pp)"].reason
    )
    assert measured["macro-F1 gain (pp)"].value is not None  # the baseline has learned
    assert "finetuning.lr" in headline(board, judge, ["sdpa"]).next


def test_one_seed_that_learned_nothing_is_named_and_spoils_its_group(make, tmp_path):
    board, judge, groups = judged(make, nine(make, tmp_path, learn=[one for one in ALL if one != ("performer", 1)]))
    assert "seed 1:" in groups["performer"].learned_nothing and not groups["sdpa"].learned_nothing
    assert judge.verdict(groups["performer"], board, "sdpa", "validation").state == MISSING
    assert judge.verdict(groups["reformer"], board, "sdpa", "validation").state != MISSING


def test_a_baseline_that_learned_nothing_is_none(make, tmp_path):
    board, judge, groups = judged(make, nine(make, tmp_path, learn=ALL, learned_baseline=False))
    verdict = judge.verdict(groups["sdpa"], board, "sdpa", "validation")
    quality = next(claim for claim in verdict.claims if claim.code == "WNF-2 quality")
    gain = next(m for m in quality.measured if "gain" in m.name)
    assert gain.value is None and "learned nothing" in gain.reason and quality.state == MISSING


def test_the_files_say_so(make, tmp_path):
    root = nine(make, tmp_path, learn=[("reformer", 0)])
    text = write_report(Settings(runs=["multirun"], out="out", claims=from_yaml()), root=root)
    table = {
        (row["attention"], row["seed"]): row for row in rows(root / "out" / "results.csv") if row["mode"] == "finetune"
    }
    assert table["reformer", "0"]["learned_nothing"] == "false" and table["sdpa", "2"]["learned_nothing"] == "true"
    assert text.count("learned nothing") >= 3 and "+0.00" not in text and "holds" not in text
    assert all(not row["difference_pp"] for row in rows(root / "out" / "differences.csv"))
    assert "learned nothing" in (root / "out" / "index.html").read_text(encoding="utf-8")

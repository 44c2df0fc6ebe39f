"""The headline, the matrix of claims and the footnotes: what passes, what is open and why, and what to run next."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.report.examples import records, report, rows, sized, study_of
from tests.report.predicted import sweep
from xcls.report.claims import FAIL, MISSING, PASS, UNDECIDED
from xcls.report.measures import cut_note
from xcls.report.summary import CLAIMED, headline, matrix

GOOD = (0.91, 0.911, 0.912)
NAMES = [name.partition(" ratio")[0].removeprefix("macro-F1 ").removesuffix(" (pp)") for name in CLAIMED]


def told(make, root, made):
    """The headline of these records."""
    study = study_of(make, root, made)
    return headline(study.datasets[0], study)


def cells_of(make, root, made=()):
    """label -> {claim: cell}, with the verdicts under 'validation' and 'test'; and the footnotes."""
    study = study_of(make, root, made)
    found = matrix(study.datasets[0], study)
    rows = {label: {**dict(zip(NAMES, cells)), "": (state, test)} for label, _, cells, state, test in found.rows}
    return rows, found.notes


def test_the_matrix_has_value_limit_and_sign_of_every_claim(make, tmp_path):
    cells, notes = cells_of(make, tmp_path, [*records(make), *make.seeds("window", (0.90, 0.901, 0.90), time=3.0)])
    own, other, free = cells["performer"], cells["reformer"], cells["window"]
    assert [(own[name].value, own[name].limit, own[name].sign) for name in NAMES] == [
        ("0.70×", "≤ 0.8×", "✓"),
        ("0.60×", "≤ 0.7×", "✓"),
        ("0.60", "≤ 1", "✓"),
        ("5.00", "≥ 3", "✓"),
        ("0.20", "≤ 1", "✓"),
    ]
    assert own[""] == (PASS, PASS) and other[""][0] == FAIL
    assert {other[name].sign for name in NAMES} == {"✗"} and "NaN" in notes[other["spread"].notes[0] - 1]
    assert [cells["sdpa"][name].sign for name in NAMES] == ["", "", "", "✓", "✓"]
    assert [free[name].value for name in NAMES] == ["0.30×", "1.00×", "1.07", "4.53", "0.10"]  # no claim is made
    assert {(free[name].limit, free[name].sign) for name in NAMES} == {("", "")} and free[""][0] == MISSING


def test_an_interval_over_the_limit_is_a_question_mark_beside_the_sign(make, tmp_path):
    sweep(make, tmp_path, rows=90, skills={"sdpa": 1.6, "performer": 1.6, "baseline": 1.4})
    cells, notes = cells_of(make, tmp_path)
    doubtful = [cell for cell in cells["performer"].values() if not isinstance(cell, tuple) and cell.doubtful]
    assert doubtful and {cell.sign for cell in doubtful} <= {"✓?", "✗?"} and " … " in notes[doubtful[0].notes[-1] - 1]


def test_a_cost_that_these_runs_cannot_tell_is_open_and_not_in_the_headline(make, tmp_path):
    made = [*make.seeds("sdpa", GOOD), *make.seeds("performer", GOOD, time=5.0), make.baseline(0.8)]
    made[0].costs["time_per_epoch"] = 50.0
    cells, notes = cells_of(make, tmp_path, made)
    time = cells["performer"]["time"]
    assert (time.state, time.sign, cells["performer"][""][0]) == (UNDECIDED, "?", MISSING)
    assert "-s0" in notes[time.notes[0] - 1] and "folder" in told(make, tmp_path, made).next
    for record in made[3:6]:
        record.costs["rss_growth_MiB"] = 60.0
    found = told(make, tmp_path, made)
    assert found.state == PASS and found.text.startswith("performer passes: 40 % less memory, macro-F1")


def test_the_cheapest_by_its_own_reference_passes_first_and_of_equals_the_better(make, tmp_path):
    times = {("sdpa", "tiny"): 2.0, ("performer", "tiny"): 1.5, ("sdpa", "mini"): 20.0, ("performer", "mini"): 10.0}
    made = [record for (name, size), time in times.items() for record in sized(make, name, size, time=time)]
    found = told(make, tmp_path, [*made, make.baseline(0.80)])
    assert found.state == PASS and found.text.startswith("performer mini passes: 50 % less time") and found.next == ""
    assert any("performer tiny" in note for note in found.notes)
    made = [*make.seeds("sdpa", GOOD), *make.seeds("performer", GOOD, time=7.0), make.baseline(0.8)]
    made += make.seeds("reformer", (0.92, 0.921, 0.922), time=7.0)
    assert told(make, tmp_path / "equal", made).text.startswith("reformer passes")


@pytest.mark.parametrize(
    ("change", "state", "said", "following"),
    [
        (lambda made: made[:3], MISSING, "sdpa", "attention=sdpa,performer,reformer"),
        (lambda made: [r for r in made if r.seed == 0 or r.mode == "baseline"], MISSING, "1 of 3 seeds", "seed=0,1,2"),
        (lambda made: made[3:6] + made[-1:], MISSING, "sdpa", "attention=sdpa"),
        (lambda made: [r for r in made if "performer" not in r.run], FAIL, "reformer fails", ""),
        (lambda made: made[-1:], MISSING, "No encoder", "sweep again"),
        (lambda made: made[:6], MISSING, "baseline", "mode=baseline dataset=demo"),
        (lambda made: [replace(r, seq_len=2048) for r in made[:6]], MISSING, "2048", "seq_len=512"),
    ],
    ids=["one mechanism", "too few seeds", "no reference", "nothing passes", "baseline alone", "no baseline", "length"],
)
def test_the_headline_is_honest_where_it_is_not_a_yes(make, tmp_path, change, state, said, following):
    found = told(make, tmp_path, change(records(make)))
    assert found.state == state and said in found.text
    assert following in found.next and (following or not found.next)


def test_only_the_length_of_the_claims_is_judged_where_it_was_run(make, tmp_path):
    made = [make.baseline(0.8)]
    for length, time in ((512, 10.0), (1024, 30.0)):
        made += make.seeds("sdpa", GOOD, seq_len=length, time=time)
        made += make.seeds("performer", GOOD, seq_len=length, time=2 * time)
    found = told(make, tmp_path, made)
    assert found.state == FAIL and "performer n512 fails" in found.text and "n1024" not in found.text and not found.next


def test_a_pass_is_qualified_by_what_speaks_against_it(make, tmp_path):
    made = [
        *make.seeds("sdpa", GOOD),
        *make.seeds("sdpa_fused", GOOD, time=5.0, memory=50.0),
        *make.seeds("performer", (0.905, 0.905, 0.906), time=7.0, memory=60.0, test=0.80),
        make.baseline(0.855),
    ]
    notes = told(make, tmp_path, made).notes
    assert any("sdpa_fused" in note and "does not pass" in note for note in notes)
    alone = told(make, tmp_path / "alone", [record for record in made if "fused" not in record.run])
    assert any("sdpa_fused" in note for note in alone.notes)


def test_runs_that_learned_nothing_are_named_and_told_to_train_longer(make, tmp_path):
    made = [record for record in records(make) if record.status == "completed"]
    for record in made[:-1]:
        record.data["classes"] = {"validation": dict.fromkeys("abc", 30)}
        record.metrics["validation"]["macro_f1"] = 0.2
    found = told(make, tmp_path, made)
    assert found.state == MISSING and "finetuning.lr" in found.next
    assert "learned nothing" in report(make, tmp_path, []) and "✓" not in report(make, tmp_path, [])
    assert not any(row["difference_pp"] for row in rows(tmp_path / "out" / "differences.csv"))
    results = [row for row in rows(tmp_path / "out" / "results.csv") if row["mode"] == "finetune"]
    assert {row["learned_nothing"] for row in results} == {"true"}


def test_costs_measured_differently_are_said_in_the_matrix_and_in_the_claims(make, tmp_path):
    other = {"python": "3.11.7", "torch": "2.14.0"}
    made = [*make.seeds("sdpa", GOOD), *make.seeds("performer", GOOD, time=7.0, versions=other), make.baseline(0.8)]
    cells, notes = cells_of(make, tmp_path, made)
    assert "2.14.0" in notes[cells["performer"]["time"].notes[0] - 1] and cells["performer"]["loss"].notes == ()
    report(make, tmp_path, [])
    claims = [row for row in rows(tmp_path / "out" / "wnf.csv") if row["label"] == "performer"]
    told = {"2.14.0" in row["measured_differently"] for row in claims if "ratio" in row["measured"] and row["value"]}
    assert told == {True}


def test_what_was_cut_is_told(make, tmp_path):
    made = [*make.seeds("sdpa"), make.finetune("performer", seq_len=16384, config={"dataset.truncate": "tail"})]
    for record, share in zip(made, (0.25, 0.2, 0.001, 0.58)):
        record.data["tokens"] = {"train": {"tokens_cut_share": share, "documents_cut_share": 0.5}}
    assert "25% at 512 (head kept), 58% at 16,384 (tail kept)" in cut_note(made) and cut_note(made[2:3]) == ""
    report(make, tmp_path, made)
    assert "58% at 16,384" in (tmp_path / "out" / "index.html").read_text()
    assert rows(tmp_path / "out" / "results.csv")[0]["documents_cut_share"] == "0.5"

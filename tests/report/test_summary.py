"""The headline, the matrix of claims and the footnotes: what passes, what is open and why, and what to run next."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.report.examples import board_of, records, report, rows, sized, study_of
from tests.report.test_learned_nothing import ALL, nine
from xcls.report.claims import FAIL, MISSING, PASS, UNDECIDED
from xcls.report.groups import BASELINE
from xcls.report.measures import cut_note, cut_shares
from xcls.report.summary import CLAIMED, headline, matrix
from xcls.report.text import comparison, footnotes

GOOD = (0.91, 0.911, 0.912)
NAMES = [name.partition(" ratio")[0].removeprefix("macro-F1 ").removesuffix(" (pp)") for name in CLAIMED]


def told(make, root, made):
    """The headline of these records."""
    study = study_of(make, root, made)
    return headline(study.boards[0], study.judge, study.references)


def cells_of(study):
    """label -> {claim: cell}, with the verdicts under 'validation' and 'test'; and the footnotes."""
    found = matrix(study.boards[0], study.judge, study.references[0])
    return {
        label: {**dict(zip(NAMES, cells)), "validation": state, "test": test}
        for label, _, cells, state, test in found.rows
    }, found.notes


def placed(make, attention, device, **options):
    """Runs on another device, in folders of their own."""
    made = make.seeds(attention, GOOD, device={"name": device}, **options)
    for record in made:
        record.run += f"-{device}"
    return made


def test_the_matrix_has_value_limit_and_sign_of_every_claim(make, tmp_path):
    cells, notes = cells_of(study_of(make, tmp_path, records(make)))
    own = cells["performer"]
    assert [(own[name].value, own[name].limit, own[name].sign) for name in NAMES] == [
        ("0.70×", "≤ 0.8×", "✓"),
        ("0.60×", "≤ 0.7×", "✓"),
        ("0.60", "≤ 1", "✓"),
        ("5.00", "≥ 3", "✓"),
        ("0.20", "≤ 1", "✓"),
    ]
    assert (own["validation"], own["test"]) == (PASS, PASS)
    other = cells["reformer"]
    assert [other[name].sign for name in NAMES] == ["✗", "✗", "✗", "✗", "✗"] and other["validation"] == FAIL
    assert "NaN" in notes[other["spread"].notes[0] - 1]
    assert [cells["sdpa"][name].value for name in NAMES[:3]] == ["–", "–", "–"]
    assert [cells["sdpa"][name].sign for name in NAMES] == ["", "", "", "✓", "✓"] and list(cells) == [
        "sdpa",
        "performer",
        "reformer",
    ]


def test_too_few_seeds_make_question_marks_with_the_reason_below(make, tmp_path):
    few = [record for record in records(make) if record.seed < 2 or record.mode == "baseline"]
    cells, notes = cells_of(study_of(make, tmp_path, few))
    assert {cells["performer"][name].sign for name in NAMES} == {"?"} and cells["performer"]["validation"] == MISSING
    assert (
        len(notes) == 1 and "2 of 3 seeds" in notes[0] and {cells["performer"][name].notes for name in NAMES} == {(1,)}
    )


def test_an_interval_over_the_limit_is_a_question_mark_beside_the_sign(make, tmp_path):
    cells, notes = cells_of(study_of(make, nine(make, tmp_path, learn=ALL)))
    doubtful = [cell for row in cells.values() for cell in row.values() if not isinstance(cell, str) and cell.doubtful]
    assert doubtful and all(
        cell.sign in ("✓?", "✗?") and "spans the limit" in notes[cell.notes[-1] - 1] for cell in doubtful
    )


def test_values_without_a_claim_have_neither_limit_nor_sign(make, tmp_path):
    cells, _ = cells_of(
        study_of(make, tmp_path, [*records(make), *make.seeds("window", (0.90, 0.901, 0.90), time=3.0)])
    )
    own = cells["window"]
    assert [own[name].value for name in NAMES] == ["0.30×", "1.00×", "1.07", "4.53", "0.10"] and own[
        "validation"
    ] == MISSING
    assert {(own[name].limit, own[name].sign) for name in NAMES} == {("", "")}


def test_a_cost_that_these_runs_cannot_tell_is_open(make, tmp_path):
    made = [*make.seeds("sdpa", GOOD), *make.seeds("performer", GOOD, time=5.0), make.baseline(0.8)]
    made[0].costs["time_per_epoch"] = 50.0
    cells, notes = cells_of(study_of(make, tmp_path, made))
    time = cells["performer"]["time"]
    assert (time.state, time.sign, cells["performer"]["validation"]) == (UNDECIDED, "?", MISSING) and "repeat" in notes[
        time.notes[0] - 1
    ]


def test_the_headline_names_no_cost_that_is_open(make, tmp_path):
    made = [*make.seeds("sdpa", GOOD), *make.seeds("performer", GOOD, time=5.0, memory=60.0), make.baseline(0.8)]
    made[0].costs["time_per_epoch"] = 50.0
    found = told(make, tmp_path, made)
    assert found.state == PASS and found.text.startswith("performer passes: 40 % less memory, macro-F1")


def test_the_cheapest_passes_first_across_sizes_by_its_own_reference(make, tmp_path):
    made = [
        *sized(make, "sdpa", "tiny", time=2.0),
        *sized(make, "performer", "tiny", time=1.5),
        *sized(make, "sdpa", "mini", time=20.0),
        *sized(make, "performer", "mini", time=10.0),
        make.baseline(0.80),
    ]
    found = told(make, tmp_path, made)
    assert found.state == PASS and found.text.startswith("performer mini passes: 50 % less time")
    assert "Also passing: performer tiny." in found.notes and found.next == ""


def test_the_cheapest_passes_first_across_devices(make, tmp_path):
    made = [
        *placed(make, "sdpa", "slow", time=100),
        *placed(make, "performer", "slow", time=60),
        *placed(make, "sdpa", "fast", time=4),
        *placed(make, "performer", "fast", time=3),
        make.baseline(0.8),
    ]
    assert told(make, tmp_path, made).text.startswith("performer slow passes: 40 % less time")


def test_of_equal_costs_the_better_one_passes_first(make, tmp_path):
    made = [*make.seeds("sdpa", GOOD), *make.seeds("performer", GOOD, time=7.0), make.baseline(0.8)]
    better = [*made, *make.seeds("reformer", (0.92, 0.921, 0.922), time=7.0)]
    assert told(make, tmp_path / "equal", better).text.startswith("reformer passes")
    assert told(make, tmp_path / "slower", [*made, *make.seeds("reformer", GOOD, time=7.9)]).text.startswith(
        "performer passes"
    )


@pytest.mark.parametrize(
    ("change", "state", "said", "following"),
    [
        (lambda made: made[:3], MISSING, "Best so far: sdpa, macro-F1 0.911", "attention=sdpa,performer,reformer"),
        (lambda made: [r for r in made if r.seed == 0 or r.mode == "baseline"], MISSING, "1 of 3 seeds", "seed=0,1,2"),
        (lambda made: made[3:6] + made[-1:], MISSING, "no completed sdpa run on these rows", "attention=sdpa"),
        (
            lambda made: [r for r in made if r.choices["attention"] != "performer"],
            FAIL,
            "Nothing passes against sdpa: reformer fails",
            "",
        ),
        (lambda made: made[-1:], MISSING, "Only the baseline", "sweep again"),
        (lambda made: made[:6], MISSING, "no baseline was trained on these rows", "mode=baseline dataset=demo"),
    ],
    ids=["one mechanism", "too few seeds", "no reference", "nothing passes", "baseline alone", "no baseline"],
)
def test_the_headline_is_honest_where_it_is_not_a_yes(make, tmp_path, change, state, said, following):
    found = told(make, tmp_path, change(records(make)))
    assert found.state == state and said in found.text
    assert following in found.next and (following or not found.next)


def test_at_another_length_the_length_of_the_claims_is_asked_for(make, tmp_path):
    long = [replace(record, seq_len=2048, hash=f"{place:064x}") for place, record in enumerate(records(make)[:9])]
    for record in long:
        record.config["seq_len"] = 2048
    assert "add seq_len=512 to the sweep" in told(make, tmp_path, long).next


def test_what_can_never_be_judged_is_not_called_open_where_the_claims_length_was_run(make, tmp_path):
    made = [make.baseline(0.8)]
    for length, time in ((512, 10.0), (1024, 30.0)):
        made += make.seeds("sdpa", GOOD, seq_len=length, time=time)
        made += make.seeds("performer", GOOD, seq_len=length, time=2 * time)
    found = told(make, tmp_path, made)
    assert (
        found.state == FAIL and "performer n512 fails" in found.text and "n1024" not in found.text and found.next == ""
    )


def test_why_there_is_no_verdict_is_said_of_the_claims_length_where_it_was_run(make, tmp_path):
    made = [
        make.baseline(0.8),
        *make.seeds("performer", GOOD),
        *make.seeds("sdpa", GOOD, config={"finetuning.lr": 1.0}),
    ]
    for length in (1024, 2048):
        made += [*make.seeds("sdpa", GOOD, seq_len=length), *make.seeds("performer", GOOD, seq_len=length)]
    found = told(make, tmp_path, made)
    assert (
        found.state == MISSING and "finetuning.lr" in found.text and "Run sdpa as performer n512 was run" in found.next
    )


def test_a_pass_is_qualified_by_what_speaks_against_it(make, tmp_path):
    made = [
        *make.seeds("sdpa", GOOD),
        *make.seeds("sdpa_fused", GOOD, time=5.0, memory=50.0),
        *make.seeds("performer", (0.905, 0.905, 0.906), time=7.0, memory=60.0, test=0.80),
        make.baseline(0.855),
    ]
    found = told(make, tmp_path, made)
    assert found.state == PASS and any("sdpa_fused" in note and "does not pass" in note for note in found.notes)
    assert any("test split" in note and FAIL in note for note in found.notes)
    alone = told(make, tmp_path / "alone", [record for record in made if record.choices["attention"] != "sdpa_fused"])
    assert any("no runs of sdpa_fused" in note for note in alone.notes)


def test_a_baseline_that_is_better_than_every_encoder_is_said(make, tmp_path):
    made = [*make.seeds("sdpa", (0.80, 0.81, 0.80)), *make.seeds("performer", (0.80, 0.80, 0.80))]
    notes = told(make, tmp_path / "default", [*made, make.baseline(0.85)]).notes
    assert any(BASELINE in note and "0.850" in note for note in notes) and any(
        "sdpa fails its own claims" in note for note in notes
    )
    notes = told(make, tmp_path / "tuned", [*made, make.baseline(0.79)]).notes
    assert any(f"{BASELINE} (tuned on validation)" in note and "0.810" in note for note in notes)


def test_costs_measured_differently_are_said_in_the_matrix_and_below_the_table(make, tmp_path):
    other = {"python": "3.11.7", "torch": "2.14.0"}
    made = [*make.seeds("sdpa", GOOD), *make.seeds("performer", GOOD, time=7.0, versions=other), make.baseline(0.8)]
    study = study_of(make, tmp_path, made)
    cells, notes = cells_of(study)
    assert (
        "torch 2.14.0 against 2.13.0" in notes[cells["performer"]["time"].notes[0] - 1]
        and cells["performer"]["loss"].notes == ()
    )
    header, table = comparison(study.boards[0], study.judge, "sdpa")
    assert "7 (0.70× †)" in table[0] + table[1]
    assert any(
        note.startswith("†: performer and sdpa") and "torch 2.14.0" in note
        for note in footnotes(study.boards[0], "sdpa")
    )


def test_what_a_reference_has_otherwise_is_in_words(make, tmp_path):
    made = [
        *make.seeds("sdpa"),
        *make.seeds("performer", device={"name": "another CPU", "threads": 8}),
        make.baseline(),
    ]
    text = told(make, tmp_path, made).text
    assert "another device (name)" in text and "another thread count (threads)" in text


def test_the_fused_kernel_is_no_modification_of_its_reference(make, tmp_path):
    made = [*make.seeds("sdpa"), *make.seeds("sdpa_fused"), *make.seeds("performer"), *make.seeds("performer_band")]
    report(make, tmp_path, made)
    assert {row["mechanism"] for row in rows(tmp_path / "out" / "modifications.csv")} == {"performer_band"}


@pytest.mark.parametrize(
    ("device", "words"), [({"kind": "cuda", "name": "a test GPU"}, "allocator"), ({}, "growth of peak RSS")]
)
def test_what_memory_counts_is_said_below_it(make, tmp_path, device, words):
    study = study_of(make, tmp_path, [*make.seeds("sdpa", device=device), *make.seeds("performer", device=device)])
    (note,) = [note for note in footnotes(board_of(study)[0], "sdpa") if note.startswith("Memory on a")]
    assert words in note and "AdamW" in note


def with_cut(make, share, **fields):
    made = make.finetune(**fields)
    made.data["tokens"] = {
        "train": {"tokens_cut_share": share, "documents_cut_share": 0.5},
        "test": {"tokens_cut_share": 0.9},
    }
    return made


def test_the_share_of_text_that_was_cut_is_a_column_and_a_footnote(make, tmp_path):
    report(make, tmp_path, [*(with_cut(make, 0.25, seed=seed) for seed in range(3)), make.baseline(0.8)])
    fine = [row for row in rows(tmp_path / "out" / "results.csv") if row["mode"] == "finetune"]
    assert {(row["tokens_cut_share"], row["documents_cut_share"]) for row in fine} == {("0.25", "0.5")}
    assert "25% at 512 (head kept)" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_cut_lengths_are_told_apart_and_little_is_not_told(make):
    made = [
        with_cut(make, 0.8649, seq_len=4096, config={"dataset.truncate": "tail"}),
        with_cut(make, 0.58, seq_len=16384),
        with_cut(make, 0.57, seq_len=16384, seed=1),
        with_cut(make, 0.001, seq_len=64),
    ]
    assert "86% at 4,096 (tail kept), 58% at 16,384 (head kept)" in cut_note(made)
    assert cut_note([made[-1], make.baseline(0.8), make.finetune()]) is None
    assert cut_shares(make.baseline(0.8)) == {"tokens_cut_share": None, "documents_cut_share": None}

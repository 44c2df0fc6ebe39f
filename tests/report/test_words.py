"""What a report says beside its numbers: thresholds as used, what is missing, differences in words."""

from __future__ import annotations

from tests.report.examples import records, report, rows
from tests.report.test_page import page_of, words
from xcls.report.differences import Interval


def test_what_passing_means_has_the_thresholds_of_the_study(make, tmp_path):
    made = records(make)
    assert "On validation, over at least 3 seeds, at 512 tokens." in words(page_of(make, tmp_path / "usual", made))
    for record in made:
        record.config.update({"claims.seq_len": 1024, "claims.min_seeds": 2})
    text = words(page_of(make, tmp_path / "own", made))
    assert "On validation, over at least 2 seeds, at 1024 tokens." in text and "over at least 3 seeds" not in text


def test_what_a_reference_has_otherwise_is_in_words(make, tmp_path):
    made = [*make.seeds("sdpa"), *make.seeds("performer", device={"name": "another CPU", "threads": 8}), make.baseline()]
    assert "the sdpa runs alike have another device (name) and another thread count (threads)" in words(page_of(make, tmp_path, made))


def test_the_fused_kernel_is_no_modification_of_its_reference(make, tmp_path):
    made = [*make.seeds("sdpa"), *make.seeds("sdpa_fused"), *make.seeds("performer"), *make.seeds("performer_band")]
    report(make, tmp_path, made)
    assert {row["mechanism"] for row in rows(tmp_path / "out" / "modifications.csv")} == {"performer_band"}


def test_no_end_of_an_interval_is_minus_zero():
    turned = Interval(0.0, 0.0, 1.0, 5, "examples").turned
    assert [str(number) for number in (turned.value, turned.low, turned.high)] == ["0.0", "-1.0", "0.0"]


def test_where_nothing_was_measured_in_turns_it_is_said(make, tmp_path):
    assert "No measurement of mode=bench was found" in words(page_of(make, tmp_path, records(make)))


def test_report_md_has_the_groups_and_the_claims(make, tmp_path):
    report(make, tmp_path)
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    groups, claims = text[text.index("## Groups") :].split("## Claims")
    assert groups.count("\n| ") == 5 and "time_per_epoch_best" in groups and "performer" in groups
    assert claims.count("\n| ") == 1 + len(rows(tmp_path / "out" / "wnf.csv")) and "| time ratio " in claims

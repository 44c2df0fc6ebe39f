"""What was cut off is in results.csv, and in words under the comparison."""

from __future__ import annotations

from tests.report.examples import contents, report, rows
from xcls.report.cut import cut_note, cut_shares


def with_cut(make, share, **fields):
    made = make.finetune(**fields)
    made.data["tokens"] = {"train": {"tokens_cut_share": share, "documents_cut_share": 0.5}, "test": {"tokens_cut_share": 0.9}}
    return made


def test_the_share_of_a_run_is_a_column_and_a_remark(make, tmp_path) -> None:
    made = [with_cut(make, 0.25, attention=name, seed=seed) for name in ("sdpa", "performer") for seed in range(3)]
    report(make, tmp_path, [*made, make.baseline(0.8)])
    fine = [row for row in rows(tmp_path / "out" / "results.csv") if row["mode"] == "finetune"]
    assert {(row["tokens_cut_share"], row["documents_cut_share"]) for row in fine} == {("0.25", "0.5")}
    page = contents(tmp_path / "out")["index.html"].decode()
    assert "of the training tokens 25% at 512 (head kept) are left out" in page


def test_lengths_are_told_apart_and_little_is_not_told(make) -> None:
    made = [
        with_cut(make, 0.8649, seq_len=4096, config={"dataset.truncate": "tail"}),
        with_cut(make, 0.58, seq_len=16384), with_cut(make, 0.57, seq_len=16384, seed=1), with_cut(make, 0.001, seq_len=64),
    ]  # fmt: skip
    assert "86% at 4,096 (tail kept), 58% at 16,384 (head kept) are left out" in cut_note(made)
    assert cut_note([made[-1], make.baseline(0.8), make.finetune()]) is None
    assert cut_shares(make.baseline(0.8)) == {"tokens_cut_share": None, "documents_cut_share": None}

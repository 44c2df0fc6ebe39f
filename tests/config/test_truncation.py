"""Documents longer than seq_len, as a user meets them: cut as told, said in the record and in a warning, or refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.conftest import Project

pytestmark = pytest.mark.slow


def long_rows(folder: Path, *, words: int = 4000) -> None:
    """`long.csv`: the rows of `rows.csv` with a long tail each, hundreds of kilobytes in one of them."""
    rows = list(csv.reader(open(folder / "rows.csv", newline="")))
    with open(folder / "long.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0])
        for number, (text, label) in enumerate(rows[1:]):
            writer.writerow([text + " plot\nfilm" * (words * (20 if number == 0 else 1) // 40), label])


def test_long_documents_are_cut_reported_and_warned_about(project: Project) -> None:
    long_rows(project.folder)
    words = ("exp=cut", "dataset.path=long.csv", "tokenizer=bytes", "dataset.truncate=head_tail", "seq_len=300")
    result = project.run("mode=finetune", *words)
    assert result.returncode == 0, result.stderr
    record = json.loads((project.folder / "finetune" / "cut" / "record.json").read_text())
    for split in ("train", "validation", "test"):
        told = record["data"]["tokens"][split]
        assert told["documents_cut"] == told["documents"] and told["documents_cut_share"] == 1.0
        assert 0.6 < told["tokens_cut_share"] < 0.95 and told["tokens"] == 300 * told["documents"]
    assert any(
        f"train: {record['data']['rows']['train']} of" in warning and "dataset.truncate" in warning
        for warning in record["warnings"]
    )
    (project.folder / "new.txt").write_text("fine " * 1000 + "\nshort\n")
    result = project.run("mode=predict", "exp=cut", "input=new.txt", "output=out.csv", small=False)
    assert result.returncode == 0 and "1 of 2 documents are longer than seq_len" in result.stderr, result.stderr


def test_refused_documents_stop_before_anything_is_written(project: Project) -> None:
    long_rows(project.folder, words=40)
    result = project.run(
        "mode=finetune", "exp=no", "dataset.path=long.csv", "tokenizer=bytes", "dataset.truncate=refuse"
    )
    assert (
        result.returncode == 2
        and "longer than seq_len=24" in result.stderr
        and "dataset.truncate=head" in result.stderr
    )
    assert not [name for name in project.files() if name.startswith("finetune/")]


def test_a_run_that_refused_long_documents_can_be_told_to_cut_those_it_predicts(project: Project) -> None:
    result = project.run(
        "mode=finetune",
        "exp=strict",
        "dataset.path=rows.csv",
        "tokenizer=bytes",
        "dataset.truncate=refuse",
        "seq_len=300",
    )
    assert result.returncode == 0, result.stderr
    (project.folder / "new.txt").write_text("short\n" + "fine " * 1000 + "\n")
    words = ("mode=predict", "exp=strict", "input=new.txt", "output=out.csv")
    result = project.run(*words, small=False)
    assert result.returncode == 2 and "the longest, line 2, has 5002 tokens" in result.stderr, result.stderr
    assert "Raise seq_len" not in result.stderr and not (project.folder / "out.csv").exists()
    result = project.run(*words, "dataset.truncate=tail", small=False)
    assert result.returncode == 0 and len((project.folder / "out.csv").read_text().splitlines()) == 3, result.stderr

"""Documents longer than seq_len, as a user meets them: cut as told, said in the record and in a warning, or refused."""

from __future__ import annotations

import csv
import json

import pytest

from tests.conftest import Project

pytestmark = pytest.mark.slow


def test_long_documents_are_cut_and_reported_or_refused(project: Project) -> None:
    with open(project.folder / "rows.csv", newline="") as file:
        rows = list(csv.reader(file))
    with open(project.folder / "long.csv", "w", newline="") as file:
        csv.writer(file).writerows([rows[0], *([text + " plot\nfilm" * 100, label] for text, label in rows[1:])])
    words = ("dataset.path=long.csv", "tokenizer=bytes", "seq_len=300")
    result = project.run("mode=finetune", "exp=cut", "dataset.truncate=head_tail", *words)
    assert result.returncode == 0, result.stderr
    record = json.loads((project.folder / "finetune" / "cut" / "record.json").read_text())
    for told in record["data"]["tokens"].values():
        assert told["documents_cut"] == told["documents"] and told["tokens"] == 300 * told["documents"]
    assert any("dataset.truncate" in warning for warning in record["warnings"])
    result = project.run("mode=finetune", "exp=no", "dataset.truncate=refuse", *words)
    assert result.returncode == 2 and "seq_len=300" in result.stderr and "dataset.truncate" in result.stderr
    assert not (project.folder / "finetune" / "no").exists()


def test_a_run_that_refused_long_documents_can_be_told_to_cut_those_it_predicts(project: Project) -> None:
    words = ("dataset.path=rows.csv", "tokenizer=bytes", "dataset.truncate=refuse", "seq_len=300")
    result = project.run("mode=finetune", "exp=strict", *words)
    assert result.returncode == 0, result.stderr
    (project.folder / "new.txt").write_text("short\n" + "fine " * 1000 + "\n")
    words = ("mode=predict", "exp=strict", "input=new.txt", "output=out.csv")
    result = project.run(*words, small=False)
    assert result.returncode == 2 and "line 2" in result.stderr and not (project.folder / "out.csv").exists()
    result = project.run(*words, "dataset.truncate=tail", small=False)
    assert result.returncode == 0 and len((project.folder / "out.csv").read_text().splitlines()) == 3, result.stderr

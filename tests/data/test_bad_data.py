"""Bad data through the command a user types: refused and nothing written, or read and said."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from tests.conftest import SMALL, Project
from tests.entry import Entry, Outcome, enter

pytestmark = pytest.mark.slow

ROWS = [(f"text {row} of some words", ("good", "bad")[row % 2]) for row in range(40)]
SETTINGS = [word for word in SMALL if not word.startswith("dataset.path")]


def as_csv(rows: list[tuple[str, str]], header: str = "text,label") -> bytes:
    return "\n".join([header, *(f"{text},{label}" for text, label in rows), ""]).encode()


def as_parquet(texts: list, labels: list) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.table({"text": texts, "label": labels}), out)
    return out.getvalue()


GOOD = as_csv(ROWS)
PARQUET = as_parquet([text for text, _ in ROWS], [label for _, label in ROWS])


@pytest.fixture
def entry(project: Project, monkeypatch: pytest.MonkeyPatch) -> Entry:
    return enter(project.folder, monkeypatch)


def call(entry: Entry, files: dict[str, bytes], *words: str) -> Outcome:
    """Writes `files` below data/ and starts a fine-tuning on them."""
    for name, content in files.items():
        file = entry.folder / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    path = "data" if len(files) > 1 else f"data/{next(iter(files))}"
    return entry("mode=finetune", "exp=x", f"dataset.path={path}", *SETTINGS, *words)


REFUSED = {  # of every kind of fault one; the readers' own tests have the rest
    "an empty file": ({"a.csv": b""}, "", "a.csv: the file is empty"),
    "a label column that is not there": ({"a.csv": GOOD}, "dataset.label=stars", "no column 'stars'"),
    "NaN, refused": ({"a.csv": GOOD + b",good\nfine,nan\n"}, "dataset.missing=refuse", "the first is a.csv:42"),
    "another encoding": ({"a.csv": GOOD}, "dataset.source.encoding=utf-16", "a.csv: this is not utf-16 text"),
    "no encoding": ({"a.csv": GOOD}, "dataset.source.encoding=rot13", "encoding=rot13"),
    "a class that test alone has": ({"train.csv": GOOD, "test.csv": as_csv([("b", "ugly")])}, "", "test.csv line 2"),
    "a truncated parquet file": ({"a.parquet": PARQUET[: len(PARQUET) // 2]}, "", "a.parquet: the file is damaged"),
    "a parquet file without its end": ({"a.parquet": PARQUET[:-1]}, "", "Copy it again"),
    "too few for validation": ({"train.csv": as_csv(ROWS[:2]), "test.csv": GOOD}, "", "2 training rows are too few"),
    "too few for test": ({"a.csv": as_csv(ROWS[:2])}, "", "a.csv: its 2 rows are too few"),
    "too few beside test": ({"a.csv": as_csv(ROWS[:4])}, "", "(data/a.csv): 2 training rows are too few"),
    "no text anywhere": ({"a.csv": as_csv([("", label) for _, label in ROWS])}, "", "no row of train has both"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_bad_data_are_refused_and_nothing_is_written(entry: Entry, fault: str) -> None:
    files, words, message = REFUSED[fault]
    outcome = call(entry, files, *words.split())
    assert outcome.code == 2 and not outcome.traceback, outcome.traceback
    assert message in outcome.stderr and outcome.stderr.count("run.py: ") == 1
    assert outcome.files == [] and entry.stages == []


NUL = b"".join(json.dumps({"text": text + "\0", "label": label}).encode() + b"\n" for text, label in ROWS)
NAN = as_parquet([None, *(text for text, _ in ROWS)], [1.0, *(float(row % 2) for row in range(40))])
SHARED = {"train.csv": GOOD, "test.csv": as_csv(ROWS[:3] + [("new", "good")])}
READ = {
    "NaN, left out": ({"a.csv": GOOD + b",good\nfine,nan\n"}, "", "the first is a.csv:42); 2 of", 40),
    "NaN in parquet": ({"a.parquet": NAN}, "", "1 rows have no text", 40),
    "NUL in JSON": ({"a.jsonl": NUL}, "", "a.jsonl: NUL characters in 40 rows (the first is line 1)", 40),
    "a word of ten megabytes": ({"a.csv": GOOD + b"x" * 10_000_000 + b",good\n"}, "", "no test part there", 41),
    "rows in train and test": (SHARED, "", "3 rows of train are also in test (the first is train.csv:2)", 44),
    "rows in train and test, dropped": (SHARED, "dataset.leak=drop", "3 rows of train are also in test", 41),
}


@pytest.mark.parametrize("oddity", READ)
def test_odd_data_are_read_and_said(entry: Entry, oddity: str) -> None:
    files, words, message, rows = READ[oddity]
    outcome = call(entry, files, *words.split())
    assert outcome.code == 0 and entry.stages, outcome.stderr + outcome.traceback
    made = entry.prepared
    assert any(message in warning for warning in made.report["warnings"]), made.report["warnings"]
    assert len(made.train) + len(made.validation) + len(made.test) == rows
    assert not any("\0" in text for part in (made.train, made.test) for text in part["text"])
    if "train and test" in oddity:
        shared = {*made.test["text"]} & {*made.train["text"], *made.validation["text"]}
        assert made.report["train_leak"] == 3 and bool(shared) is ("dropped" not in oddity)


def test_a_vocabulary_that_does_not_fit_is_in_the_record(project: Project) -> None:
    (project.folder / "vocab.txt").write_text("\n".join(["[UNK]", "film", "plot"]))
    result = project.run("mode=finetune", "exp=x", "tokenizer.path=vocab.txt", "finetuning.max_steps=1")
    assert result.returncode == 0, result.stderr
    warnings = json.loads((project.folder / "finetune" / "x" / "record.json").read_text())["warnings"]
    found = [warning for warning in warnings if "[UNK]" in warning]
    assert len(found) == 3 and all("does not fit this text" in text and "tokenizer.extend" in text for text in found)
    assert found[0] in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mode=finetune", "tokenizer.path=vocab.json"], "vocab.json: not a tokenizer.json"),
        (["mode=finetune", "tokenizer.path=empty.txt"], "empty.txt: no tokens there"),
        (["mode=finetune", "dataset.truncate=refuse", "seq_len=4"], "documents are longer than seq_len=4"),
        (["mode=pretrain", "dataset.truncate=refuse", "seq_len=4"], "dataset.truncate=head"),
    ],
)
def test_what_shows_only_in_the_stage_leaves_no_folder(project: Project, words: list[str], message: str) -> None:
    (project.folder / "vocab.json").write_text('{"model": ')
    (project.folder / "empty.txt").write_text("\n")
    before = project.files()
    result = project.run("exp=x", *words)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr, result.stderr
    assert project.files() == before and not Path(project.folder / "finetune" / "x").exists()

"""Bad data through the command a user types: refused with file, row and remedy and nothing written, or read and said."""

from __future__ import annotations

import gzip
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


REFUSED = {
    "an empty file": ({"a.csv": b""}, "", "a.csv: the file is empty. Give a file with rows"),
    "no rows": ({"a.csv": b"text,label\n"}, "", "a.csv: no rows. Give a file with rows"),
    "an empty jsonl": ({"a.jsonl": b"\n"}, "", "a.jsonl: no rows"),
    "one class": (
        {"a.csv": as_csv([(text, "good") for text, _ in ROWS])},
        "",
        "only the class 'good' in the column 'label'; a classifier needs two",
    ),
    "no label anywhere": ({"a.csv": as_csv([(text, "") for text, _ in ROWS])}, "", "no labels in the column 'label'"),
    "a column that is not there": (
        {"a.csv": GOOD},
        "dataset.text=txt",
        "a.csv: no column 'txt'. Its columns are 'text', 'label'. Did you mean 'text'",
    ),
    "a label column that is not there": ({"a.csv": GOOD}, "dataset.label=stars", "no column 'stars'"),
    "two columns of one name": (
        {"a.csv": as_csv([("x,y", "good")] * 9, "text,text,label")},
        "",
        "a.csv: 2 columns are called 'text'",
    ),
    "NaN, refused": (
        {"a.csv": GOOD + b",good\nfine,nan\n"},
        "dataset.missing=refuse",
        "1 rows have no text and 1 no label (the first is a.csv:42). Mend them, or set dataset.missing=skip",
    ),
    "bytes that are not UTF-8": (
        {"a.csv": GOOD + b"gr\xfcn,good\n"},
        "",
        "a.csv, line 42: this is not utf-8 text. Name its encoding",
    ),
    "UTF-16 without its mark": ({"a.csv": GOOD}, "dataset.source.encoding=utf-16", "a.csv: this is not utf-16 text"),
    "not text at all, by encoding": (
        {"a.csv": GOOD},
        "dataset.source.encoding=rot13",
        "encoding=rot13: no such encoding",
    ),
    "bytes in parquet": (
        {"a.parquet": as_parquet([b"\xff"] * 9, ["a", "b", "c"] * 3)},
        "",
        "a.parquet, row 1: the column 'text' holds bytes",
    ),
    "lists in jsonl": (
        {"a.jsonl": b'{"text": "a", "label": 1}\n{"text": ["b"], "label": 2}\n'},
        "",
        "a.jsonl, line 2: the column 'text' holds list",
    ),
    "a class that test alone has": (
        {"train.csv": GOOD, "test.csv": as_csv([("a", "good"), ("b", "ugly")])},
        "",
        "test.csv line 3: the label 'ugly' is in no row of the training data (classes there: bad, good)",
    ),
    "all of train in test, dropped": (
        {"train.csv": GOOD, "test.csv": GOOD},
        "dataset.leak=drop",
        "every row of train stands in test too",
    ),
    "a truncated parquet file": (
        {"a.parquet": PARQUET[: len(PARQUET) // 2]},
        "",
        "a.parquet: the file is damaged or cut off",
    ),
    "a parquet file without its end": ({"a.parquet": PARQUET[:-1]}, "", "Copy it again"),
    "a truncated gzip file": (
        {"a.csv.gz": gzip.compress(GOOD * 99, mtime=0)[:-99]},
        "",
        "a.csv.gz: the gzip file is damaged or cut off",
    ),
    "no gzip file": ({"a.csv.gz": GOOD}, "", "a.csv.gz: the gzip file is damaged"),
    "an open quote": (
        {"a.csv": GOOD + b'"open,good\n'},
        "",
        "a.csv, line 42: unexpected end of data. Mend the quotes there",
    ),
    "a comma too many": (
        {"a.csv": GOOD + b"one, two,good\n"},
        "",
        "a.csv, line 42: 3 fields where there are 2 columns",
    ),
    "broken JSON": ({"a.jsonl": b'{"text": "a", "label": 1}\n{"text": \n'}, "", "a.jsonl, line 2: not JSON"),
    "numbers for classes": (
        {"a.csv": as_csv([(text, str(row / 7)) for row, (text, _) in enumerate(ROWS)])},
        "",
        "40 different values in 40 rows",
    ),
    "too few for validation": (
        {"train.csv": as_csv(ROWS[:2]), "test.csv": GOOD},
        "",
        "2 training rows are too few to set some aside for validation",
    ),
    "too few for test": (
        {"a.csv": as_csv(ROWS[:2])},
        "",
        "a.csv: its 2 rows are too few to set a test part aside: 2 different texts have a label",
    ),
    "too few beside test": (
        {"a.csv": as_csv(ROWS[:4])},
        "",
        "(data/a.csv): 2 training rows are too few to set some aside for validation",
    ),
    "no text anywhere": (
        {"a.csv": as_csv([("", label) for _, label in ROWS])},
        "",
        "no row of train has both text and label",
    ),
    "a kind that is not known": ({"a.xlsx": b"PK"}, "", "a.xlsx: a file of this kind is not known"),
    "a vocabulary that is none": (
        {"a.csv": GOOD},
        "tokenizer.path=data/a.csv tokenizer.kind=wordpiece tokenizer.extend=-1",
        "tokenizer.extend=-1",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_bad_data_are_refused_and_nothing_is_written(entry: Entry, fault: str) -> None:
    files, words, message = REFUSED[fault]
    outcome = call(entry, files, *words.split())
    assert outcome.code == 2 and not outcome.traceback, outcome.traceback
    assert message in outcome.stderr and outcome.stderr.count("run.py: ") == 1
    assert outcome.files == [] and entry.stages == []


READ = {
    "labels as text": (
        {"a.jsonl": b"".join(json.dumps({"text": t, "label": n}).encode() + b"\n" for t, n in ROWS)},
        "",
        "no test part there",
        40,
    ),
    "NaN, left out": (
        {"a.csv": GOOD + b",good\nfine,nan\n"},
        "",
        "1 rows have no text and 1 no label (the first is a.csv:42); 2 of",
        40,
    ),
    "NaN in parquet": (
        {"a.parquet": as_parquet([None, *(t for t, _ in ROWS)], [1.0, *(float(r % 2) for r in range(40))])},
        "",
        "1 rows have no text",
        40,
    ),
    "NUL bytes in csv": (
        {"a.csv": GOOD + b"one\0two,good\n"},
        "",
        "a.csv: NUL bytes in 1 lines (the first is line 42), read as spaces",
        41,
    ),
    "NUL in JSON": (
        {"a.jsonl": b"".join(json.dumps({"text": t + "\0", "label": n}).encode() + b"\n" for t, n in ROWS)},
        "",
        "a.jsonl: NUL characters in 40 rows (the first is line 1), read as spaces",
        40,
    ),
    "a document of ten megabytes": (
        {"a.csv": GOOD + b"ten letters " * 900_000 + b",good\n"},
        "",
        "no test part there",
        41,
    ),
    "a word of ten megabytes": ({"a.csv": GOOD + b"x" * 10_000_000 + b",good\n"}, "", "no test part there", 41),
    "duplicate rows": (
        {"train.csv": GOOD + as_csv(ROWS[:4], "again,good"), "test.csv": as_csv([("new a", "good"), ("new b", "bad")])},
        "",
        "4 of 45 rows of train repeat the text of an earlier row (the first is train.csv:43, a repetition of train.csv:2)",
        47,
    ),
    "contrary labels": (
        {"train.csv": GOOD + b"text 0 of some words,bad\n", "test.csv": as_csv([("new a", "good"), ("new b", "bad")])},
        "",
        "under another label (the first is train.csv:42, a repetition of train.csv:2)",
        43,
    ),
    "rows in train and test": (
        {"train.csv": GOOD, "test.csv": as_csv(ROWS[:3] + [("new", "good")])},
        "",
        "3 rows of train stand in test too (the first is train.csv:2); dataset.leak=drop leaves them out",
        44,
    ),
    "rows in train and test, dropped": (
        {"train.csv": GOOD, "test.csv": as_csv(ROWS[:3] + [("new", "good")])},
        "dataset.leak=drop",
        "3 rows of train stand in test too (the first is train.csv:2); they are dropped",
        41,
    ),
    "a class that test lacks": (
        {"train.csv": GOOD, "test.csv": as_csv([("new", "good")])},
        "",
        "test has no row of the classes bad",
        41,
    ),
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
        assert made.report["train_leak"] == 3
        assert bool(set(made.test["text"]) & {*made.train["text"], *made.validation["text"]}) is (
            "dropped" not in oddity
        )


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

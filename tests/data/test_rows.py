"""Rows in memory and rows in files that are read piece by piece: the same rows, and no more memory than a few bytes
each.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from tests.conftest import ROOT
from xcls.config.schema import Dataset, UserError
from xcls.data import files, rows
from xcls.data.files import Files
from xcls.data.rows import MISSING, Rows, Texts, make_rows
from xcls.data.splits import prepare
from xcls.data.stratify import first_alike

TEXTS = ["one", None, " ONE ", "", "zwei ä", "three\nlines"] * 4
LABELS = [0, 1, None, 2, 0, 1] * 4
IDS = [f"file:{row}" for row in range(24)]


@pytest.fixture(params=["memory", "file"])
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rows:
    monkeypatch.setattr(rows, "BATCH", 5)
    folder = tmp_path / "rows" if request.param == "file" else None
    return make_rows(text=TEXTS, label=LABELS, id=IDS, folder=folder)


def test_rows_are_what_was_given(made: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BATCH", 7)
    assert len(made) == 24 and list(made["text"]) == list(made["text"]) == TEXTS
    assert list(made["label"]) == LABELS and list(made["id"]) == IDS
    assert made.labels.tolist() == [MISSING if label is None else label for label in LABELS]
    assert made["text"][4] == "zwei ä" and made["label"][4] == 0 and made["id"][-1] == "file:23"
    assert made["id"][3:5] == IDS[3:5] and made["text"][::9] == TEXTS[::9]
    assert np.asarray(made.select([0, 3])["label"]).tolist() == [0, 2]
    with pytest.raises(IndexError):
        made["id"][24]
    with pytest.raises(KeyError):
        made["nothing"]


def test_picked_rows_keep_their_order(made: Rows) -> None:
    picked = made.select([20, 3, 3, 11, 4]).select([4, 0, 1])
    assert list(picked["id"]) == ["file:4", "file:20", "file:3"] and picked.labels.tolist() == [0, MISSING, 2]
    assert (picked.keys() == made.keys()[[4, 20, 3]]).all()
    assert list(made.select(made.labels == 2)["id"]) == IDS[3::6]
    assert len(made.select([])) == 0 and list(made.select([])["text"]) == []


def test_keys_tell_texts_apart_but_not_case_and_space(made: Rows) -> None:
    alike = first_alike(made.keys())
    assert alike[:6].tolist() == [0, 1, 0, 1, 4, 5] and (alike[6:] == alike[:6].tolist() * 3).all()


def test_texts_are_one_sequence() -> None:
    one = make_rows(text=["a", "b", "c"], label=[0] * 3, id=["x"] * 3)
    texts = Texts([one["text"], one.select([])["text"], one.select([1])["text"]])
    assert len(texts) == 4 and list(texts) == ["a", "b", "c", "b"] == texts[:] and texts[1:4] == ["b", "c", "b"]
    assert texts[-1] == "b" and texts[2:3] == ["c"]
    with pytest.raises(IndexError):
        texts[4]


def many(count: int = 90) -> list[dict]:
    return [{"text": f"text number {row % 70}", "label": ["good", "bad", "so so"][row % 3]} for row in range(count)]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"data.{kind}"
    if kind == "folder":
        for row, values in enumerate(many()):
            file = path / values["label"] / f"{row}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(values["text"])
    elif kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(many()), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in many()))
    else:
        path.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in many()))
    return path


def everything(path: Path) -> list:
    splits = Files(path=str(path)).load()
    parts = [list(part[name]) for part in (splits.train, splits.test) for name in ("text", "label", "id")]
    return [splits.classes, splits.notes, *parts]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "folder"])
def test_large_files_give_the_rows_of_small_ones(
    kind: str, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, kind)
    small = everything(path)
    assert not own_cache.exists()
    monkeypatch.setattr(files, "SMALL", 0)
    monkeypatch.setattr("xcls.data.formats.PIECE", 7)
    assert everything(path) == small and len(list((own_cache / "rows").glob("*/train/rows.arrow"))) == 1
    monkeypatch.setattr(files, "read_pieces", None)  # the second time they are not read again
    monkeypatch.setattr(files, "class_pieces", None)
    assert everything(path) == small


def test_a_file_that_changes_while_it_is_read_leaves_nothing(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = write(tmp_path, "csv"), files.read_pieces

    def slowly(*given, **named):
        yield from read(*given, **named)
        path.write_text(path.read_text() + "one more,good\n")

    monkeypatch.setattr(files, "SMALL", 0)
    monkeypatch.setattr(files, "read_pieces", slowly)
    with pytest.raises(UserError, match="data.csv: changed while it was read"):
        Files(path=str(path)).load()
    assert not [found for found in (own_cache / "rows").iterdir() if found.suffix != ".lock"]


@pytest.mark.parametrize("small", [0, 10**9])
def test_the_splits_of_a_seed_stay_what_they_were(tmp_path: Path, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first hash is of the rows that the first version of the suite made of this file."""
    monkeypatch.setattr(files, "SMALL", small)
    draws, lines = np.random.default_rng(3), ["text,label"]
    for row in range(2500):
        words = " ".join(f"w{word}" for word in draws.integers(0, 9, 3))
        label = "" if row % 101 == 0 else "abc"[int(draws.integers(0, 3))]
        lines.append(f"{'' if row % 97 == 0 else words},{label}")
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    extra = "".join(f"extra w{row % 9} w{row % 7}\n" if row % 5 else "w1 w2 w3\n" for row in range(300))
    (tmp_path / "extra.txt").write_text(extra)
    source = Files(path=str(tmp_path / "rows.csv"))
    assert source.fingerprint().startswith("e4f418ecc96900df")
    more = Dataset(limit=300, leak="drop", extra=[str(tmp_path / "extra.txt")])
    for settings, known in ((Dataset(), "8f62a89aa79ff4de"), (more, "99e1eca47e441c9a")):
        made, whole = prepare(source, settings), hashlib.sha256()
        for part in (made.train, made.validation, made.test):
            for name in ("id", "text", "label"):
                whole.update(repr(list(part[name])).encode())
        whole.update(repr(list(made.mlm_texts)).encode())
        assert whole.hexdigest().startswith(known)


GROWTH = """
import resource, sys
import pandas, pyarrow.ipc, tqdm, filelock, tokenizers, numpy
from xcls.data.batching import batches
from xcls.data.files import Files
from xcls.data.splits import prepare
from xcls.data.tokenizer import make_tokenizer
from tests.conftest import ROOT
from xcls.config.schema import Dataset, Tokenizer
from xcls.stages.texts import classification_data
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepared = prepare(Files(path=sys.argv[1]), Dataset())
tokenizer = make_tokenizer(Tokenizer(kind="words"), prepared.mlm_texts)
data = classification_data(prepared, tokenizer, seq_len=64, truncate="head")
batches(data.train.encoded.lengths, batch_size=32, seed=0, epoch=0)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_memory_hardly_grows_with_the_number_of_rows(tmp_path: Path) -> None:
    draws, grown = np.random.default_rng(0), {}
    words = np.array([f"w{number**2}" for number in range(5000)], dtype=object)
    for count in (60_000, 260_000):  # both above what is read into memory as a whole
        path = tmp_path / f"{count}.csv"
        rows = (f"{' '.join(words[draws.integers(0, 5000, 25)])},class {row % 4}\n" for row in range(count))
        path.write_text("text,label\n" + "".join(rows), "utf-8")
        assert path.stat().st_size > files.SMALL
        done = subprocess.run([sys.executable, "-c", GROWTH, str(path)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        grown[count] = float(done.stdout)
    a_row = 2**20 * (grown[260_000] - grown[60_000]) / 200_000
    assert a_row < 250, grown  # bytes; a text takes 160, and in memory as Python has it five times as much

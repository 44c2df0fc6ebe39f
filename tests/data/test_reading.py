"""New documents are read as the run's training data were: format, encoding, columns, cleaning; no row is lost or
moved.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from xcls.config.schema import Dataset, UserError
from xcls.data.ag_news import AgNews
from xcls.data.files import Files
from xcls.data.formats import Format
from xcls.data.imdb import Imdb
from xcls.data.pydocs import Pydocs
from xcls.data.pysource import Pysource
from xcls.data.reading import Documents, Reading, read_documents
from xcls.data.splits import prepare


def read(folder: Path, name: str, content: bytes | str, reading: Reading = Reading(["text"]), **how: Any) -> Documents:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_documents(folder / name, reading, **how)


def test_tables_and_lines_are_read_in_the_format_of_the_training_data(tmp_path: Path) -> None:
    form = Files(separator=";", encoding="latin-1").reading()
    assert read(tmp_path, "a.csv", b"note;text\nx;caf\xe9, noir\n", form).texts == ["caf\xe9, noir"]
    assert read(tmp_path, "a.txt", b"caf\xe9\n", form).texts == ["caf\xe9"]
    assert read(tmp_path, "b.csv", 'text|n\n"open|1\n', Files(separator="|", quotes=False).reading()).texts == ['"open']
    assert read(tmp_path, "c.csv", "a,b,c\n1,2,3\n", Files(text=["c", "a"]).reading()).texts == ["3 1"]
    assert read(tmp_path, "d.tsv", "text\tn\na\tb\n", Files().reading()).texts == ["a"]


def test_empty_documents_stay_in_their_place(tmp_path: Path) -> None:
    found = read(tmp_path, "a.txt", "one\n\n  \nfour\n")
    assert found.texts[0::3] == ["one", "four"] and found.places == ["line 1", "line 2", "line 3", "line 4"]
    assert read(tmp_path, "a.jsonl", '{"text": "a"}\n{"text": null}\n{"id": 3, "text": ""}\n').texts == ["a", "", ""]
    assert read(tmp_path, "a.csv", 'text,n\n,1\nb,2\n"",3\n').texts == ["", "b", ""]


@pytest.mark.parametrize(
    ("name", "content", "ids"),
    [
        ("a.csv", "id,text\n=7,a\nx,b\n", ["=7", "x"]),
        ("a.jsonl", '{"Id": 4, "text": "a"}\n{"text": "b"}\n', [4, None]),
        ("b.csv", "n,text\n1,a\n", None),
    ],
)
def test_ids_of_rows_are_kept(name: str, content: str, ids: list[Any] | None, tmp_path: Path) -> None:
    assert read(tmp_path, name, content).ids == ids
    assert read(tmp_path, "own.csv", "key,id,text\nk,i,a\n", Files(id="key").reading()).ids == ["k"]


def test_a_missing_column_names_those_there_and_the_key_to_set(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, "a.csv", "review,n\na,1\n")
    assert all(word in str(caught.value) for word in ("a.csv", "'text'", "'review'", "'n'", "text="))


def test_a_folder_of_text_files_has_a_document_in_each(tmp_path: Path) -> None:
    for name, text in (("b.txt", "two\nlines"), ("deep/a.txt", "x"), ("notes.md", "no")):
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "new" / name).write_text(text)
    found = read_documents(tmp_path / "new", Reading(["text"]))
    assert dict(zip(found.places, found.texts)) == {"b.txt": "two\nlines", "deep/a.txt": "x"}


STREAMS = [  # content, what is read from it
    (b"one\n\ntwo\n", ["one", "", "two"]),
    (b"n;text\n1;a,b\n", ["a,b"]),
    (b'{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
    (b'[{"text": "a"}]', ["a"]),
    (b"( [MAX 4 ( [MIN 2 ] ) ] )\n", ["( [MAX 4 ( [MIN 2 ] ) ] )"]),
    (gzip.compress(b"one\ntwo\n", mtime=0), ["one", "two"]),
]


@pytest.mark.parametrize(("content", "texts"), STREAMS)
def test_standard_input_is_read_by_its_content(
    content: bytes, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert read_documents("-", Reading(["text"], Format(separator=";"))).texts == texts


def test_pipes_and_files_without_a_suffix_are_read(tmp_path: Path) -> None:
    out, into = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(into, b"one\ntwo\n"), os.close(into)))
    writer.start()
    assert read_documents(f"/dev/fd/{out}", Reading(["text"])).texts == ["one", "two"]
    writer.join()
    os.close(out)
    assert read(tmp_path, "new", "text,n\na,1\n").texts == ["a"]
    with pytest.raises(UserError, match=r"new.*no column 'text'.*'review'"):
        read(tmp_path, "new", "review,n\na,1\n", table=True)


@pytest.mark.parametrize("stream", ["-", "nothing.csv"])
def test_no_documents_are_one_message(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(UserError, match=f"input={stream}"):
        read_documents(stream, Reading(["text"]))


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_refused_before_anything_is_copied(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/zero has no end: a copy of it fills the disk."""
    monkeypatch.setattr("shutil.copyfileobj", lambda *_: pytest.fail("copied"))
    with pytest.raises(UserError, match=f"input={device}.*device"):
        read_documents(device, Reading(["text"]))


CLEANED = [  # a source, a text of its files, the text that it trains on
    (Imdb(), "good<br /><br/>film", "good  film"),
    (Imdb(strip_breaks=False), "good<br />film", "good<br />film"),
    (Pydocs(), "as numpy.array and pd.Series", "as LIB.array and LIB.Series"),
    (Pysource(), "# licence\nimport torch.nn\n", "import LIB\n"),
    (AgNews(), "a <br /> b", "a <br /> b"),
    (Files(), "a <br /> ( b", "a <br /> ( b"),
]


@pytest.mark.parametrize(("source", "text", "cleaned"), CLEANED, ids=lambda value: type(value).__name__)
def test_texts_are_cleaned_as_in_training_and_once_is_enough(
    source: Any, text: str, cleaned: str, tmp_path: Path
) -> None:
    reading = source.reading()
    for given in (text, cleaned):
        row = json.dumps(dict.fromkeys(reading.text, given))
        assert read(tmp_path, "a.jsonl", row, reading).texts == [cleaned]


def test_what_training_reads_is_what_prediction_reads(tmp_path: Path) -> None:
    for folder in (f"{split}/{label}" for split in ("train", "test") for label in ("pos", "neg")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "0_7.txt").write_text(f"{folder}<br />\x00end")
    source = Imdb(path=str(tmp_path), use_unlabelled=False)
    new = read_documents(tmp_path / "test", source.reading()).texts
    assert new == ["test/neg  end", "test/pos  end"] == sorted(source.load().test["text"])


def test_extra_text_is_read_as_the_data_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XCLS_CACHE", str(tmp_path / "cache"))
    rows = "".join(f"t{number} caf\xe9;{'ab'[number % 2]}\n" for number in range(40))
    (tmp_path / "rows.csv").write_bytes(f"Body;label\n{rows}".encode("latin-1"))
    (tmp_path / "more.csv").write_bytes("Body;n\nth\xe9;1\n;2\n".encode("latin-1"))
    (tmp_path / "more.txt").write_bytes("na\xefve\n".encode("latin-1"))
    source = Files(path=str(tmp_path / "rows.csv"), text="Body", separator=";", encoding="latin-1")
    settings = Dataset(name="files", text="Body", extra=[str(tmp_path / "more.csv"), str(tmp_path / "more.txt")])
    found = list(prepare(source, settings).mlm_texts)
    assert found[-2:] == ["th\xe9", "na\xefve"] and all("caf\xe9" in text for text in found[:-2])

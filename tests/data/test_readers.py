"""What can be wrong with a file, and what the user is told: file, row, remedy."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from xcls.config.schema import UserError
from xcls.data.readers import Format, read_table, text_pieces
from xcls.data.reading import Reading

ROWS = b"text,label\nfine,a\n"
SINK = pa.BufferOutputStream()
parquet.write_table(pa.table({"text": [b"\xff"], "label": [1]}), SINK)
BYTES = SINK.getvalue().to_pybytes()


def table(tmp_path: Path, name: str, content: bytes, columns=("text", "label"), **form):
    file = tmp_path / name
    file.write_bytes(content)
    return read_table(file, columns, Format(**form))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b'text,other,label\n"one, two",x,a\n"three\nlines ""quoted""",y,b\n'),
        ("a.tsv", b'text\tother\tlabel\none, two\tx\ta\n"three\nlines ""quoted"""\ty\tb\n'),
        ("a.csv", b'\xef\xbb\xbftext,other,label\r\n"one, two",x,a\r\n\r\n"three\nlines ""quoted""",y,b\r\n'),
        ("a.jsonl", b'{"text": "one, two", "label": "a"}\n\n{"label": "b", "text": "three\\nlines \\"quoted\\""}\n'),
        ("a.json", b'[{"text": "one, two", "label": "a"}, {"label": "b", "text": "three\\nlines \\"quoted\\""}]'),
        ("a.csv.gz", gzip.compress(b'text,other,label\n"one, two",x,a\n"three\nlines ""quoted""",y,b\n', mtime=0)),
    ],
)
def test_every_kind_gives_the_same_rows(tmp_path: Path, name: str, content: bytes) -> None:
    read = table(tmp_path, name, content)
    assert read.columns == {"text": ["one, two", 'three\nlines "quoted"'], "label": ["a", "b"]}


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": ["one", None], "label": [0, 1], "more": [1.0, 2.0]}), tmp_path / "a.parquet")
    read = read_table(tmp_path / "a.parquet", ["text", "label"])
    assert read.columns == {"text": ["one", None], "label": [0, 1]} and read.places == ["row 1", "row 2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv: the file is empty"),
        ("a.csv", b"text,label\n", "a.csv: no rows"),
        ("a.jsonl", b"\n\n", "a.jsonl: no rows"),
        ("a.csv", b"review,label\nfine,a\n", r"no column 'text'. Its columns are 'review', 'label'.*dataset.text"),
        ("a.csv", b"txt,label\nfine,a\n", "Did you mean 'txt'"),
        ("a.csv", b"text;label\nfine;a\n", "dataset.source.separator"),
        ("a.csv", ROWS + b"\ntwo, commas,b\n", "a.csv, line 4: 3 fields where there are 2 columns"),
        ("a.csv", ROWS + b'"open,b\n', "a.csv, line 3: unexpected end of data.*quotes"),
        (
            "a.csv",
            ROWS + "gr\xfcn,b\n".encode("latin-1"),
            "a.csv, line 3: this is not utf-8.*dataset.source.encoding=cp1252",
        ),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": \n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n[1]\n', "a.jsonl, line 2: this is .*an object like"),
        ("a.json", b"[{]", "a.json, line 1: not JSON"),
        ("a.json", b"[1]", "a.json, row 1: this is .*an object like"),
        ("a.csv.gz", gzip.compress(ROWS * 1000, mtime=0)[:-20], "a.csv.gz: the gzip file is damaged or cut off"),
        ("a.csv.gz", ROWS, "a.csv.gz: the gzip file is damaged"),
        ("a.parquet", b"PAR1 and no more", "a.parquet: the file is damaged or cut off"),
        ("a.xlsx", b"PK", "a.xlsx: this kind of file is not known"),
        ("a.csv", b"text,text,label\na,b,c\n", "a.csv: 2 columns are called 'text'"),
        ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": ["b"]}\n', "a.jsonl, line 2: the column 'text' holds list"),
        ("a.parquet", BYTES, "a.parquet, row 1: the column 'text' holds bytes"),
    ],
)
def test_a_bad_file_is_named_with_row_and_remedy(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        table(tmp_path, name, content)


def test_nul_bytes_are_read_as_spaces_and_noted(tmp_path: Path) -> None:
    for name, content in (("a.csv", b"text,label\none\0two,a\n"), ("a.jsonl", b'{"text": "one\0two", "label": "a"}\n')):
        read = table(tmp_path, name, content)
        assert read.columns["text"] == ["one two"] and "NUL bytes in 1 lines" in read.notes[0]


def test_a_document_of_ten_megabytes_is_read(tmp_path: Path) -> None:
    read = table(tmp_path, "a.csv", b"text,label\n" + b"ten letters " * 900_000 + b",a\n")
    assert len(read.columns["text"][0]) == 10_800_000


def test_format_options_are_obeyed(tmp_path: Path) -> None:
    semicolons = "text;label\ngr\xfcn;a\n".encode("latin-1")
    assert table(tmp_path, "a.csv", semicolons, separator=";", encoding="latin-1").columns["text"] == ["gr\xfcn"]
    assert table(tmp_path, "a.tsv", b'text\tlabel\n"open\ta\n', quotes=False).columns["text"] == ['"open']
    with pytest.raises(UserError, match="klingon"):
        table(tmp_path, "a.csv", ROWS, encoding="klingon")


def test_texts_come_from_lines_tables_and_folders(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").write_text("one\n\n two \n")
    (tmp_path / "a.csv").write_text("text,label\nthree,\n,x\n")
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    assert [text for piece in text_pieces(tmp_path, Reading(["text"])) for text in piece] == ["three", "one", "two"]
    for missing in ("nowhere", "cache"):
        with pytest.raises(UserError, match=missing):
            list(text_pieces(tmp_path / missing, Reading(["text"])))

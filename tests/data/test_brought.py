"""Files as people bring them: what is read as it is meant, and what is said of the rest."""

from __future__ import annotations

import gzip
import json
import unicodedata
from itertools import permutations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from xcls.config.schema import UserError
from xcls.data.files import Files
from xcls.data.labels import class_order
from xcls.data.readers import read_table, text_files
from xcls.data.source import Splits
from xcls.data.text_file import text_lines

ACCENT = unicodedata.normalize("NFC", "Économie")
SPLIT = unicodedata.normalize("NFD", ACCENT)


def rows(*labels: str, times: int = 10) -> list[tuple[str, str]]:
    return [(f"text {number} of {label}", label) for number in range(times) for label in labels]


def csv_of(pairs: list[tuple[str, str]], header: str = "text,label\n", separator: str = ",") -> str:
    return header + "".join(f"{text}{separator}{label}\n" for text, label in pairs)


def load(path: Path, content: str | bytes | None = None, **options: Any) -> Splits:
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Files(path=str(path), **options).load()


def count(splits: Splits) -> int:
    return sum(len(part) for part in (splits.train, splits.validation, splits.test) if part is not None)


def tree(root: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


@pytest.mark.parametrize(
    "names", [("01", "1", "001"), ("-0", "0"), ("٣", "3"), ("１", "1"), ("①", "²", "½"), ("1e3", "7")]
)
def test_the_order_of_classes_is_that_of_their_names_alone(tmp_path: Path, names: tuple[str, ...]) -> None:
    found = {tuple(load(tmp_path / "a.csv", csv_of(rows(*order))).classes) for order in permutations(names)}
    assert found == {tuple(class_order(names))} and sorted(found.pop()) == sorted(names)


def test_a_name_in_either_form_of_its_accents_is_one_class(tmp_path: Path) -> None:
    splits = load(tmp_path / "a.csv", csv_of(rows(ACCENT, SPLIT, "Sport")))
    assert splits.classes == ["Sport", ACCENT] and count(splits) == 30
    folder = tree(
        tmp_path / "d",
        {
            f"{part}/{name}/{number}.txt": f"{name} {part} {number}"
            for number in range(3)
            for part, name in (("train", SPLIT), ("train", "Sport"), ("test", ACCENT), ("test", "Sport"))
        },
    )
    splits = load(folder)
    assert splits.classes == ["Sport", ACCENT] and sorted(splits.test["label"]) == [0, 0, 0, 1, 1, 1]


def test_columns_are_found_whatever_the_form_of_their_accents(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{SPLIT}, label \na,b\n", "utf-8")
    (tmp_path / "a.jsonl").write_text(json.dumps({SPLIT: "a", " label ": "b"}))
    for name in ("a.csv", "a.jsonl"):
        assert read_table(tmp_path / name, [ACCENT, "label"]).columns == {ACCENT: ["a"], "label": ["b"]}


def test_names_that_differ_in_capitals_or_blanks_are_told_and_joined_on_request(tmp_path: Path) -> None:
    alike = rows("sport ", "SPORT", times=4) + rows("New York", "new  york", "b\u200bc", "bc", times=3)
    apart = load(tmp_path / "a.csv", csv_of(rows("Sport", times=6) + alike))
    assert len(apart.classes) == 7
    warning = next(note for note in apart.notes if "dataset.labels.casefold=true" in note)
    assert all(f"'{name}' ({count} rows)" in warning for name, count in (("Sport", 6), ("SPORT", 4), ("bc", 3)))
    joined = load(tmp_path / "a.csv", labels={"casefold": True})
    assert joined.classes == ["New York", "Sport", "bc"] and count(joined) == 26
    tree(tmp_path / "d", {"train.csv": csv_of(rows("True", "False")), "test.csv": csv_of([("new", "true")])})
    with pytest.raises(UserError, match="'true'.*dataset.labels.casefold=true"):
        load(tmp_path / "d")
    assert list(load(tmp_path / "d", labels={"casefold": True}).test["label"]) == [1]


def test_the_class_nan_is_kept_on_request_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    splits = load(tmp_path / "a.csv", csv_of(rows("deu", "eng", "nan")))
    assert splits.classes == ["deu", "eng"]
    assert any("'nan' of 10 rows" in note and "dataset.labels.missing=[]" in note for note in splits.notes)
    assert load(tmp_path / "a.csv", labels={"missing": []}).classes == ["deu", "eng", "nan"]
    texts = {f"{name}/{n}.txt": f"{name} {n}" for name in ("deu", "eng", "nan") for n in range(5)}
    assert load(tree(tmp_path / "d", texts)).classes == ["deu", "eng", "nan"]


@pytest.mark.parametrize("missing", [["nan", "NA", "NULL"], ["nan", "na", None]])
def test_names_that_often_mean_no_label_are_told_and_left_out_on_request(
    tmp_path: Path, missing: list[str | None]
) -> None:
    content = csv_of(rows("a", "b") + rows("NA", "NULL", times=3))
    splits = load(tmp_path / "a.csv", content)
    assert splits.classes == ["NA", "NULL", "a", "b"]
    assert any("'NA' (3 rows)" in note and 'dataset.labels.missing=[nan,NA,"NULL"]' in note for note in splits.notes)
    assert load(tmp_path / "a.csv", labels={"missing": missing}).classes == ["a", "b"]


JUNK = (
    "__MACOSX/elec/._1.txt",
    "elec/.ipynb_checkpoints/1-checkpoint.txt",
    "food/._2.txt",
    ".DS_Store",
    "Thumbs.db",
    "elec/desktop.ini",
    "food/~$x.txt",
    "@eaDir/1.txt",
)


def test_what_systems_and_editors_leave_in_folders_is_no_text(tmp_path: Path) -> None:
    clean = {f"{name}/{n}.{'TXT' if n == 1 else 'txt'}": f"{name} {n}" for name in ("elec", "food") for n in range(5)}
    plain = Files(path=str(tree(tmp_path / "plain", clean)))
    odd = tree(tmp_path / "odd", {**clean, **dict.fromkeys(JUNK, b"\x00\x05\x16\x07\xff")})
    assert load(odd).classes == ["elec", "food"] and count(load(odd)) == 10 == len(text_files(odd))
    assert Files(path=str(odd)).fingerprint() == plain.fingerprint()
    tables = {"train.csv": csv_of(rows("a", "b")), "test.csv": csv_of(rows("a", "b"))}
    assert count(load(tree(tmp_path / "tables", {**tables, "._train.csv": b"\xff", "~$train.csv": b"\xff"}))) == 40
    bare = {f"{name}/{n}": f"{name} {n}" for name in ("elec", "food") for n in range(5)}
    assert count(load(tree(tmp_path / "bare", bare))) == 10
    nested = {f"mine/{name}": content for name, content in clean.items()}
    assert load(tree(tmp_path / "zip", {**nested, "__MACOSX/mine/._x": b"\xff"})).classes == ["elec", "food"]


def arrow(pairs: list[tuple[str, str]]) -> bytes:
    table = pa.table({"text": [text for text, _ in pairs], "label": [label for _, label in pairs]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def test_what_the_library_datasets_saves_is_read(tmp_path: Path) -> None:
    saved = {"dataset_info.json": "{\n}", "state.json": "{\n}", "cache-1.arrow": b"no"}
    shards = {f"data-0000{n}-of-00002.arrow": arrow(rows(name)) for n, name in enumerate("ab")}
    one = load(tree(tmp_path / "one", {**saved, **shards}))
    assert one.classes == ["a", "b"] and count(one) == 20
    files: dict[str, bytes | str] = {f"{part}/{name}": saved[name] for part in ("train", "test") for name in saved}
    files |= {
        f"{part}/data-00000-of-00001.arrow": arrow(rows(*names)) for part, names in (("train", "ab"), ("test", "a"))
    }
    both = tree(tmp_path / "both", {**files, "dataset_dict.json": '{"splits": ["train", "test"]}'})
    assert (len(load(both).train), len(load(both).test)) == (20, 10)
    (both / "test" / "data-00000-of-00001.arrow").write_bytes(arrow(rows("a"))[:-40])
    with pytest.raises(UserError, match="damaged"):
        load(both)


@pytest.mark.parametrize(
    ("part", "header", "label"),
    [("test", "text\n", None), ("test", "text,target\n", "-1"), ("validation", "text,target\n", "")],
)
def test_a_part_without_labels_is_named_and_the_rest_used(
    tmp_path: Path, part: str, header: str, label: str | None
) -> None:
    hidden = header + "".join(f"unseen {n}{'' if label is None else ',' + label}\n" for n in range(5))
    files = {"train.csv": csv_of(rows("a", "b"), "text,target\n"), "sample_submission.csv": "id,target\n1,a\n"}
    splits = load(tree(tmp_path, {**files, f"{part}.csv": hidden}), label="target")
    assert any(f"the {part} part has no labels in 'target'" in note and "5 rows" in note for note in splits.notes)
    assert splits.classes == ["a", "b"] and splits.validation is None and count(splits) == 20 and len(splits.test) == 4


def test_columns_without_a_header_are_named_by_number_or_by_a_list(tmp_path: Path) -> None:
    content = csv_of([(label, text) for text, label in rows("a", "b")], header="")
    with pytest.raises(UserError, match="dataset.source.header=false"):
        load(tmp_path / "a.csv", content)
    by_number = load(tmp_path / "a.csv", header=False, text=2, label="1")
    by_name = load(tmp_path / "a.csv", header=["kind", "words"], text="words", label="kind")
    for splits in (by_number, by_name):
        assert splits.classes == ["a", "b"] and count(splits) == 20 and "text" in splits.train["text"][0]
    both = load(tmp_path / "b.csv", csv_of(rows("a", "b")), header=["text", "label"])
    assert count(both) == 20  # a line of these names is no row


def test_a_backslash_before_a_quote_is_read_as_advised(tmp_path: Path) -> None:
    quoted = [(f'"say ""yes"" or \\"{text}\\", please"', label) for text, label in rows("a", "b")]
    with pytest.raises(UserError, match="line 2.*dataset.source.escape=backslash"):
        load(tmp_path / "a.csv", csv_of(quoted))
    splits = load(tmp_path / "a.csv", escape="backslash")
    assert 'say "yes" or "text 0 of a", please' in [*splits.train["text"], *splits.test["text"]]
    with pytest.raises(UserError, match="dataset.source.escape=backslash"):
        load(tmp_path / "a.csv", quotes=False)


def test_the_line_that_names_a_separator_is_obeyed(tmp_path: Path) -> None:
    for first, sign in (("sep=;\n", ";"), ('"sep=|"\r\n', "|"), ("\ufeffSEP=\t\n", "\t")):
        splits = load(tmp_path / "a.csv", csv_of(rows("a", "b"), f"{first}text{sign}label\n", sign))
        assert {*splits.train["id"], *splits.test["id"]} == {f"a.csv:{line}" for line in range(3, 23)}


OBJECTS = [{"text": text, "label": label} for text, label in rows("a", "b")]
JSON = {
    "records": json.dumps(OBJECTS),
    "an object a line": "\n" + "\n".join(map(json.dumps, OBJECTS)),
    "in an object": json.dumps({"version": "1.0", "data": OBJECTS}, indent=1) + "\x1a",
}


@pytest.mark.parametrize("layout", JSON)
def test_json_is_read_in_three_layouts(tmp_path: Path, layout: str) -> None:
    for name in ("a.json", "a.jsonl"):
        splits = load(tmp_path / name, JSON[layout])
        assert splits.classes == ["a", "b"] and count(splits) == 20


def test_json_that_holds_no_rows_names_the_layout_that_is_read(tmp_path: Path) -> None:
    for content in ('{"text": \n', '"text"\n', '{"a": 1} {"b": \n'):
        with pytest.raises(UserError, match='a.json.*orient="records"'):
            load(tmp_path / "a.json", content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *[
            (f"a.{kind}", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "git lfs pull")
            for kind in ("csv", "jsonl", "parquet", "arrow")
        ],
        ("a.csv", b"PK\x03\x04" + b"\0" * 26 + b"xl/workbook.xml", "Excel"),
        ("a.csv", b"PK\x03\x04" + b"\0" * 26 + b"train.csv", "Unpack"),
        ("a.csv", b"\xd0\xcf\x11\xe0\xa1", "Excel"),
        ("a.csv", b"<!DOCTYPE html>\n<html>", "web page"),
        ("a.csv.xz", b"\xfd7zXZ\0", "Unpack"),
        ("a.csv", b"PAR1....", ".parquet"),
        ("a.csv", csv_of(rows("a", "b")).encode("utf-16-le"), "dataset.source.encoding=utf-16-le"),
        ("a.csv", csv_of(rows("a", "b")).encode("utf-16-be"), "dataset.source.encoding=utf-16-be"),
    ],
)
def test_a_file_of_another_kind_is_named_for_what_it_is(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        load(tmp_path / name, content)
    assert name in str(refused.value) and "latin-1" not in str(refused.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "gzip"])
def test_encodings_that_files_tell_themselves_are_read(tmp_path: Path, encoding: str) -> None:
    text = csv_of(rows(ACCENT, "b"))
    splits = load(tmp_path / "a.csv", gzip.compress(text.encode()) if encoding == "gzip" else text.encode(encoding))
    assert splits.classes == ["b", ACCENT] and count(splits) == 20
    if encoding == "utf-16":
        assert count(load(tmp_path / "a.csv", ("\ufeff" + text).encode("utf-16-le"), encoding="utf-16-le")) == 20


def test_a_carriage_return_within_a_line_ends_none(tmp_path: Path) -> None:
    for quote in ("", '"'):
        splits = load(
            tmp_path / "a.csv", csv_of([(f"{quote}{text}\rmore{quote}", label) for text, label in rows("a", "b")])
        )
        assert count(splits) == 20 and all("\rmore" in text for text in splits.train["text"])
    assert count(load(tmp_path / "a.csv", csv_of(rows("a", "b")).replace("\n", "\r"))) == 20  # as on old Macs
    for content, lines in (
        (b"one\rmore\ntwo\n", ["one\rmore", "two"]),
        (b"one\rtwo\r", ["one", "two"]),
        (b"one\r\n\r\ntwo", ["one", "", "two"]),
        (b"a\nb\rc", ["a", "b\rc"]),
    ):
        (tmp_path / "a.txt").write_bytes(content)
        assert list(text_lines(tmp_path / "a.txt")) == lines


@pytest.mark.parametrize("labels", [[f"c{n % 1200}" for n in range(2400)], [f"c{n % 40}" for n in range(42)]])
def test_very_many_classes_and_few_rows_of_each_are_allowed_on_request(tmp_path: Path, labels: list[str]) -> None:
    content = csv_of([(f"text {n}", label) for n, label in enumerate(labels)])
    with pytest.raises(UserError, match="dataset.labels.many=true"):
        load(tmp_path / "a.csv", content)
    splits = load(tmp_path / "a.csv", labels={"many": True})
    assert len(splits.classes) == len(set(labels)) and count(splits) == len(labels) and len(splits.test)

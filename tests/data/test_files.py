"""The user's own text in every layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xcls.config.schema import UserError
from xcls.data.files import Files


def write_csv(file: Path, rows: list[tuple[str, object]], header: str = "text,label") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(header + "\n" + "".join(f"{text},{label}\n" for text, label in rows))


def many(count: int = 40) -> list[tuple[str, str]]:
    return [(f"text number {row}", "good" if row % 4 else "bad") for row in range(count)]


def test_one_file_gets_a_stratified_test_part(tmp_path: Path) -> None:
    write_csv(tmp_path / "all.csv", many())
    splits, again, other = (Files(path=str(tmp_path / "all.csv"), test_seed=seed).load() for seed in (0, 0, 1))
    assert splits.classes == ["bad", "good"] and splits.validation is None and splits.unlabelled is None
    assert sorted(splits.test["label"]) == [0] * 2 + [1] * 6 and len(splits.train) == 32
    assert {*splits.train["id"], *splits.test["id"]} == {f"all.csv:{line}" for line in range(2, 42)}
    assert list(again.test["id"]) == list(splits.test["id"]) != list(other.test["id"])
    assert "no test part" in splits.notes[0]


def test_a_folder_with_parts(tmp_path: Path) -> None:
    write_csv(tmp_path / "train-0.csv", many()[:20])
    write_csv(tmp_path / "train-1.csv", many()[20:])
    write_csv(tmp_path / "dev.csv", many(8))
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "x", "label": "good"}) + "\n")
    write_csv(tmp_path / "unlabelled.csv", [("more", "text")], header="text,other")
    splits = Files(path=str(tmp_path)).load()
    assert (len(splits.train), len(splits.validation), len(splits.test), len(splits.unlabelled)) == (40, 8, 1, 1)
    assert list(splits.test["label"]) == [1] and list(splits.unlabelled["label"]) == [None]
    assert splits.notes == [] and len(set(splits.train["id"])) == 40


@pytest.mark.parametrize("parts", [("train", "test"), ("",)])
def test_a_folder_per_class(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for file in (tmp_path / part / name / f"{n}.txt" for part in parts for name in ("spam", "ham") for n in range(5)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{file.parent.name} {file}")
    splits = Files(path=str(tmp_path)).load()
    assert splits.classes == ["ham", "spam"]
    assert (len(splits.train), len(splits.test)) == ((10, 10) if len(parts) == 2 else (8, 2))
    texts, labels = splits.train["text"], splits.train["label"]
    assert all(text.startswith(splits.classes[label]) for text, label in zip(texts, labels))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9"], ["9", "10"]),
        (["1.0", "1", "0.0", "0"], ["0", "1"]),
        ([True, False], ["False", "True"]),
        ([3, 2.0, "3", "2"], ["2", "3"]),
        (["b ", "a", "b", "A"], ["A", "a", "b"]),
    ],
)
def test_labels_become_classes_in_order(tmp_path: Path, labels: list, classes: list[str]) -> None:
    rows = [{"text": f"t{number}", "label": label} for number, label in enumerate(labels * 4)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert Files(path=str(tmp_path / "a.jsonl")).load().classes == classes


def test_several_text_columns_and_a_column_of_ids(tmp_path: Path) -> None:
    rows = "".join(f"k{i},head{i},{'' if i == 3 else 'body'},{i % 2}\n" for i in range(10))
    (tmp_path / "a.csv").write_text("key,title,text,label\n" + rows)
    splits = Files(path=str(tmp_path), text=["title", "text"], id="key").load()
    texts = {key: text for part in (splits.train, splits.test) for key, text in zip(part["id"], part["text"])}
    assert texts["k1"] == "head1 body" and texts["k3"] == "head3"
    (tmp_path / "a.csv").write_text("key,text,label\nk,a,1\nk,b,0\n")
    with pytest.raises(UserError, match="repeat"):
        Files(path=str(tmp_path), id="key").load()


def test_the_fingerprint_follows_contents_and_options_and_not_the_place(tmp_path: Path) -> None:
    def mark(folder: str, **options: int) -> str:
        return Files(path=str(tmp_path / folder), **options).fingerprint()

    for folder in ("here", "there"):
        write_csv(tmp_path / folder / "train.csv", many())
        write_csv(tmp_path / folder / "test.csv", many(4))
    first = mark("here")
    assert first == mark("there") != mark("here", test_seed=1)
    (tmp_path / "there" / "test.csv").rename(tmp_path / "there" / "validation.csv")
    write_csv(tmp_path / "here" / "test.csv", many(5))
    assert first not in (mark("there"), mark("here"))


def test_the_shelf_is_tried_without_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(tmp_path / "files" / "train.csv", many())
    monkeypatch.setenv("XCLS_DATA", str(tmp_path))
    assert len(Files().load().train) == 32


@pytest.mark.parametrize(
    ("train", "test", "named"),
    [
        ([("a", "x"), ("b", "x")], [], "'x'.*dataset.label"),
        ([("a", ""), ("b", "")], [], "no labels.*'label'"),
        ([(f"t{i}", i / 7) for i in range(1, 60)], [], "59 different values in 59 rows"),
        ([("a", "x"), ("b", "y")], [("c", "x"), ("d", "z")], "test.csv line 3: the label 'z'"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused(tmp_path: Path, train: list, test: list, named: str) -> None:
    for name, rows in (("train", train), ("test", test)):
        if rows:
            write_csv(tmp_path / f"{name}.csv", rows)
    with pytest.raises(UserError, match=named):
        Files(path=str(tmp_path)).load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Set dataset.path"),
        ({"path": "no/such/place"}, "dataset.path=no/such/place: no such file"),
        ({"path": ".", "test_share": 1.5}, "test_share=1.5"),
        ({"path": ".", "separator": "::"}, "one character"),
        ({"path": ".", "text": []}, "dataset.text="),
    ],
)
def test_options_are_checked_at_once(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Files(**options).fingerprint()


def test_a_folder_that_holds_nothing_known_is_listed(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(UserError, match=r"found .*notes.md.*a train and a test part"):
        Files(path=str(tmp_path)).fingerprint()

"""IMDb and AG News from small local copies, and the hub when it cannot be had."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import yaml

from tests.conftest import ROOT
from xcls.config.schema import UserError
from xcls.data.ag_news import AgNews
from xcls.data.imdb import Imdb
from xcls.data.source import Source, data_fingerprint, where


def write(file: Path, text: list[str], label: list[int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({"text": text, "label": label}), file)


def imdb_folder(folder: Path) -> Path:
    write(folder / "train.parquet", ["bad<br /><br />film", "good film"], [0, 1])
    write(folder / "test.parquet", ["fine"], [1])
    write(folder / "plain_text" / "unsupervised-00000-of-00002.parquet", ["one"], [-1])
    write(folder / "plain_text" / "unsupervised-00001-of-00002.parquet", ["two"], [-1])
    return folder


def test_imdb_from_parquet(tmp_path: Path) -> None:
    splits = Imdb(path=str(imdb_folder(tmp_path))).load()
    assert list(splits.train["text"]) == ["bad  film", "good film"] and list(splits.train["label"]) == [0, 1]
    assert splits.classes == ["neg", "pos"] and list(splits.unlabelled["text"]) == ["one", "two"]
    assert list(splits.unlabelled["label"]) == [None, None] and list(splits.test["id"]) == ["test-0"]
    plain = Imdb(path=str(tmp_path), use_unlabelled=False, strip_breaks=False).load()
    assert plain.unlabelled is None and plain.train["text"][0] == "bad<br /><br />film"


def test_imdb_from_the_official_archive(tmp_path: Path) -> None:
    for name in ("train/pos", "train/neg", "train/unsup", "test/pos", "test/neg"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0_1.txt").write_text(f"text of {name}")
    source = Imdb(path=str(tmp_path))
    splits, before = source.load(), source.fingerprint()
    assert list(splits.train["text"]) == ["text of train/neg", "text of train/pos"]
    assert list(splits.train["label"]) == [0, 1] and list(splits.train["id"]) == ["train-0", "train-1"]
    assert list(splits.unlabelled["text"]) == ["text of train/unsup"]
    (tmp_path / "train/pos/0_1.txt").rename(tmp_path / "train/neg/0_2.txt")
    assert Imdb(path=str(tmp_path)).fingerprint() != before


def test_imdb_bytes_is_the_reviews_as_they_are(tmp_path: Path) -> None:
    node = yaml.safe_load((ROOT / "conf" / "dataset" / "imdb_bytes.yaml").read_text())
    assert node["source"].pop("_target_") == "xcls.data.imdb.Imdb"
    splits = Imdb(path=str(imdb_folder(tmp_path)), **node["source"]).load()
    assert list(splits.train["text"]) == ["bad<br /><br />film", "good film"] and splits.unlabelled is None
    assert splits.validation is None and node["validation"] == 0.1  # carved out of train; test is for the end


def test_imdb_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train.parquet"):
        Imdb(path=str(tmp_path)).load()
    imdb_folder(tmp_path)
    with pytest.raises(UserError, match="no column 'review'"):
        Imdb(path=str(tmp_path), text="review").load()
    for file in tmp_path.rglob("unsupervised*"):
        file.unlink()
    with pytest.raises(UserError, match="use_unlabelled=false"):
        Imdb(path=str(tmp_path)).load()
    write(tmp_path / "test.parquet", ["fine"], [7])
    with pytest.raises(UserError, match="test.parquet row 1: the label 7"):
        Imdb(path=str(tmp_path), use_unlabelled=False).load()


AG_TRAIN = '"3","Wall St.","Bears, again."\n"4","A probe","Lands ""softly""."\n"1","",""\n'
AG_TEST = '"2","Cup","Won."\n'


@pytest.mark.parametrize("header", ["", "Class Index,Title,Description\n"])
def test_ag_news_in_its_official_layout(tmp_path: Path, header: str) -> None:
    (tmp_path / "train.csv").write_text(header + AG_TRAIN)
    (tmp_path / "test.csv").write_text(header + AG_TEST)
    splits = AgNews(path=str(tmp_path)).load()
    assert list(splits.train["text"]) == ["Wall St. Bears, again.", 'A probe Lands "softly".', None]
    assert list(splits.train["label"]) == [2, 3, 0] and list(splits.test["label"]) == [1]
    assert splits.classes == ["World", "Sports", "Business", "Sci/Tech"]


def test_ag_news_from_parquet_and_with_faults(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000-of-00001.parquet", ["a", "b"], [0, 3])
    with pytest.raises(UserError, match="no test.csv there"):
        AgNews(path=str(tmp_path)).load()
    write(tmp_path / "data" / "test-00000-of-00001.parquet", ["c"], [2])
    assert list(AgNews(path=str(tmp_path)).load().train["label"]) == [0, 3]
    (tmp_path / "test.csv").write_text('"5","x","y"\n')
    with pytest.raises(UserError, match="test.csv, line 1: the class '5'"):
        AgNews(path=str(tmp_path)).load()


@pytest.mark.parametrize("source", [Imdb, AgNews])
def test_without_path_and_network_the_ways_out_are_named(
    source: type, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made: Source = source()
    with pytest.raises(UserError, match=r"dataset.path=<folder> or in \$XCLS_DATA/"):
        made.load()
    assert made.fingerprint() != source(revision="abc").fingerprint()


def test_path_then_shelf_then_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imdb").mkdir()
    assert where(None, "imdb") is None
    monkeypatch.setenv("XCLS_DATA", str(tmp_path))
    assert where(None, "imdb") == tmp_path / "imdb" and where(None, "ag_news") is None
    assert where(str(tmp_path), "imdb") == tmp_path
    with pytest.raises(UserError, match="dataset.path="):
        where(str(tmp_path / "nothing"), "imdb")


def test_extra_text_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    source = Imdb(path=str(imdb_folder(tmp_path / "imdb")))
    (tmp_path / "more.txt").write_text("a\n")
    one = data_fingerprint(source, [str(tmp_path / "more.txt")])
    (tmp_path / "more.txt").write_text("b\n")
    assert len({one, data_fingerprint(source), data_fingerprint(source, [str(tmp_path / "more.txt")])}) == 3
    assert data_fingerprint(source) == source.fingerprint()

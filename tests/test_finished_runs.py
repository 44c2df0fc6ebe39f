"""Finished runs in use: those of a sweep by their path, from anywhere; new documents with the probabilities of mode=eval."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Iterator

import pandas as pd
import pytest

from tests.conftest import Project
from tests.entry import Entry, entered
from xcls.config.files import read_yaml, yaml_text

RUN = "multirun/sweep/files/finetune-sdpa-rope-tiny-n24-s0-abcdef"


@pytest.fixture(scope="module")
def entry(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entry]:
    """run.py in a project whose fine-tuned run lies in a sweep's folder too."""
    place = tmp_path_factory.mktemp("used") / "project"
    shutil.copytree(finished.folder, place, symlinks=True)
    shutil.copytree(place / "finetune" / "base", place / RUN)
    with entered(place) as made:
        yield made


def predict(entry: Entry, *words: str, exp: str = "base", code: int = 0) -> str:
    """Calls mode=predict; what it said."""
    outcome = entry("mode=predict", f"exp={exp}", *words)
    assert (outcome.code or 0) == code and not outcome.traceback, outcome.stderr + outcome.traceback
    return outcome.stdout + outcome.stderr


def test_predict_gives_the_probabilities_of_eval(entry: Entry) -> None:
    told = pd.read_parquet(entry.folder / RUN / "predictions.parquet").set_index("id")
    predict(entry, "input=rows.csv", "output=all.parquet", exp=RUN)
    found = pd.read_parquet(entry.folder / "all.parquet")
    found.index = pd.Index("rows.csv:" + found["row"].str.removeprefix("line "), name="id")
    assert len(found) == 120 and set(told.index) < set(found.index)
    for name in ("p_bad", "p_good"):
        pd.testing.assert_series_equal(found.loc[told.index, name], told[name], atol=1e-6)
    assert list(found.loc[told.index, "prediction"]) == list(told["prediction"])


@pytest.mark.parametrize(
    ("where", "form"),
    [("project", "relative"), ("elsewhere", "relative"), ("elsewhere", "absolute"), ("elsewhere", "home")],
)
def test_a_run_of_a_sweep_is_named_by_its_path(
    where: str, form: str, entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(entry.folder))
    name = {"relative": RUN, "absolute": f'"{entry.folder / RUN}"', "home": f'"~/{RUN}/"'}[form]
    folder = entry.folder if where == "project" else tmp_path
    (folder / "new.txt").write_text("fine film\n")
    before, entry.working = entry.working, folder
    try:
        outcome = entry("mode=predict", f"exp={name}", "input=new.txt", f"output={folder.name}-{form}.csv")
        assert outcome.code == 0 and len(pd.read_csv(folder / f"{folder.name}-{form}.csv")) == 1, outcome.stderr
        outcome = entry("mode=eval", f"exp={name}", "split=validation")
        assert outcome.code == 0, outcome.stderr
    finally:
        entry.working = before
    record = json.loads((entry.folder / RUN / "record.json").read_text())
    assert record["metrics"]["eval.validation"] == record["metrics"]["validation"]


def test_finetuning_starts_from_a_run_of_a_sweep(entry: Entry) -> None:
    shutil.copytree(entry.folder / "pretrain" / "base", entry.folder / "multirun/sweep/files/pretrain-x")
    outcome = entry(
        "mode=finetune", "exp=on", "pretrain=multirun/sweep/files/pretrain-x", "dataset.source.test_share=0.3"
    )
    assert outcome.code == 0 and entry.stages[-1].endswith("finetune/on"), outcome.stderr
    assert entry.prepared.report["rows"]["test"] == 36


def test_what_is_no_run_is_one_message_with_the_runs_there_are(entry: Entry) -> None:
    assert RUN in predict(entry, "input=rows.csv", exp="multirun/sweep", code=2)
    assert RUN in predict(entry, "input=rows.csv", exp=RUN[:-1], code=2) and "base" in predict(
        entry, "input=rows.csv", exp="bose", code=2
    )


def test_the_format_of_the_run_is_used_and_another_may_be_given(entry: Entry) -> None:
    folder = entry.folder / "finetune" / "odd"
    shutil.copytree(entry.folder / "finetune" / "base", folder)
    values = read_yaml(folder / "resolved_config.yaml")
    values.update({"dataset.source.separator": ";", "dataset.source.encoding": "latin-1", "dataset.text": "Body"})
    values["dataset.path"] = "gone.csv"  # the data need not be there
    (folder / "resolved_config.yaml").write_text(yaml_text(values, "changed"))
    (entry.folder / "odd.csv").write_bytes("n;Body\n1;fine caf\xe9, film\n".encode("latin-1"))
    predict(entry, "input=odd.csv", "output=odd.jsonl", exp="odd")
    expected = json.loads((entry.folder / "odd.jsonl").read_text())
    (entry.folder / "new.csv").write_text('review,n\n"fine caf\xe9, film",1\n', encoding="utf-8")
    assert "text=" in predict(entry, "input=new.csv", "dataset.source.separator=null", exp="odd", code=2)
    typed = ("input=new.csv", "dataset.source.separator=null", "dataset.source.encoding=utf-8", "output=new.jsonl")
    for key in ("text", "dataset.text"):
        predict(entry, *typed, f"{key}=review", exp="odd")
        assert json.loads((entry.folder / "new.jsonl").read_text()) == expected
    assert "separator" in predict(entry, "input=new.csv", "dataset.source.seperator=null", exp="odd", code=2)
    assert entry("text=review").code == 2


def test_a_run_that_names_its_mechanism_as_it_was_called_then_is_used(entry: Entry) -> None:
    folder = entry.folder / "finetune" / "old"
    shutil.copytree(entry.folder / "finetune" / "base", folder)
    values = read_yaml(folder / "resolved_config.yaml")
    assert values["attention._target_"] == "xcls.attention.softmax.Sdpa"
    values.update(
        {"attention._target_": "xcls.attention.sdpa.Sdpa", "attention.block_size": 256, "attention.block_above": 2**26}
    )
    (folder / "resolved_config.yaml").write_text(yaml_text(values, "changed"))
    for name in ("base", "old"):
        predict(entry, "input=rows.csv", f"output={name}.csv", exp=name)
    assert (entry.folder / "old.csv").read_text() == (entry.folder / "base.csv").read_text()
    values["attention.nope"] = 1
    (folder / "resolved_config.yaml").write_text(yaml_text(values, "changed"))
    assert "attention.nope: unknown key" in predict(entry, "input=rows.csv", exp="old", code=2)


def test_documents_come_from_standard_input_and_go_to_standard_output(
    entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"fine film\n\nawful plot\n")))
    outcome = entry("mode=predict", "exp=base", "input=-")
    found = pd.read_csv(io.StringIO(outcome.stdout))
    assert list(found["row"]) == ["line 1", "line 2", "line 3"] and list(found["prediction"].isna()) == [
        False,
        True,
        False,
    ]
    assert found.loc[1, ["p_bad", "p_good"]].isna().all() and "1 of 3 documents are empty" in outcome.stderr


def test_a_home_folder_is_written_out_in_every_path(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(entry.folder / "home"))
    (entry.folder / "home").mkdir()
    (entry.folder / "home" / "new.txt").write_text("fine film\n")
    shutil.copy(entry.folder / "finetune/base/ckpt_last.pt", entry.folder / "home" / "mine.pt")
    shutil.copytree(entry.folder / "pretrain/base", entry.folder / "home" / "base")
    shutil.copy(entry.folder / "pretrain/written/config.yaml", entry.folder / "home" / "mine.yaml")
    predict(entry, 'input="~/new.txt"', 'output="~/out.csv"', 'checkpoint="~/mine.pt"')
    assert (entry.folder / "home" / "out.csv").is_file()
    for words in (["pretrain='~/base'", "exp=home1"], ["template='~/mine.yaml'", "exp=home2"]):
        outcome = entry("mode=finetune", *words)
        assert outcome.code == 0, outcome.stderr
    assert not list(entry.folder.rglob("~")) and not os.path.exists("~")


def test_a_template_with_pretrain_inherits_the_architecture_and_keeps_its_own_data_set(
    finished: Project, tmp_path: Path
) -> None:
    template = tmp_path / "again.yaml"
    values = read_yaml(finished.folder / "finetune" / "base" / "resolved_config.yaml")
    template.write_text(
        yaml_text({**values, "size.width": 32, "dataset.validation": 0.3, "dataset.split_seed": 5}, "A template.")
    )
    result = finished.run("mode=finetune", f"template={template}", "pretrain=base", "exp=again", small=False)
    assert result.returncode == 0, result.stderr
    folder = finished.folder / "finetune" / "again"
    config = json.loads((folder / "record.json").read_text())["config"]
    shutil.rmtree(folder)  # the project stays as it was
    assert (config["size.width"], config["dataset.validation"], config["dataset.split_seed"]) == (16, 0.3, 5)

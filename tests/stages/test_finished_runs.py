"""Finished runs in use: by path from anywhere, and new documents with the probabilities of mode=eval."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator

import pandas as pd
import pytest

from tests.conftest import Project
from tests.entry import Entry, entered
from xcls.config.files import read_yaml, yaml_text
from xcls.runs.record import read_record, write_record
from xcls.stages import evaluate

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


def record_of(entry: Entry) -> dict[str, Any]:
    return json.loads((entry.folder / RUN / "record.json").read_text())


@pytest.mark.parametrize("split", ["validation", "test"])
def test_eval_gives_the_same_numbers_and_leaves_the_rest_alone(
    split: str, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(dataclasses.replace(read_record(entry.folder / RUN), wandb_id="w1"), entry.folder / RUN)
    logged: list[Any] = []
    tracker = SimpleNamespace(start=logged.append, log=lambda event, details: logged.append(details), finish=list)
    monkeypatch.setattr(evaluate, "Tracker", lambda **_: tracker)
    before = record_of(entry)
    outcome = entry("mode=eval", f"exp={RUN}", f"split={split}")
    assert outcome.code == 0, outcome.stderr
    after = record_of(entry)
    assert after["metrics"][f"eval.{split}"] == after["metrics"][split] == before["metrics"][split]
    assert [after[name] for name in ("status", "costs", "files")] == [
        before[name] for name in ("status", "costs", "files")
    ]
    assert logged[0].wandb_id == "w1" and logged[1]["macro_f1"] == before["metrics"][split]["macro_f1"]


def test_eval_refuses_other_data(entry: Entry) -> None:
    (entry.folder / "other.csv").write_text("text,label\nfine film,good\nawful plot,bad\n")
    outcome = entry("mode=eval", f"exp={RUN}", "dataset.path=other.csv")
    assert outcome.code == 2 and "dataset.path" in outcome.stderr and not outcome.traceback


def test_a_run_of_a_sweep_is_named_by_its_path_from_anywhere(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(entry.folder))
    monkeypatch.setattr(entry, "working", tmp_path)
    (tmp_path / "new.txt").write_text("fine film\n")
    for name in (RUN, f'"{entry.folder / RUN}"', f'"~/{RUN}/"'):
        predict(entry, "input=new.txt", "output=out.csv", exp=name)
        assert len(pd.read_csv(tmp_path / "out.csv")) == 1
    assert RUN in predict(entry, "input=new.txt", exp="multirun/sweep", code=2)  # no run, but one is in it


@pytest.mark.parametrize(
    ("source", "output"),
    [("none.txt", "out.csv"), ("rows.csv", "missing/out.csv"), ("rows.csv", "out.xlsx"), ("rows.csv", "rows.csv")],
)
def test_a_bad_input_or_output_is_one_message_and_nothing_is_written(source: str, output: str, entry: Entry) -> None:
    before = (entry.folder / "rows.csv").read_bytes()
    said = predict(entry, f"input={source}", f"output={output}", code=2)
    assert (output if output != "out.csv" else source) in said and not (entry.folder / "out.csv").exists()
    assert (entry.folder / "rows.csv").read_bytes() == before


def test_the_format_of_the_run_is_used_and_another_may_be_given(entry: Entry) -> None:
    folder = entry.folder / "finetune" / "odd"
    shutil.copytree(entry.folder / "finetune" / "base", folder)
    values = read_yaml(folder / "resolved_config.yaml")
    values.update({"dataset.source.separator": ";", "dataset.source.encoding": "latin-1", "dataset.text": "Body"})
    values["dataset.path"] = "gone.csv"  # the data need not be there
    (folder / "resolved_config.yaml").write_text(yaml_text(values, "changed"))
    (entry.folder / "odd.csv").write_bytes("n;Body\n1;fine caf\xe9, film\n".encode("latin-1"))
    predict(entry, "input=odd.csv", "output=odd.jsonl", exp="odd")
    (entry.folder / "new.csv").write_text('review,n\n"fine caf\xe9, film",1\n', encoding="utf-8")
    typed = ("input=new.csv", "dataset.source.separator=null", "dataset.source.encoding=utf-8")
    assert "text=" in predict(entry, *typed, exp="odd", code=2)
    for key in ("text", "dataset.text"):
        predict(entry, *typed, "output=new.jsonl", f"{key}=review", exp="odd")
        assert (entry.folder / "new.jsonl").read_text() == (entry.folder / "odd.jsonl").read_text()
    assert "separator" in predict(entry, "input=new.csv", "dataset.source.seperator=null", exp="odd", code=2)
    assert entry("text=review").code == 2


def test_documents_come_from_standard_input_and_go_to_standard_output(
    entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"fine film\n\nawful plot\n")))
    outcome = entry("mode=predict", "exp=base", "input=-")
    found = pd.read_csv(io.StringIO(outcome.stdout))
    assert list(found["row"]) == ["line 1", "line 2", "line 3"]
    assert list(found["prediction"].isna()) == list(found["p_good"].isna()) == [False, True, False]
    assert "1 of 3" in outcome.stderr


def test_a_template_with_pretrain_inherits_the_architecture_and_keeps_its_own_data_set(
    finished: Project, tmp_path: Path
) -> None:
    template = tmp_path / "again.yaml"
    values = read_yaml(finished.folder / "finetune" / "base" / "resolved_config.yaml")
    values.update({"size.width": 32, "dataset.validation": 0.3, "dataset.split_seed": 5})
    template.write_text(yaml_text(values, "A template."))
    result = finished.run("mode=finetune", f"template={template}", "pretrain=base", "exp=again", small=False)
    assert result.returncode == 0, result.stderr
    folder = finished.folder / "finetune" / "again"
    config = json.loads((folder / "record.json").read_text())["config"]
    shutil.rmtree(folder)  # the project stays as it was
    assert (config["size.width"], config["dataset.validation"], config["dataset.split_seed"]) == (16, 0.3, 5)

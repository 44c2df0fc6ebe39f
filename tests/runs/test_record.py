"""The record: whole at any instant, readable or refused with its path."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from xcls.runs.record import SCHEMA_VERSION, Events, Record, read_record, write_record


def some(status: str = "completed") -> Record:
    return Record(run="pydocs/x", mode="finetune", status=status, hash="ab" * 32, seed=0, seq_len=512)


def test_a_record_comes_back_with_null_for_numbers_that_json_lacks(tmp_path: Path) -> None:
    record = some()
    record.metrics = {"test": {"auroc": float("nan"), "macro_f1": np.float64(0.25)}}
    write_record(record, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]  # no temporary file stays
    record.metrics = {"test": {"auroc": None, "macro_f1": 0.25}}
    assert read_record(tmp_path) == record


@pytest.mark.parametrize(
    "text",
    [
        '{"run": "x"',
        "[]",
        '{"run": "x"}',
        json.dumps({"schema_version": SCHEMA_VERSION + 1}),
        json.dumps({**some().__dict__, "status": "great"}),
    ],
)
def test_an_unreadable_record_is_refused_with_its_path(tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(ValueError, match="record.json"):
        read_record(tmp_path)


def test_an_unknown_field_of_the_same_version_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(json.dumps({**some().__dict__, "later": 1}))
    assert read_record(tmp_path) == some()


def test_a_failed_write_leaves_the_old_record(tmp_path: Path) -> None:
    write_record(some(), tmp_path)
    before = (tmp_path / "record.json").read_bytes()
    (tmp_path / f".record.json.{os.getpid()}.tmp").mkdir()  # the temporary name is taken: it cannot be opened
    with pytest.raises(OSError):
        write_record(some("failed"), tmp_path)
    assert (tmp_path / "record.json").read_bytes() == before


def test_events_are_one_json_object_a_line(tmp_path: Path) -> None:
    events = Events(tmp_path)
    events.add("start", {"seed": 1})
    events.add("eval", {"loss": float("inf"), "text": "a\nb"})
    first, second = (json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines())
    assert (first["event"], first["seed"], second["event"], second["loss"]) == ("start", 1, "eval", None)

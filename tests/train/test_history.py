"""A run that has no checkpoint yet and is resumed: it starts again, and nothing of what it told before is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Project
from tests.faults.runs import Case, differences, forgotten, history, live, rows, starts
from xcls.runs.record import Events, read_record, write_record
from xcls.train.loop import Loop


def test_without_a_checkpoint_a_run_starts_again_and_keeps_its_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, never = Case("finetune", "sdpa"), {"checkpoint_every_steps": None}
    live(tmp_path / "whole", case, **never)
    parts = tmp_path / "parts"
    live(parts, case, **never)
    for path in parts.glob("ckpt_*.pt"):  # by the user, to save space
        path.unlink()
    (parts / "logs" / "run.log").write_text("what was logged\n")
    (parts / "wandb" / "offline-run-1").mkdir(parents=True)
    record = read_record(parts)
    record.status, record.wandb_id, record.warnings = "interrupted", "kept", ["mind the gap"]
    write_record(record, parts)
    told = history(parts)

    def look(self: Loop, payload: Any) -> None:
        assert (
            payload is None and not list(parts.glob("predictions.parquet")) and not list(parts.glob("head.safetensors"))
        )
        assert Events(parts).standing() == [] and rows(parts) == []
        raise SystemError("seen enough")

    with monkeypatch.context() as patch, pytest.raises(SystemError):
        patch.setattr(Loop, "run", look)
        live(parts, case, **never)
    live(parts, case, **never)
    assert differences(tmp_path / "whole", parts, told) == []
    again = read_record(parts)
    assert (again.started, again.wandb_id, again.warnings[0]) == (record.started, "kept", "mind the gap")
    assert "There is no checkpoint to go on from; it starts again at step 0." in again.warnings
    lines = [json.loads(line) for line in history(parts).splitlines()]
    assert [event["step"] for event in lines if event["event"] == "resume"] == [0, 0] and len(
        starts(history(parts))
    ) == 3
    assert {event["step"] for event in lines if event["event"] == "withdrawn"} == {4, 8, 10}
    assert (parts / "logs" / "run.log").read_text().startswith("what was logged") and (
        parts / "wandb" / "offline-run-1"
    ).is_dir()


def test_the_harness_sees_a_history_that_was_thrown_away(tmp_path: Path) -> None:
    live(tmp_path, Case("finetune", "sdpa"))
    told = history(tmp_path)
    assert forgotten(told, tmp_path) == []
    (tmp_path / "events.jsonl").unlink()
    assert len(forgotten(told, tmp_path)) == 2
    record = read_record(tmp_path)
    record.started += 60
    write_record(record, tmp_path)
    assert "record: started is not when its first life began" in forgotten(told, tmp_path)


@pytest.mark.parametrize("mode", ["finetune", "baseline"])
def test_the_command_keeps_the_history_too(project: Project, mode: str) -> None:
    words = (f"mode={mode}", "exp=x")
    assert project.run(*words).returncode == 0
    folder = next(path.parent for path in project.folder.rglob("record.json"))
    for path in folder.glob("ckpt_*.pt"):
        path.unlink()
    record = read_record(folder)
    record.status, record.cause = "failed", "BadNumbers: the loss is not finite at step 2"
    write_record(record, folder)
    (folder / "notes.txt").write_text("the user's")
    told, log = history(folder), (folder / "logs" / "run.log").read_text()
    done = project.run(*words, "resume=true")
    assert done.returncode == 0, done.stderr
    assert forgotten(told, folder) == [] and len(starts(history(folder))) == 2
    assert (folder / "logs" / "run.log").read_text().startswith(log) and (folder / "notes.txt").exists()
    assert [json.loads(line)["step"] for line in history(folder).splitlines() if b'"resume"' in line] == [0]
    assert ("it starts again at step 0" in done.stderr) == (mode == "finetune")  # a baseline never has a checkpoint
    assert (
        read_record(folder).status == "completed"
        and read_record(folder).costs["wall_seconds"] > record.costs["wall_seconds"]
    )

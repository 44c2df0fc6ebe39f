"""What a run survives by configuration, and what it says of the rest: bad numbers, lack of memory, signals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator

import pytest

from tests.faults.runs import differences, history, rows, same
from tests.train.harness import BAD_STEPS, LITTLE_MEMORY, ROW, Case, live, stop_at
from xcls.config.schema import UserError
from xcls.runs.record import Events, read_record, write_record
from xcls.train.checkpoint import read_checkpoint, write_checkpoint
from xcls.train.faults import BadNumbers, OutOfMemory
from xcls.train.loop import Loop
from xcls.train.signals import Interrupted
from xcls.train.stream import on_device

ROOT = Path(__file__).resolve().parents[2]
PLAIN = Case("finetune", "sdpa")
EACH = {"checkpoint_every_steps": 1, "keep": 99, "epochs": 3.0}


def at_step(folder: Path, step: int) -> dict[str, Any]:
    return read_checkpoint(folder / f"ckpt_step{step:08d}.pt")


def faults(folder: Path) -> list[tuple[str, int]]:
    return [(fault["kind"], fault["step"]) for fault in read_record(folder).faults]


def test_a_bad_step_changes_no_weight_and_is_written_down(tmp_path: Path) -> None:
    with pytest.raises(BadNumbers, match="not finite at step"):  # one more than is allowed
        live(tmp_path / "one", BAD_STEPS, max_bad_steps=1)
    assert len(faults(tmp_path / "one")) == 1 and read_record(tmp_path / "one").status == "failed"
    tmp_path = tmp_path / "all"
    live(tmp_path, BAD_STEPS, **EACH)
    bad = [step for _, step in faults(tmp_path)]
    assert len(bad) == 3 and {kind for kind, _ in faults(tmp_path)} == {"bad_step"}
    for step in range(1, 15):
        unchanged = same(at_step(tmp_path, step)["model"], at_step(tmp_path, step + 1)["model"])
        assert unchanged == (step in bad)
    record = read_record(tmp_path)
    assert record.status == "completed" and record.step == 15
    assert f"train/{ROW}" in record.faults[0]["cause"] and "the step is left out" in record.warnings[0]
    noted = [event for event in map(json.loads, (tmp_path / "events.jsonl").open()) if event["event"] == "fault"]
    assert [(event["step"], event["layer"], len(event["rows"])) for event in noted] == [(s, "the loss", 8) for s in bad]


def test_a_halved_micro_batch_is_as_if_it_had_been_chosen(tmp_path: Path) -> None:
    """To the bit, dropout included: the attempt that failed leaves no gradient and no random draw behind."""
    live(tmp_path / "halved", replace(LITTLE_MEMORY, fits=2))
    live(tmp_path / "chosen", Case("finetune", "performer", micro_batch=2))
    assert faults(tmp_path / "halved") == [("halved", 0), ("halved", 0)]
    record = read_record(tmp_path / "halved")
    assert record.device["micro_batch"] == 2 and record.status == "completed"
    assert "effective batch 8, micro-batch 8" in record.warnings[0] and "micro-batch 4" in record.warnings[0]
    assert differences(tmp_path / "chosen", tmp_path / "halved") == [
        "record: faults",
        *(f"{name}: progress" for name in ("ckpt_last.pt", "ckpt_best.pt")),
    ]


def test_at_one_row_memory_is_out(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match="micro-batch 1, longest sequence .*hardware.gradient_checkpointing=true"):
        live(tmp_path, replace(LITTLE_MEMORY, fits=0))
    assert len(faults(tmp_path)) == 3 and read_record(tmp_path).status == "failed"  # 8 to 4 to 2 to 1


@pytest.mark.parametrize("case", [PLAIN, LITTLE_MEMORY])
def test_an_evaluation_out_of_memory(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names its own setting, or goes on in smaller parts where that is allowed."""

    def narrow(batch: Any, size: int | None, amp: Any) -> Iterator[Any]:
        for part in on_device(batch, size, amp):
            if len(part["index"]) > 2:
                raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
            yield part

    monkeypatch.setattr("xcls.train.scoring.on_device", narrow)
    if case is PLAIN:
        with pytest.raises(OutOfMemory, match="6 rows at once.*finetuning.eval_batch_size=3"):
            live(tmp_path, case)
    else:
        live(tmp_path, case)
    assert read_record(tmp_path).status == ("failed" if case is PLAIN else "completed")


WITH_WORKERS = """
import os, signal, sys
from pathlib import Path
from tests.train.harness import Case, live
from xcls.runs.record import Events
add = Events.add
def add_and_signal(self, event, details=None):  # the signal comes from within: nobody has to be quick
    add(self, event, details)
    if event == "step" and details["step"] == 3:
        (os.killpg if sys.argv[2] == "SIGTERM" else os.kill)(os.getpid(), getattr(signal, sys.argv[2]))
Events.add = add_and_signal
live(Path(sys.argv[1]), Case("finetune", "sdpa", workers=2), checkpoint_every_steps=50, eval_every_steps=None)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers notice the end of their parent seconds later")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_workers_end_with_their_run(name: str, tmp_path: Path) -> None:
    """Slurm and Ctrl-C signal every process of a job; and what a killed run leaves running would hold its lock."""
    command = [sys.executable, "-c", WITH_WORKERS, str(tmp_path / "run"), name]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "XCLS_PROGRESS": "0"}, start_new_session=True)
    process.wait(120)
    time.sleep(1)
    stats = [path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat")]
    assert not [state for state, _, group, *_ in stats if int(group) == process.pid and state != "Z"]
    assert read_record(tmp_path / "run").status == {"SIGTERM": "interrupted", "SIGKILL": "running"}[name]
    assert any((tmp_path / "run").glob("ckpt_step*.pt")) == (name == "SIGTERM")


def resave(folder: Path, change: Any) -> None:
    """Every checkpoint in `folder`, rewritten by `change(payload)`."""
    for path in folder.glob("ckpt_*.pt"):
        payload = read_checkpoint(path)
        change(payload)
        write_checkpoint(path, payload)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda payload: payload.update(format=2), "ckpt_step00000007.pt has format 2"),
        (lambda payload: payload.update(hash="cd" * 32), "another configuration .hash cdcdcd"),
        (lambda payload: payload["model"].pop("head.linear.bias"), "step 7 does not fit .*head.linear.bias"),
        (lambda payload: payload["optimizer"]["param_groups"].pop(), "step 7 does not fit"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_says_why(
    change: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 7)
        live(tmp_path, PLAIN)
    resave(tmp_path, change)
    with pytest.raises(UserError, match=message):
        live(tmp_path, PLAIN)


def test_without_its_best_checkpoint_a_run_goes_on_from_the_best_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("finetune", "sdpa", training={"eval_every_steps": 2, "lr": 0.05, "epochs": 3.0})
    live(tmp_path / "whole", case)
    best = read_record(tmp_path / "whole").best_step
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 14)
        live(tmp_path / "parts", case)
    assert best <= 10, "the best step file is gone by now"
    (tmp_path / "parts" / "ckpt_best.pt").write_bytes(b"rubbish")
    live(tmp_path / "parts", case)
    warnings = read_record(tmp_path / "parts").warnings
    assert any(f"the checkpoint of its best step, {best}, is gone" in warning for warning in warnings)
    resumed = [json.loads(line) for line in history(tmp_path / "parts").splitlines() if b'"resume"' in line]
    assert [event["step"] for event in resumed] == [2]
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


def test_without_a_checkpoint_a_run_starts_again_and_keeps_its_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(tmp_path / "whole", PLAIN)
    parts = tmp_path / "parts"
    live(parts, PLAIN)
    for path in parts.glob("ckpt_*.pt"):  # by the user, to save space
        path.unlink()
    record = read_record(parts)
    record.status, record.wandb_id, record.warnings = "interrupted", "kept", ["mind the gap"]
    write_record(record, parts)
    before, run = history(parts), Loop.run

    def look(self: Loop, payload: Any) -> Any:
        assert payload is None and not list(parts.glob("predictions.parquet"))
        assert Events(parts).evaluated_steps() == [] and rows(parts) == []
        return run(self, payload)

    monkeypatch.setattr(Loop, "run", look)
    live(parts, PLAIN)
    assert differences(tmp_path / "whole", parts, before) == []
    again = read_record(parts)
    assert (again.started, again.wandb_id, again.warnings[0]) == (record.started, "kept", "mind the gap")
    events = [json.loads(line) for line in history(parts).splitlines()]
    assert [event["step"] for event in events if event["event"] == "resume"] == [0]
    assert {event["step"] for event in events if event["event"] == "withdrawn"} == {4, 8, 10}

"""W&B with the real package and a stand-in for its server: what it gets, and that no failure of it ends a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest
import wandb

from tests.wandb_server import ENTITY, WandbServer
from xcls.config.schema import Wandb
from xcls.runs.record import Record, read_record
from xcls.train import tracking
from xcls.train.run_logger import RunLogger
from xcls.train.signals import Interrupted
from xcls.train.tracking import ARTIFACTS, Tracker

CHOICES = {"mode": "finetune", "attention": "performer", "position": "rope", "size": "tiny", "dataset": "imdb"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server that this process and its children talk to, and nobody else."""
    with WandbServer() as server:
        for name, value in server.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        yield server
        wandb.teardown()  # the next test has another server


def open_run(folder: Path, mode: str, artifacts: str = "none", wandb_id: str | None = None) -> RunLogger:
    """A run as it begins."""
    what = {"run": "imdb/finetune-x", "mode": "finetune", "status": "running", "hash": "ab" * 32, "choices": CHOICES}
    record = Record(**what, seed=3, seq_len=16, exp="study", config={"seed": 3}, wandb_id=wandb_id)
    return RunLogger(folder=folder, record=record, wandb=Wandb(mode=mode, artifacts=artifacts))


def work(logger: RunLogger, steps: range) -> list[tuple[int, float]]:
    """Some steps with their events; gives what W&B should have of them."""
    for step in steps:
        logger.event("step", {"step": step, "step_loss": 1.0 / step, "grad_norm": None, "lr": 1e-3})
    logger.record.step = steps[-1]
    logger.record.metrics["validation"] = {"macro_f1": 0.5}
    logger.add_row({"step": steps[-1], "val_loss": 2.0, "macro_f1": 0.5})
    return [(step, 1.0 / step) for step in steps]


def losses(server: WandbServer) -> list[tuple[int, float]]:
    """The steps and their losses that the server has."""
    return [(row["step"], row["step_loss"]) for row in server.only().history if "step_loss" in row]


def sync(folder: Path) -> None:
    """The real `wandb sync`, as a user types it."""
    command = [sys.executable, "-m", "wandb", "sync", str(folder / "wandb")]
    subprocess.run(command, capture_output=True, timeout=120, cwd=folder, check=True)


@pytest.mark.parametrize("mode", ["online", pytest.param("offline", marks=pytest.mark.slow)])
def test_a_resumed_and_evaluated_run_is_one_w_and_b_run(mode: str, server: WandbServer, tmp_path: Path) -> None:
    folder = tmp_path / "multirun" / "study" / "imdb" / "finetune-x"
    with pytest.raises(Interrupted), open_run(folder, mode) as logger:
        logger.begin()
        wanted = work(logger, range(1, 4))
        raise Interrupted("stopped by SIGTERM")
    assert mode == "offline" or server.only().state == "preempted"
    with open_run(folder, mode, wandb_id=read_record(folder).wandb_id) as logger:
        logger.begin()
        wanted += work(logger, range(3, 6))
        logger.event("test", {"checkpoint_step": 4, "macro_f1": 0.25})
    record = read_record(folder)
    tracker = Tracker(settings=Wandb(mode=mode), folder=folder, warn=pytest.fail)
    tracker.start(record)
    tracker.log("evaluation", {"split": "test", "checkpoint_step": 4, "macro_f1": 0.25})
    tracker.finish()
    if mode == "offline":
        assert server.asked == []
        sync(folder)
    run = server.only()
    assert losses(server) == wanted and record.warnings == []
    assert [row["macro_f1"] for row in run.history if "val_loss" in row] == [0.5, 0.5]
    assert [row["step"] for row in run.history if "eval.test/macro_f1" in row] == [4]
    assert (run.entity, run.project, run.id, run.state) == (ENTITY, "xcls", record.wandb_id, "finished")
    names = ("displayName", "groupName", "jobType")
    assert [run.fields[name] for name in names] == ["imdb/finetune-x", "study", "finetune"]
    assert sorted(run.fields["tags"]) == sorted(f"{name}={value}" for name, value in CHOICES.items())
    assert json.loads(run.fields["config"])["hash"]["value"] == "ab" * 32
    assert run.summary["status"] == "completed" and run.summary["validation/macro_f1"] == 0.5
    for name in ("record.json", "metrics.csv"):
        assert run.files[name] == (folder / name).read_bytes()
    assert server.unknown == []


@pytest.mark.parametrize("artifacts", sorted(ARTIFACTS))
def test_artifacts(artifacts: str, server: WandbServer, tmp_path: Path) -> None:
    with open_run(tmp_path / "run", "online", artifacts) as logger:
        logger.begin()
        for name in ARTIFACTS["all"]:
            (tmp_path / "run" / name).write_bytes(name.encode())
    found = {name: content for stored in server.only().artifacts.values() for name, content in stored.items()}
    found.pop("wandb_manifest.json", None)
    assert found == {name: name.encode() for name in ARTIFACTS[artifacts]}
    assert len(found) == {"none": 0, "best": 2, "all": 5}[artifacts]


@pytest.mark.parametrize("fault", ["no key", "no package", pytest.param("silent", marks=pytest.mark.slow)])
def test_w_and_b_fails_and_the_run_does_not(
    fault: str, server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One warning, the same in the record and on stderr; offline where the package can, so that nothing is lost."""
    monkeypatch.setattr(tracking, "INIT_SECONDS", 3)
    server.silent = fault == "silent"
    if fault == "no key":
        monkeypatch.delenv("WANDB_API_KEY")
    if fault == "no package":
        monkeypatch.setitem(sys.modules, "wandb", None)
    folder = tmp_path / "run"
    with open_run(folder, "online") as logger:
        logger.begin()
        wanted = work(logger, range(1, 4))
    record = read_record(folder)
    assert record.status == "completed" and len(record.warnings) == 1 and "wandb sync" in record.warnings[0]
    assert capsys.readouterr().err == f"WARNING: {record.warnings[0]}\n"
    if fault == "no key":
        monkeypatch.setenv("WANDB_API_KEY", server.environment(tmp_path)["WANDB_API_KEY"])
        sync(folder)
        assert losses(server) == wanted


def test_a_thread_that_hangs_is_not_waited_for(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("START_SECONDS", "INIT_SECONDS", "GRACE_SECONDS"):
        monkeypatch.setattr(tracking, name, 0)
    monkeypatch.setattr(tracking, "FINISH_SECONDS", {"none": 0})
    hung: list[Any] = []
    monkeypatch.setattr(Tracker, "_begin", lambda self: (hung.append(self), self._queue.get(), self._queue.get()))
    with open_run(tmp_path / "run", "online") as logger:
        logger.begin()
    record = read_record(tmp_path / "run")
    assert hung and record.status == "completed" and "TimeoutError" in record.warnings[0]
    hung[0]._queue.put(None)  # lets the thread go


def test_disabled_tracking_starts_nothing(tmp_path: Path) -> None:
    with open_run(tmp_path, "disabled") as logger:
        logger.begin({"rows": [], "wandb_id": "kept"})
        work(logger, range(1, 3))
    assert read_record(tmp_path).wandb_id == "kept" and not (tmp_path / "wandb").exists()


def test_a_secret_in_an_error_or_a_warning_is_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HUB_TOKEN", "not-for-other-eyes")
    with pytest.raises(ConnectionError), open_run(tmp_path, "disabled") as logger:
        logger.warn("retry https://hub?token=not-for-other-eyes")
        logger.event("fetched", {"header": "Bearer not-for-other-eyes"})
        raise ConnectionError("401 for not-for-other-eyes at the hub")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    text = "".join(path.read_text(encoding="utf-8") for path in files) + capsys.readouterr().err
    assert len(files) == 4 and text.count("401 for *** at the hub") >= 3
    assert "not-for-other-eyes" not in text

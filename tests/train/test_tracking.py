"""W&B with the real package and its real processes: whatever it does, the run goes on and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest

from tests.tracked import LONE_RUN, ROOT, children, kept, lone_run, offline, open_journal, sync, wait_for, work, written
from tests.wandb_server import ENTITY, WandbServer
from xcls.runs.record import read_record
from xcls.runs.wandb_file import RECORD, read_segments
from xcls.train.signals import Interrupted
from xcls.train.wandb_copy import EXIT_CODES, FILES, patience


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server that this process and its children talk to, and nobody else."""
    with WandbServer() as server:
        for name, value in server.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        yield server


def one_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The run completed with exactly one warning, the same in record, events and on stderr; gives it."""
    record = read_record(folder)
    assert record.status == "completed"
    (warning,) = record.warnings
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event["message"] for event in events if event["event"] == "warning"] == [warning]
    assert capsys.readouterr().err == f"WARNING: {warning}\n"
    assert warning.startswith("W&B: ") and "wandb sync" in warning
    return warning


def test_offline_then_sync_sends_each_row_once_in_order(server: WandbServer, tmp_path: Path) -> None:
    folder = tmp_path / "finetune" / "base"
    with open_journal(folder) as journal:
        journal.begin(rows=[], wandb_id=None)
        work(journal, range(1, 7))
        journal.event("test", {"checkpoint_step": 4, "macro_f1": 0.5})
    assert server.asked == []
    assert len(written(folder)) == 10 and offline(folder) == written(folder)
    assert sync(folder).returncode == 0
    run = server.only()
    assert kept(run.history) == written(folder)
    assert run.history[-1]["test/macro_f1"] == 0.5 and run.history[-1]["step"] == 6
    assert run.state == "finished"


def test_a_sweep_of_wandb_s_own_takes_no_rows_away(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    folder = tmp_path / "finetune" / "base"
    with open_journal(folder) as journal:
        journal.begin(rows=[], wandb_id=None)
        work(journal, range(1, 4))
    assert offline(folder) == written(folder) != [] and read_record(folder).warnings == []


def test_one_run_named_grouped_and_tagged(server: WandbServer, tmp_path: Path) -> None:
    folder = tmp_path / "multirun" / "study" / "imdb" / "finetune-x"
    with open_journal(folder, "online") as journal:
        journal.begin(rows=[], wandb_id=None)
        work(journal, range(1, 3))
    run = server.only()
    assert (run.entity, run.project, run.id) == (ENTITY, "xcls", read_record(folder).wandb_id)
    assert (
        run.fields["displayName"] == "imdb/finetune-x"
        and run.fields["groupName"] == "study"
        and run.fields["jobType"] == "finetune"
    )
    assert sorted(run.fields["tags"]) == [
        "attention=performer",
        "dataset=imdb",
        "mode=finetune",
        "position=rope",
        "size=tiny",
    ]
    assert json.loads(run.fields["config"])["seed"]["value"] == 3
    assert kept(run.history) == written(folder) and read_record(folder).warnings == []
    assert json.loads(run.summary[RECORD]) == json.loads((folder / "record.json").read_text(encoding="utf-8"))
    assert run.summary["status"] == "completed"


def slow(*values: object, **named: Any) -> Any:
    """A case for the slow suite alone: it starts W&B's processes, as a case beside it does in the fast one."""
    return pytest.param(*values, marks=pytest.mark.slow, **named)


SYNCED = slow("offline")


@pytest.mark.parametrize("mode", [SYNCED, "online"])
@pytest.mark.parametrize(
    ("error", "state"),
    [slow(None, "finished"), (ValueError("no"), "failed"), (Interrupted("stopped by SIGTERM"), "preempted")],
)
def test_the_state_in_which_a_run_ends(
    mode: str, error: Exception | None, state: str, server: WandbServer, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    try:
        with open_journal(folder, mode) as journal:
            journal.begin(rows=[], wandb_id=None)
            work(journal, range(1, 3))
            if error is not None:
                raise error
    except (ValueError, Interrupted):
        pass
    if mode == "offline":
        assert sync(folder).returncode == 0
    run, status = server.only(), read_record(folder).status
    assert (run.state, run.exit_code, run.summary["status"]) == (state, EXIT_CODES[status], status)


@pytest.mark.parametrize("mode", [SYNCED, "online"])
def test_a_resumed_run_goes_on_in_the_same_w_and_b_run(mode: str, server: WandbServer, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted), open_journal(folder, mode) as journal:
        journal.begin(rows=[], wandb_id=None)
        work(journal, range(1, 7))
        raise Interrupted("stopped by SIGTERM")
    rows = [row for row in journal.rows if row["step"] <= 4]  # the checkpoint was of step 4: 5 and 6 come again
    with open_journal(folder, mode, wandb_id=read_record(folder).wandb_id) as journal:
        journal.begin(rows=rows, wandb_id=None)
        work(journal, range(5, 9))
    if mode == "offline":
        assert sync(folder).returncode == 0
    run = server.only()
    assert kept(run.history) == written(folder) and run.state == "finished"
    assert [row["row"] for row in run.history] == list(range(15))
    assert [row["step"] for row in run.history if "val_loss" in row] == [2, 4, 6, 6, 8]
    twice = [{**row, "row": 0} for row in kept(run.history) if row["step"] == 6 and "val_loss" in row]
    assert twice[0] == twice[1], "the same point of the same curve"


@pytest.mark.parametrize("long", [slow(1, id="nothing written"), pytest.param(20_000, id="cut in the middle")])
def test_what_a_kill_of_everything_lost_is_sent_on_resume(long: int, server: WandbServer, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted), open_journal(folder) as journal:
        journal.record.study = "x" * long  # W&B writes blocks of 32 KiB; the record is in its summary
        journal.begin(rows=[], wandb_id=None)
        work(journal, range(1, 17), pause=0.05 if long > 1 else 0.0)
        wait_for(lambda: len(offline(folder)) > 0 or long == 1)
        processes = [journal.tracker.process.pid, *children(journal.tracker.process.pid)]
        for pid in processes:  # as a batch system or a power cut does it
            os.kill(pid, signal.SIGKILL)
        journal.tracker.process.wait()
        journal.tracker.process = None
        work(journal, range(17, 31))
        raise Interrupted("stopped")
    assert len(offline(folder)) < len(written(folder)) and (long == 1) == (offline(folder) == [])
    with open_journal(folder, wandb_id=read_record(folder).wandb_id) as journal:
        journal.begin(rows=[dict(row) for row in journal.rows], wandb_id=None)
        work(journal, range(31, 33))
    assert offline(folder) == written(folder) and len(written(folder)) == 48
    assert sync(folder).returncode == 0
    assert kept(server.only().history) == written(folder)


def test_the_copy_outlives_a_killed_run_and_loses_no_row(server: WandbServer, tmp_path: Path) -> None:
    run = lone_run(tmp_path)
    wait_for(lambda: (tmp_path / "events.jsonl").is_file() and len(written(tmp_path)) > 40)
    run.kill()
    run.communicate()
    wait_for(lambda: [segment.exit_code for segment in read_segments(tmp_path / "wandb")] == [137])
    assert offline(tmp_path) == written(tmp_path)
    (segment,) = read_segments(tmp_path / "wandb")
    assert segment.summary["status"] == "killed" and read_record(tmp_path).status == "running"


NO_SERVER = slow("no server")  # W&B tries for half a minute


@pytest.mark.parametrize(
    "fault", [NO_SERVER, "no key", slow("copy killed"), "wandb-core killed", slow("folder is a file")]
)
def test_w_and_b_fails_and_the_run_does_not(
    fault: str, server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    if fault == "no server":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    if fault == "no key":
        monkeypatch.delenv("WANDB_API_KEY")
    if fault == "folder is a file":
        folder.mkdir()
        (folder / "wandb").write_text("", encoding="utf-8")
    with open_journal(folder, "online") as journal:
        journal.begin(rows=[], wandb_id=None)
        work(journal, range(1, 5))
        if fault == "copy killed":
            journal.tracker.process.kill()
        if fault == "wandb-core killed":
            for pid in children(journal.tracker.process.pid):
                os.kill(pid, signal.SIGKILL)
        work(journal, range(5, 9))
    warning = one_warning(folder, capsys)
    assert len((folder / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 5
    if fault == "folder is a file":
        assert "wandb" in warning
        (folder / "wandb").unlink()
        made = subprocess.run(
            [sys.executable, "-m", "xcls.train.wandb_copy", str(folder)], cwd=ROOT, capture_output=True, text=True
        )
        assert made.returncode == 0 and "12 rows" in made.stdout
    assert offline(folder) == written(folder), "all of it is kept offline"
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", server.environment(tmp_path)["WANDB_API_KEY"])
    assert sync(folder).returncode == 0
    rows = {row["row"]: row for row in kept(server.only().history)}
    assert [rows[number] for number in sorted(rows)] == written(folder)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        slow("raise ModuleNotFoundError(\"No module named 'wandb'\")", "No module named 'wandb'"),
        ("raise SystemExit('bad wheel')", "bad wheel"),
        slow("1 / 0", "division by zero"),
    ],
)
def test_a_package_that_cannot_be_imported(
    module: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken" / "wandb").mkdir(parents=True)
    (tmp_path / "broken" / "wandb" / "__init__.py").write_text(module, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    with open_journal(tmp_path / "run") as journal:
        journal.begin(rows=[], wandb_id=None)
        work(journal, range(1, 5))
    assert reason in one_warning(tmp_path / "run", capsys)
    monkeypatch.delenv("PYTHONPATH")
    later = [sys.executable, "-m", "xcls.train.wandb_copy", str(tmp_path / "run")]
    assert subprocess.run(later, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
    assert offline(tmp_path / "run") == written(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("server_is", [{"silent": True}, {"delay": 30.0}])
def test_a_server_that_is_slow_or_never_answers(
    server_is: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with WandbServer(**server_is) as server:
        for name, value in server.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        with open_journal(folder, "online") as journal:
            journal.begin(rows=[], wandb_id=None)
            work(journal, range(1, 9))
    one_warning(folder, capsys)
    assert offline(folder) == written(folder)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["as it begins", "as it ends"])
def test_the_copy_of_a_killed_run_ends_though_the_server_is_silent(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WandbServer(silent=when == "as it begins") as server:
        for name, value in server.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        run = lone_run(tmp_path / "run", "online")
        wait_for(lambda: children(run.pid) and (tmp_path / "run" / "wandb" / ".lock").is_file())
        (copy,) = children(run.pid)
        wait_for(lambda: when == "as it begins" or server.runs)
        server.silent = True
        run.kill()
        run.communicate()
        wait_for(lambda: not Path(f"/proc/{copy}").exists(), patience("none") + 20)
        assert read_record(tmp_path / "run").status == "running"


@pytest.mark.slow
def test_a_full_disk_under_w_and_b_is_noticed(tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))"  # no file grows beyond
    limit += "; journal.record.study = 'x' * 20_000"  # W&B's file holds many records, ours one
    code = (
        LONE_RUN.replace("2001", "121")
        .replace("pause=0.02", "pause=0")
        .replace("    journal.begin", f"    {limit}\n    journal.begin")
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "offline"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    record = read_record(tmp_path)
    assert run.returncode == 0 and record.status == "completed" and len(record.warnings) == 1
    assert record.warnings[0].startswith("W&B: ") and run.stderr.count("W&B") == record.warnings[0].count("W&B")
    assert (
        len(written(tmp_path)) == 180 and len((tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 61
    )
    assert all(segment.exit_code is None for segment in read_segments(tmp_path / "wandb")), (
        "W&B got no segment to its end"
    )
    subprocess.run(
        [sys.executable, "-m", "xcls.train.wandb_copy", str(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL, check=True
    )
    assert offline(tmp_path) == written(tmp_path) and read_segments(tmp_path / "wandb")[-1].exit_code == 0


@pytest.mark.parametrize("artifacts", [slow("none"), "best", slow("all")])
@pytest.mark.parametrize("mode", [SYNCED, "online"])
def test_artifacts(artifacts: str, mode: str, server: WandbServer, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with open_journal(folder, mode, artifacts) as journal:
        journal.begin(rows=[], wandb_id=None)
        work(journal, range(1, 3))
        for name in FILES["all"][:-2]:
            (folder / name).write_bytes(name.encode())
    if mode == "offline":
        assert sync(folder).returncode == 0
    expected = {name: (folder / name).read_bytes() for name in FILES[artifacts] if name != "predictions.parquet"}
    found = list(server.only().artifacts.values())
    stored = {name: content for name, content in found[0].items() if name != "wandb_manifest.json"} if found else {}
    assert stored == expected and len(found) == (artifacts != "none")
    server.runs.clear()
    assert server.unknown == []


@pytest.mark.slow
def test_later_by_hand_nothing_is_sent_twice(server: WandbServer, tmp_path: Path) -> None:
    with open_journal(tmp_path / "run", "disabled") as journal:
        journal.begin(rows=[], wandb_id=None)
        work(journal, range(1, 5))
    assert read_record(tmp_path / "run").wandb_id is None and not (tmp_path / "run" / "wandb").exists()
    for mode in ("online", "online", "offline", "offline"):
        command = [sys.executable, "-m", "xcls.train.wandb_copy", str(tmp_path / "run"), "--mode", mode]
        assert subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
    assert kept(server.only().history) == written(tmp_path / "run")
    assert offline(tmp_path / "run") == written(tmp_path / "run")


def test_disabled_tracking_starts_nothing(tmp_path: Path) -> None:
    with open_journal(tmp_path, "disabled") as journal:
        journal.begin(rows=[], wandb_id="kept")
        work(journal, range(1, 3))
        assert journal.tracker.process is None
    assert read_record(tmp_path).wandb_id == "kept" and not (tmp_path / "wandb").exists()


def test_a_secret_in_an_error_or_a_warning_is_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HUB_TOKEN", "not-for-other-eyes")
    with pytest.raises(ConnectionError), open_journal(tmp_path, "disabled") as journal:
        journal.warn("retry https://hub?token=seen-by-chance")
        journal.event("fetched", {"header": "Bearer not-for-other-eyes"})
        raise ConnectionError("401 for not-for-other-eyes at https://me:pass-word@hub")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    text = "".join(path.read_text(encoding="utf-8") for path in files) + capsys.readouterr().err
    assert len(files) == 4 and not [
        word for word in ("not-for-other-eyes", "seen-by-chance", "pass-word") if word in text
    ]
    assert text.count("401 for *** at https://me:***@hub") >= 3

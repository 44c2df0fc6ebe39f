"""What runs on a node, and what Slurm is asked for, with commands in its place. On a real Slurm: tests/slurm/."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import pytest

from hydra_plugins.xcls_launcher._slurm_job import SlurmJob, exit_file
from tests.conftest import Project
from tests.launcher.conftest import blank
from xcls.runs.record import read_record, write_record

WAITS = """
import pathlib, signal, sys, time
def save(number, frame):
    time.sleep(0.3)
    pathlib.Path("saved").touch()
    sys.exit({code})
signal.signal(signal.SIGUSR2, save)
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").touch()
time.sleep(60)
"""


def make(folder: Path, code: str, *needs: Path) -> SlurmJob:
    """A job that runs this Python code."""
    return SlurmJob(
        command=[sys.executable, "-c", code],
        directory=str(folder),
        log=str(folder / "log.txt"),
        variables={"XCLS_TEST": "seen"},
        folder=str(folder / "run"),
        record=blank(),
        needs=[str(need) for need in needs],
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The run's folder."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def back_into_queue(tmp_path: Path) -> Iterator[list[bool]]:
    """Takes the place of submitit's handler; for each call, whether the run had saved by then."""
    calls: list[bool] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: calls.append((tmp_path / "saved").exists()))
    yield calls
    signal.signal(signal.SIGUSR2, before)


def warn_when_ready(folder: Path, number: int = signal.SIGUSR2) -> None:
    """Sends the warning to this process alone, as Slurm does with cgroups, once the run is ready for it."""

    def wait() -> None:
        while not (folder / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize(("code", "calls"), [(130, [True]), (0, []), (1, [])])
def test_a_warned_run_saves_first_and_goes_back_unless_it_ended_by_itself(
    tmp_path: Path, back_into_queue: list[bool], code: int, calls: list[bool]
) -> None:
    warn_when_ready(tmp_path)
    job = make(tmp_path, WAITS.format(code=code))
    assert job() == code and back_into_queue == calls
    assert exit_file(Path(job.log)).read_text() == str(code)


@pytest.mark.parametrize(("state", "calls"), [("RUNNING", [True]), ("CANCELLED", []), (None, [])])
def test_sigterm_is_a_warning_where_slurm_goes_on(
    tmp_path: Path, back_into_queue: list[bool], monkeypatch: pytest.MonkeyPatch, state: str | None, calls: list[bool]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if state is not None:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho JobId=1 JobState={state} Reason=None\n")
        (tmp_path / "scontrol").chmod(0o755)
    warn_when_ready(tmp_path, signal.SIGTERM)
    assert make(tmp_path, WAITS.format(code=130))() == 130 and back_into_queue == calls


def test_a_job_that_may_not_go_back_says_so(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int, frame: Any) -> None:
        raise RuntimeError("timed-out too many times")

    before = signal.signal(signal.SIGUSR2, refuse)
    warn_when_ready(tmp_path)
    write_record(blank(status="interrupted", cause="stopped by SIGUSR2"), run)
    try:
        with pytest.raises(RuntimeError):
            make(tmp_path, WAITS.format(code=130))()
    finally:
        signal.signal(signal.SIGUSR2, before)
    cause = str(read_record(run).cause)
    assert cause.startswith("stopped by SIGUSR2; ") and cause.endswith("timed-out too many times")


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    ("code", "exit_code", "status", "cause"),
    [
        ("import os; os.kill(os.getpid(), 9)", 137, "interrupted", "SIGKILL"),
        ("import os; raise SystemExit('run.py: no column ' + os.environ['XCLS_TEST'])", 1, "failed", "no column seen"),
    ],
)
def test_an_end_without_a_word_is_written_down(
    tmp_path: Path, run: Path, code: str, exit_code: int, status: str, cause: str, begun: bool
) -> None:
    if begun:
        write_record(blank(), run)
    assert make(tmp_path, code)() == exit_code
    found = read_record(run)
    assert found.status == status and cause in str(found.cause) and found.ended and (begun or found.started > 0)


@pytest.mark.parametrize(
    "change", [{"status": "completed"}, {"status": "failed", "cause": "its own"}, {"hash": "another"}]
)
def test_an_end_that_the_run_wrote_itself_stays(tmp_path: Path, run: Path, change: dict[str, str]) -> None:
    write_record(blank(**change), run)
    before = (run / "record.json").read_text()
    make(tmp_path, "raise SystemExit(1)")()
    assert (run / "record.json").read_text() == before


@pytest.mark.parametrize("status", ["failed", "running", "completed", None])
def test_a_run_begins_only_after_its_pretraining(tmp_path: Path, run: Path, status: str | None) -> None:
    need = tmp_path / "pretraining"
    need.mkdir()
    if status is not None:
        write_record(blank(status=status), need)
    code = make(tmp_path, "open('begun', 'w')", need)()
    assert (code == 0) == (tmp_path / "begun").exists() == (status == "completed")
    assert status == "completed" or str(need) in str(read_record(run).cause)


SCRIPTS = {
    "sbatch": 'n=$(($(cat "$D/count" 2>/dev/null || echo 0) + 1)); echo $n >"$D/count"; cp "$1" "$D/$n.sh"\n'
    'if [ -e "$D/refuse$n" ]; then echo "sbatch: error: invalid partition specified: nope" >&2; exit 1; fi\n'
    'echo "Submitted batch job $n"',
    "srun": "exit 1",
    "squeue": 'cat "$D/queue" 2>/dev/null && : >"$D/queue"',  # there at the first look, gone at the second
    "scontrol": 'echo "JobId=1 JobState=NODE_FAIL Reason=None ExitCode=1:0"',
    "scancel": 'echo "$@" >>"$D/cancelled"',
}
SECRET = "0123456789abcdef0123456789abcdef01234567"
WORDS = ["hydra/launcher=slurm", "hydra.launcher.poll_s=0.2", "hardware=cpu", "-m", "pretrain=auto", "seed=0,1"]


@dataclass
class Cluster:
    """Commands in the place of Slurm's, which write down what they are told."""

    project: Project
    folder: Path

    def run(self, *words: str, code: int) -> str:
        """A sweep; gives what it said."""
        result = self.project.run(*WORDS, "exp=s", *words)
        assert result.returncode == code and "Traceback" not in result.stderr, result.stderr + result.stdout
        return result.stderr

    def script(self, number: int) -> str:
        """What was submitted."""
        return (self.folder / f"{number}.sh").read_text()

    def devices(self) -> list[str]:
        """The devices in sweep.json."""
        jobs = json.loads((self.project.folder / "multirun/s/sweep.json").read_text())["jobs"]
        return [job["device"] for job in jobs]


@pytest.fixture
def cluster(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    folder = tmp_path / "slurm"
    (folder / "bin").mkdir(parents=True)
    monkeypatch.setenv("D", str(folder))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for name, body in SCRIPTS.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / "bin" / name).chmod(0o755)
    (folder / "queue").touch()
    return Cluster(project, folder)


@pytest.mark.slow
def test_what_is_submitted_once_and_what_becomes_of_jobs_that_vanish(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    settings = {"gpu_type": "a100", "account": "lab", "timeout_min": 90, "array_parallelism": 1, "setup": "[load cuda]"}
    typed = [f"hydra.launcher.{key}={value}" for key, value in settings.items()]
    said = cluster.run(*typed, code=1)
    options = ("gres=gpu:a100:1", "account=lab", "time=90", "mem=32GB", "signal=USR2@120", "requeue", "cpus-per-task=4")
    for number in (1, 2):
        script = cluster.script(number)
        assert not [option for option in (*options, "array=0-1%1") if f"#SBATCH --{option}" not in script]
        assert "export SRUN_CPUS_PER_TASK=" in script and "load cuda" in script and "gpus-per-node" not in script
    assert "dependency" not in cluster.script(1)
    assert "#SBATCH --dependency=afterany:1_0\n" in cluster.script(2)  # for the pretraining, not for the baseline
    assert cluster.devices() == ["slurm:1_0", "slurm:1_1", "slurm:2_0", "slurm:2_1"]
    assert "4 of 4 jobs" in said and "2_1 (NODE_FAIL)" in said
    paths = list(cluster.project.folder.glob("multirun/s/*/finetune*/record.json"))
    assert [json.loads(path.read_text())["status"] for path in paths] == ["interrupted"] * 2
    left = [path for path in cluster.project.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {".pkl", ".sh"} <= {path.suffix for path in left}
    assert not [path for path in left if SECRET.encode() in path.read_bytes()]

    (cluster.folder / "queue").write_text("1_0 RUNNING\n2_0 PENDING\n77 RUNNING\n")
    cluster.run(code=1)  # what is queued is not submitted twice
    assert cluster.devices() == ["slurm:1_0", "slurm:3", "slurm:2_0", "slurm:4"]
    assert "#SBATCH --dependency=afterany:1_0\n" in cluster.script(4)
    (cluster.folder / "queue").unlink()
    assert "squeue" in cluster.run(code=2) and not (cluster.folder / "5.sh").exists()


@pytest.mark.slow
def test_a_refused_submission_leaves_nothing_in_the_queue(cluster: Cluster) -> None:
    (cluster.folder / "refuse2").touch()
    said = cluster.run(code=2)
    assert said.count("run.py: ") == 1 and "invalid partition specified: nope" in said
    assert (cluster.folder / "cancelled").read_text().split() == ["1_0", "1_1"]
    before = cluster.project.files()
    for words, named in (
        (["hydra.launcher.timeout_min=soon"], "hydra.launcher.timeout_min"),
        (["hydra.launcher.partion=x"], "hydra.launcher.partition"),
        (["hydra.launcher.signal_delay_s=3600", "hydra.launcher.timeout_min=60"], "signal_delay_s=3600"),
        (["hardware.dtype=auto"], "hardware.dtype=auto"),
    ):
        assert named in cluster.run(*words, code=2)
    assert cluster.project.files() <= before and not (cluster.folder / "3.sh").exists()

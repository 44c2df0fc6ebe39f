"""A real Slurm of one node and four pretend GPUs (up.sh), and sweeps on it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import pytest

from tests.conftest import Project, make_project
from tests.launcher.conftest import wait_for

UP = Path(__file__).with_name("up.sh")
PATIENCE = 300.0  # seconds for anything to happen
TINY = [
    "hydra/launcher=slurm",
    "hydra.launcher.mem_gb=1",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.poll_s=0.5",
]
LONG = ["finetuning.batch_size=64", "finetuning.eval_every_epochs=null", "finetuning.checkpoint_every_epochs=null"]


@dataclass
class Run:
    """A run's folder, read."""

    folder: Path

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.folder / "record.json").read_text())

    def events(self, *names: str) -> list[dict[str, Any]]:
        """The events of these names, or all."""
        path = self.folder / "events.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.is_file() else []
        return [event for event in map(json.loads, lines) if not names or event["event"] in names]

    @property
    def lives(self) -> list[list[dict[str, Any]]]:
        """The events of each of its stays on a node."""
        found: list[list[dict[str, Any]]] = []
        for event in self.events():
            found += [[]] if event["event"] == "start" else []
            found[-1].append(event)
        return found

    @property
    def lost(self) -> list[int]:
        """The steps that each return had to do again: the last one told of before it, minus the one it began with."""
        steps = []
        for before, after in zip(self.lives, self.lives[1:]):
            last = max(event["step"] for event in before if event["event"] in ("step", "checkpoint", "end", "resume"))
            steps.append(last - next(event["step"] for event in after if event["event"] == "resume"))
        return steps


@dataclass
class Cluster:
    """A project beside a running Slurm."""

    project: Project
    pace: float  # seconds a step of LONG

    def start(self, *words: str) -> subprocess.Popen[str]:
        """`run.py -m` with these words; what it prints comes with `communicate`."""
        command = self.project.command(*TINY, "hardware=cpu", "-m", *words)
        place, pipe = {"cwd": self.project.folder, "env": self.project.environment}, subprocess.PIPE
        return subprocess.Popen(command, **place, stdout=pipe, stderr=pipe, text=True)

    def ask(self, *command: str) -> str:
        """The output of one of Slurm's commands."""
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def queue(self) -> dict[str, str]:
        """State of every job in the queue."""
        return dict(line.split() for line in self.ask("squeue", "-h", "-r", "-o", "%i %T").splitlines())

    def runs(self, exp: str) -> list[Run]:
        """The fine-tunings of a sweep that have a record."""
        return [
            Run(path.parent) for path in sorted(self.project.folder.glob(f"multirun/{exp}/*/finetune*/record.json"))
        ]

    def jobs(self, exp: str) -> list[dict[str, Any]]:
        """What sweep.json says; nothing while there is none."""
        path = self.project.folder / "multirun" / exp / "sweep.json"
        return json.loads(path.read_text())["jobs"] if path.is_file() else []

    def submitted(self, exp: str) -> list[str]:
        """The Slurm ids of all that was ever submitted for a sweep, as submitit's files tell."""
        files = self.project.folder.glob(f"multirun/{exp}/.slurm/**/*_submitted.pkl")
        return sorted(file.name.removesuffix("_submitted.pkl") for file in files)

    def slurm_id(self, exp: str, run: Run) -> str:
        """The Slurm id of a run."""
        folder = run.folder.relative_to(self.project.folder).as_posix()
        return next(job["device"].removeprefix("slurm:") for job in self.jobs(exp) if job["folder"] == folder)

    def running(self, exp: str, *, seed: int = 0, step: int = 1, life: int = 1) -> Run:
        """Waits until the fine-tuning with this seed has come to `step`, in its `life`-th stay on a node."""

        def find() -> Run | None:
            for run in self.runs(exp):
                if run.record["seed"] == seed and len(run.lives) >= life:
                    steps = [event["step"] for event in run.lives[-1] if event["event"] == "step"]
                    return run if max(steps, default=0) >= step else None
            return None

        return wait_for(find, PATIENCE)

    def steps(self, seconds: float, stage: str = "finetuning") -> str:
        """`finetuning.max_steps=…` for about so many seconds of training on this machine."""
        return f"{stage}.max_steps={round(seconds / self.pace)}"


def ended(launcher: subprocess.Popen[str], code: int, patience: float = PATIENCE) -> str:
    """Waits for a launcher, whose exit code must be `code`; gives what it said."""
    try:
        out, said = launcher.communicate(timeout=patience)
    finally:
        if launcher.poll() is None:
            launcher.send_signal(signal.SIGKILL)
    assert launcher.returncode == code and "Traceback" not in said, said + out
    return said


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    """Slurm, and its end."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun") if shutil.which(name) is None]
    if missing or os.getuid() != 0:
        pytest.skip("a real Slurm needs root and Debian's slurm-wlm: tests/slurm/up.sh install")
    subprocess.run([UP, "up"], check=True, timeout=120)
    words = subprocess.run([UP, "env"], check=True, capture_output=True, text=True).stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", words.split("=", 1)[1].strip())
        yield
    subprocess.run([UP, "down"], check=True, timeout=120)


@pytest.fixture(scope="session")
def pace(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds that a step of LONG takes here, as a short run tells."""
    project = make_project(tmp_path_factory.mktemp("pace"))
    result = project.run(*LONG, "hardware=cpu", "finetuning.max_steps=100", "mode=finetune", "exp=pace")
    assert result.returncode == 0, result.stderr
    return Run(project.folder / "finetune" / "pace").record["costs"]["time_per_step"]


@pytest.fixture
def cluster(slurm: None, pace: float, project: Project) -> Cluster:
    """A fresh project."""
    return Cluster(project, pace)


@pytest.fixture(scope="session")
def long_sweep(slurm: None, pace: float, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Any]]:
    """A run that is longer than its time limit, in the background of the other tests, and its launcher."""
    cluster = Cluster(make_project(tmp_path_factory.mktemp("long")), pace)
    limit = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=10", "hydra.launcher.partition=high")
    launcher = cluster.start(*LONG, cluster.steps(75), "exp=whole", *limit)
    yield cluster, launcher
    launcher.kill()

"""What Slurm is asked for, with commands in its place that write down what they are told. A real one: tests/slurm/."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from hydra_plugins.xcls_launcher.slurm import SlurmConf, check
from tests.conftest import Project
from xcls.config.schema import UserError

pytestmark = pytest.mark.slow

SCRIPTS = {
    "sbatch": 'n=$(($(cat "$D/count" 2>/dev/null || echo 0) + 1)); echo $n >"$D/count"; cp "$1" "$D/$n.sh"\n'
    'if [ -e "$D/refuse$n" ]; then echo "sbatch: error: invalid partition specified: nope" >&2; exit 1; fi\n'
    'echo "Submitted batch job $n"',
    "srun": "exit 1",
    "squeue": 'cat "$D/queue"',
    "scontrol": 'echo "JobId=1 JobState=NODE_FAIL Reason=None ExitCode=1:0"',
    "scancel": 'echo "$@" >>"$D/cancelled"',
}
SECRET = "0123456789abcdef0123456789abcdef01234567"
WORDS = [
    "hydra/launcher=slurm",
    "hydra.launcher.poll_s=0.2",
    "hardware=cpu",
    "-m",
    "pretrain=auto",
    "seed=0,1",
    "exp=s",
]


@dataclass
class Counter:
    """Where the commands write."""

    project: Project
    folder: Path

    def run(self, *words: str, code: int) -> str:
        """A sweep; gives what it said."""
        typed = {word.partition("=")[0] for word in words}
        result = self.project.run(*(word for word in WORDS if word.partition("=")[0] not in typed), *words)
        assert result.returncode == code, result.stderr + result.stdout
        assert "Traceback" not in result.stderr
        return result.stderr

    def script(self, number: int) -> list[str]:
        """The lines of what was submitted."""
        return (self.folder / f"{number}.sh").read_text().splitlines()

    @property
    def submitted(self) -> int:
        return len(list(self.folder.glob("*.sh")))

    def jobs(self) -> list[dict]:
        return json.loads((self.project.folder / "multirun/s/sweep.json").read_text())["jobs"]


@pytest.fixture
def counter(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter:
    folder = tmp_path / "slurm"
    monkeypatch.setenv("D", str(folder))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    (folder / "bin").mkdir(parents=True)
    for name, body in SCRIPTS.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / "bin" / name).chmod(0o755)
    (folder / "queue").touch()
    return Counter(project, folder)


def test_what_is_submitted_and_jobs_that_vanish(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    said = counter.run(
        "hydra.launcher.gpu_type=a100",
        "hydra.launcher.account=lab",
        "hydra.launcher.timeout_min=90",
        "hydra.launcher.array_parallelism=1",
        "hydra.launcher.setup=[module load cuda]",
        code=1,
    )
    first, second = counter.script(1), counter.script(2)
    for line in (
        "--gres=gpu:a100:1",
        "--account=lab",
        "--time=90",
        "--mem=32GB",
        "--signal=USR2@120",
        "--requeue",
        "--cpus-per-task=4",
        "--array=0-1%1",
        "--job-name=xcls-s",
    ):
        assert f"#SBATCH {line}" in first and f"#SBATCH {line}" in second
    assert not any("dependency" in line or "gpus-per-node" in line for line in first)
    assert (
        "#SBATCH --dependency=afterany:1_0" in second
    )  # the two fine-tunings wait for the pretraining, not for the baseline
    assert "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}" in first and "module load cuda" in first
    assert [job["device"] for job in counter.jobs()] == ["slurm:1_0", "slurm:1_1", "slurm:2_0", "slurm:2_1"]
    assert "4 of 4 jobs did not complete" in said and "Slurm ended job 2_1 (NODE_FAIL)" in said
    records = [
        json.loads(path.read_text()) for path in counter.project.folder.glob("multirun/s/*/finetune*/record.json")
    ]
    assert [record["status"] for record in records] == ["interrupted"] * 2
    left = [path for path in counter.project.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.suffix == ".pkl" for path in left) and any(path.suffix == ".sh" for path in left)
    assert not [path for path in left if SECRET.encode() in path.read_bytes()]


def test_what_is_queued_is_not_submitted_twice(counter: Counter) -> None:
    counter.run(code=1)
    (counter.folder / "queue").write_text("1_0 RUNNING\n2_0 PENDING\n77 RUNNING\n")
    assert counter.submitted == 2
    (counter.folder / "bin" / "squeue").write_text(
        '#!/bin/sh\ncat "$D/queue"; : >"$D/queue"\n'
    )  # there at the first look, gone at the second
    said = counter.run(code=1)
    assert [job["device"] for job in counter.jobs()] == ["slurm:1_0", "slurm:3", "slurm:2_0", "slurm:4"]
    assert "#SBATCH --dependency=afterany:1_0" in counter.script(4)
    (counter.folder / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
    said = counter.run(code=2)
    assert "squeue does not answer" in said and counter.submitted == 4


def test_a_refused_submission_leaves_nothing_in_the_queue(counter: Counter) -> None:
    (counter.folder / "refuse2").touch()
    said = counter.run(code=2)
    assert said.count("run.py: ") == 1 and "Slurm does not take these jobs: invalid partition specified: nope" in said
    assert (counter.folder / "cancelled").read_text().split() == ["1_0", "1_1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hydra.launcher.timeout_min=soon"], "hydra.launcher.timeout_min"),
        (["hydra.launcher.partion=x"], "Did you mean 'hydra.launcher.partition'"),
        (["hardware=auto", "hardware.dtype=auto"], "Name their hardware"),
    ],
)
def test_a_wrong_setting_is_refused(counter: Counter, words: list[str], message: str) -> None:
    before = counter.project.files()
    assert message in counter.run(*words, code=2)
    assert counter.submitted == 0 and counter.project.files() <= before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timeout_min": 0}, "timeout_min=0: a value of at least 1"),
        ({"array_parallelism": 0}, "array_parallelism=0"),
        ({"signal_delay_s": 3600}, "signal_delay_s=3600: more than 0 is needed, and less than timeout_min"),
        ({"nodes": 2}, "nodes=2: a run is one process"),
        ({"tasks_per_node": 4}, "tasks_per_node=4: a run is one process"),
        ({"gpu_type": "a100", "gpus_per_node": None}, "gpu_type=a100"),
        ({"gpu_type": "a100", "gpus_per_node": 1, "gres": "gpu:1"}, "gpu_type=a100"),
        ({}, "there is no sbatch on this machine"),
    ],
)
def test_settings_that_cannot_work(monkeypatch: pytest.MonkeyPatch, change: dict, message: str) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError) as caught:
        check({**vars(SlurmConf()), **change})
    assert message in str(caught.value)

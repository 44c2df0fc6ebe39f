"""A sweep of real runs: its launcher is killed, the same command ends it, and no file of it has a secret."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Project, make_project
from tests.launcher.conftest import wait_for

pytestmark = pytest.mark.slow

HIDDEN = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_" + "Q7vZ" * 8,
    "MY_SERVICE_PASSWORD": "correct-horse-battery",
}
BLABBER = "import atexit, os, sys\natexit.register(lambda: print(os.environ['HF_TOKEN'], file=sys.stderr))\n"
SLURM = ("hydra/launcher=slurm", "hydra.launcher.gpus_per_node=0")


@pytest.mark.timeout(900)
def test_a_killed_sweep_goes_on_and_no_file_has_a_secret(project: Project) -> None:
    """A library prints a secret as each process ends."""
    (project.folder / "talks").mkdir()
    (project.folder / "talks" / "sitecustomize.py").write_text(BLABBER)
    environment = {**project.environment, **HIDDEN, "PYTHONPATH": str(project.folder / "talks")}
    words = ["-m", "attention=sdpa,reformer", "pretrain=auto", "exp=sw", "wandb=offline"]
    words += ["finetuning.max_steps=300", "finetuning.checkpoint_every_steps=20", "hydra.launcher.devices=[a,b]"]
    command = project.command(*words)
    launcher = subprocess.Popen(command, cwd=project.folder, env=environment, stderr=subprocess.DEVNULL)
    sweep = project.folder / "multirun" / "sw"

    def statuses(pattern: str) -> list[str]:
        return [json.loads(path.read_text())["status"] for path in sweep.glob(f"*/{pattern}/record.json")]

    wait_for(lambda: list(sweep.glob("*/finetune-*/ckpt_step*.pt")), 300)
    launcher.kill()
    launcher.wait()
    wait_for(lambda: "running" not in statuses("*"), 120)
    assert "interrupted" in statuses("finetune-*")  # Linux told it, and it saved

    told = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=600)
    assert told.returncode == 0, told.stderr
    jobs = json.loads((sweep / "sweep.json").read_text())["jobs"]
    states = [(job["kind"], job["state"]) for job in jobs]
    assert states[:3] == [("pretrain", "skipped"), ("pretrain", "skipped"), ("baseline", "skipped")]
    assert ("finetune", "done") in states[3:] and statuses("*") == ["completed"] * 3
    assert any('"resume"' in path.read_text() for path in sweep.glob("*/finetune-*/events.jsonl"))

    assert any("***" in path.read_text() for path in sweep.glob("logs/*.txt"))  # it was printed
    left = [path for top in ("multirun", "pretrain") for path in (project.folder / top).rglob("*") if path.is_file()]
    assert len(left) > 30 and not (project.folder / "multirun" / "multirun.yaml").exists()
    for path in left:
        assert not [name for name, hidden in HIDDEN.items() if hidden.encode() in path.read_bytes()], path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which nothing begins."""
    return make_project(tmp_path_factory.mktemp("secrets"))


@pytest.mark.parametrize(
    "words",
    [
        (f"exp={HIDDEN['HF_TOKEN']}",),
        ("study=fine,correct-horse-battery",),
        ("study=${oc.env:MY_SERVICE_PASSWORD}",),
        (*SLURM, f"hydra.launcher.setup=['export X={HIDDEN['WANDB_API_KEY']}']"),
    ],
)
def test_a_sweep_with_a_secret_in_it_is_refused_and_leaves_nothing(
    place: Project, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in HIDDEN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name in ("sbatch", "srun"):
        (tmp_path / name).touch(0o755)
    before = place.files()
    result = place.run("-m", "seed=0,1", "hardware=cpu", *words)
    assert result.returncode == 2 and "Traceback" not in result.stderr and place.files() <= before, result.stderr
    assert not [hidden for hidden in HIDDEN.values() if hidden in result.stderr]

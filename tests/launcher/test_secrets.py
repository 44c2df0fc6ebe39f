"""No API key, token or password in anything that a sweep leaves: what is typed is refused, what the environment has is never written."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from tests.conftest import Project, make_project
from tests.entry import Entry, enter
from tests.launcher.conftest import wait_for
from xcls.runs.redact import hide_secrets

pytestmark = pytest.mark.slow

HIDDEN = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_" + "Q7vZ" * 8,
    "MY_SERVICE_PASSWORD": "correct-horse-battery",
}
TYPED = "sT4yH1dden"
BLABBER = "import atexit, os, sys\natexit.register(lambda: print(os.environ['HF_TOKEN'], file=sys.stderr))\n"
DATA = ("dataset=files", "dataset.path=rows.csv", "wandb=disabled", "hardware=cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which nothing begins."""
    return make_project(tmp_path_factory.mktemp("secrets"))


@pytest.fixture
def entry(place: Project, monkeypatch: pytest.MonkeyPatch) -> Entry:
    for name, value in HIDDEN.items():
        monkeypatch.setenv(name, value)
    return enter(place.folder, monkeypatch)


SLURM = ("hydra/launcher=slurm", "hydra.launcher.gpus_per_node=0")


@pytest.mark.parametrize(
    "words",
    [
        (f"+wandb.api_key={TYPED}",),
        (f"exp={HIDDEN['HF_TOKEN']}",),
        ("study=fine,correct-horse-battery",),
        ("study=${oc.env:MY_SERVICE_PASSWORD}",),
        (f"dataset.extra=[rows.csv,'https://me:{TYPED}@host/x.txt']",),
        (*SLURM, f"hydra.launcher.setup=['export X_TOKEN={TYPED}']"),
        (*SLURM, f"+hydra.launcher.additional_parameters.token={TYPED}"),
    ],
)
def test_a_sweep_with_a_secret_in_it_is_refused_and_leaves_nothing(entry: Entry, words: tuple[str, ...]) -> None:
    outcome = entry("-m", "seed=0,1", *DATA, *words)
    assert outcome.code == 2 and outcome.files == [] and not outcome.traceback, (
        outcome.stderr,
        outcome.traceback,
        outcome.files,
    )
    assert "Leave it in the environment" in outcome.stderr
    assert not [hidden for hidden in (TYPED, *HIDDEN.values()) if hidden in outcome.stderr]


def test_no_folder_is_named_by_a_secret(entry: Entry) -> None:
    outcome = entry(f"exp={HIDDEN['HF_TOKEN']}", *DATA)
    assert (
        outcome.code == 2
        and "it names a folder" in outcome.stderr
        and HIDDEN["HF_TOKEN"] not in outcome.stderr
        and outcome.files == []
    )


def test_what_is_printed_hides_them_whoever_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("HF_TOKEN", HIDDEN["HF_TOKEN"])
    hide_secrets()
    hide_secrets()  # a second time changes nothing
    print("with", HIDDEN["HF_TOKEN"], "in it")
    assert sys.stderr.write(f"password={TYPED}\n") == len(f"password={TYPED}\n")
    assert (out.getvalue(), err.getvalue()) == ("with *** in it\n", "password=***\n")


@pytest.mark.slow
def test_no_secret_is_in_any_file_of_a_sweep(project: Project) -> None:
    """A library that prints one as each process ends, a launcher that is killed, and the same command to the end."""
    (project.folder / "talks").mkdir()
    (project.folder / "talks" / "sitecustomize.py").write_text(BLABBER)
    environment = {**project.environment, **HIDDEN, "PYTHONPATH": str(project.folder / "talks")}
    words = project.command(
        "-m",
        "seed=0,1",
        "pretrain=auto",
        "exp=s",
        "wandb=offline",
        "finetuning.max_steps=40",
        "hydra.launcher.devices=[a,b]",
    )
    launcher = subprocess.Popen(
        words, cwd=project.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    sweep = project.folder / "multirun" / "s"
    wait_for(lambda: list(sweep.glob("*/finetune-*/record.json")), 120)
    launcher.kill()
    launcher.wait()
    assert list(sweep.glob(".submitit/*/*.pkl"))  # what is looked through below
    told = subprocess.run(words, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=200)
    assert told.returncode == 0, told.stderr
    assert not (project.folder / "multirun" / "multirun.yaml").exists()
    logs = [path.read_text() for path in sweep.glob("logs/*.txt")]
    assert len(logs) == 4 and any("***" in text for text in logs)  # it was printed
    left = [path for top in ("multirun", "pretrain") for path in (project.folder / top).rglob("*") if path.is_file()]
    assert len(left) > 40
    for path in left:
        assert not [name for name, hidden in HIDDEN.items() if hidden.encode() in path.read_bytes()], path

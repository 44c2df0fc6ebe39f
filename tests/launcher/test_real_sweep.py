"""A sweep of real runs: its launcher is killed, and the same command brings it to its end."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.conftest import Project
from tests.launcher.conftest import wait_for

pytestmark = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_sweep_of_real_runs_goes_on(project: Project) -> None:
    words = (
        "-m",
        "attention=sdpa,reformer",
        "seed=0,1",
        "pretrain=auto",
        "exp=sw",
        "finetuning.max_steps=300",
        "finetuning.checkpoint_every_steps=20",
        "hydra.launcher.devices=[a,b]",
    )
    launcher = subprocess.Popen(
        project.command(*words), cwd=project.folder, env=project.environment, stderr=subprocess.DEVNULL
    )
    sweep = project.folder / "multirun" / "sw"
    wait_for(lambda: list(sweep.glob("*/finetune-*/ckpt_step*.pt")), 300)
    launcher.kill()
    launcher.wait()
    wait_for(
        lambda: not any(json.loads(path.read_text())["status"] == "running" for path in sweep.glob("*/*/record.json")),
        120,
    )
    stopped = [json.loads(path.read_text()) for path in sweep.glob("*/finetune-*/record.json")]
    assert "interrupted" in [record["status"] for record in stopped]  # asked by its guard, it saved

    result = project.run(*words, timeout=600)
    assert result.returncode == 0, result.stderr
    jobs = json.loads((sweep / "sweep.json").read_text())["jobs"]
    assert sorted((job["kind"], job["state"]) for job in jobs if job["kind"] != "finetune") == [
        ("baseline", "skipped"),
        *[("pretrain", "skipped")] * 2,
    ]
    assert [job["state"] for job in jobs if job["kind"] == "finetune"].count("done") >= 1
    records = [json.loads(path.read_text()) for path in sweep.glob("*/*/record.json")]
    assert sorted(record["status"] for record in records) == ["completed"] * 5
    events = [path.read_text() for path in sweep.glob("*/finetune-*/events.jsonl")]
    assert any('"resume"' in text for text in events)

"""What a sweep of real, tiny runs costs beside their training: part of `python -m tests.launcher.overhead`."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.conftest import Project
from tests.launcher.conftest import wait_for

ONE = "hydra.launcher.devices=[a]"
EVERY = 40  # steps between checkpoints of the run that is killed
LONG = (
    "exp=killed",
    "finetuning.max_steps=400",
    f"finetuning.checkpoint_every_steps={EVERY}",
    "finetuning.checkpoint_every_epochs=null",
    "finetuning.eval_every_epochs=null",
    ONE,
)


def events(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's events.jsonl."""
    return [json.loads(line) for line in (run / "events.jsonl").read_text().split("\n")[:-1]]


def runs(project: Project, exp: str) -> list[Path]:
    """The folders of a sweep's fine-tunings that have begun."""
    return [path.parent for path in project.folder.glob(f"multirun/{exp}/*/finetune-*/events.jsonl")]


def sweep(project: Project, *words: str) -> subprocess.Popen[str]:
    """Starts one."""
    command = project.command("-m", *words)
    return subprocess.Popen(
        command,
        cwd=project.folder,
        env=project.environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def ended(launcher: subprocess.Popen[str], code: int) -> None:
    """Waits for a sweep that must end with `code`."""
    said = launcher.communicate(timeout=900)[0]
    assert launcher.returncode == code, said


def first_step(events_of_run: list[dict[str, Any]]) -> float:
    """When the first step was told of."""
    return next(event["time"] for event in events_of_run if event["event"] == "step")


def startup(project: Project) -> list[tuple[str, str, str]]:
    """Four real runs, one after the other: the seconds before each one's first step (imports, data, model, that step)."""
    began = time.time()
    ended(sweep(project, "exp=startup", "seed=0,1,2,3", ONE), 0)
    lives = sorted((events(run) for run in runs(project, "startup")), key=lambda life: life[0]["time"])
    gaps = [first_step(life) - before[-1]["time"] for before, life in zip(lives, lives[1:])]
    return [
        ("a real, tiny run: from the command to the first step", f"{first_step(lives[0]) - began:.1f} s", "0 s"),
        (
            "from the end of a real run to the first step of the next",
            f"{statistics.median(gaps):.1f} s, at most {max(gaps):.1f} s",
            "0 s",
        ),
    ]


def killed_run(project: Project) -> list[tuple[str, str, str]]:
    """A real run is SIGKILLed after its third checkpoint; the same command again goes on with it."""
    launcher = sweep(project, *LONG)
    [run] = wait_for(lambda: runs(project, "killed"), 300)
    wait_for(
        lambda: (
            max([event.get("step", 0) for event in events(run) if event["event"] == "step"], default=0) > 3.5 * EVERY
        ),
        300,
    )
    os.kill(events(run)[0]["pid"], signal.SIGKILL)
    ended(launcher, 1)
    last = max(event["step"] for event in events(run) if event["event"] == "step")
    began = time.time()
    ended(sweep(project, *LONG), 0)
    back = next(event for event in events(run) if event["event"] == "resume")
    assert json.loads((run / "record.json").read_text())["status"] == "completed"
    after = [event for event in events(run) if event["time"] > back["time"]]
    return [
        (
            f"a real run SIGKILLed at step {last}, a checkpoint every {EVERY}",
            f"{last - back['step']} steps to do again",
            f"at most {EVERY}",
        ),
        ("the same command again: to its next step", f"{first_step(after) - began:.1f} s", "0 s"),
    ]

"""Ctrl-C before a run begins: one line, exit code 130, no traceback, and nothing on the disk."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests.conftest import SMALL, Project
from xcls.runs.record import write_record

pytestmark = pytest.mark.slow

HOOK = """
import builtins, os, signal
found = builtins.__import__
def struck(name, *given, **named):
    if name == os.environ["STRIKE"]:
        builtins.__import__ = found
        os.kill(os.getpid(), signal.SIGINT)
    return found(name, *given, **named)
builtins.__import__ = struck
"""
LINE = "run.py: Interrupted before the run began; nothing was written.\n"


def struck(project: Project, module: str, *words: str) -> Any:
    """run.py in a process that gets a SIGINT as it comes to import `module`."""
    hooks = project.folder / "cache" / "hooks"
    hooks.mkdir(parents=True)
    (hooks / "sitecustomize.py").write_text(HOOK)
    environment = {**project.environment, "PYTHONPATH": str(hooks), "STRIKE": module}
    return subprocess.run(
        project.command(*words), cwd=project.folder, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("module", ["hydra", "xcls.config.command_line", "xcls.stages.training", "xcls.data.stratify"])
def test_before_the_run_it_is_one_line(project: Project, module: str) -> None:
    before = project.files()
    done = struck(project, module, "mode=finetune", "exp=x")
    assert (done.returncode, done.stderr) == (130, LINE)
    assert project.files() == before and not (project.folder / "finetune" / "x").exists()


def test_in_another_mode_it_does_not_say_that_nothing_was_written(project: Project) -> None:
    done = struck(project, "xcls.bench.start", "mode=bench", "exp=x")
    assert (done.returncode, done.stderr) == (130, "run.py: mode=bench: interrupted.\n")


def test_as_its_folder_is_made_it_is_taken_back_and_a_life_before_it_is_not(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.entry import enter

    entry = enter(project.folder, monkeypatch)

    def strike(plan: Any, prepared: Any, before: Any, sources: Any) -> int:
        (plan.folder / "logs").mkdir(exist_ok=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("xcls.stages.training.run_stage", strike)
    outcome = entry(*SMALL, "mode=finetune", "exp=x")
    assert (outcome.code, outcome.stderr, outcome.traceback) == (130, LINE, "") and not (
        project.folder / "finetune" / "x"
    ).exists()
    monkeypatch.setattr(
        "xcls.stages.training.run_stage",
        lambda plan, prepared, before, sources: write_record(plan.record(prepared), plan.folder) or 0,
    )
    assert entry(*SMALL, "mode=finetune", "exp=x").code == 0
    monkeypatch.setattr("xcls.stages.training.run_stage", strike)
    outcome = entry(*SMALL, "mode=finetune", "exp=x", "resume=true")
    assert (outcome.code, outcome.stderr) == (
        130,
        "run.py: finetune/x: interrupted; the same command with resume=true goes on.\n",
    )
    assert (project.folder / "finetune" / "x" / "record.json").is_file()

"""Ctrl-C before a run begins: one line, exit code 130, no traceback, and nothing on the disk."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests.conftest import SMALL, Project
from tests.entry import entered
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


@pytest.mark.parametrize("module", ["hydra", "xcls.config.command_line", "xcls.stages.training"])
def test_before_the_run_it_is_one_line(project: Project, module: str) -> None:
    """run.py in a process that gets a SIGINT as it comes to import `module`."""
    before, hooks = project.files(), project.folder / "cache" / "hooks"
    hooks.mkdir(parents=True)
    (hooks / "sitecustomize.py").write_text(HOOK)
    environment = {**project.environment, "PYTHONPATH": str(hooks), "STRIKE": module}
    command = project.command("mode=finetune", "exp=x")
    done = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 130 and done.stderr.startswith("run.py: interrupted") and done.stderr.count("\n") == 1
    assert project.files() == before and not (project.folder / "finetune" / "x").exists()


def test_a_folder_just_made_goes_again_and_a_record_stays(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def strike(spec: Any, prepared: Any, before: Any, sources: Any) -> int:
        (spec.folder / "logs").mkdir(exist_ok=True)
        raise KeyboardInterrupt

    def complete(spec: Any, prepared: Any, before: Any, sources: Any) -> int:
        write_record(spec.record(prepared), spec.folder)
        return 0

    folder, words = project.folder / "finetune" / "x", (*SMALL, "mode=finetune", "exp=x")
    with entered(project.folder) as entry:
        monkeypatch.setattr("xcls.stages.training.run_stage", strike)
        assert entry(*words).code == 130 and not folder.exists()
        monkeypatch.setattr("xcls.stages.training.run_stage", complete)
        assert entry(*words).code == 0
        monkeypatch.setattr("xcls.stages.training.run_stage", strike)
        outcome = entry(*words, "resume=true")
    assert outcome.code == 130 and "resume=true" in outcome.stderr and not outcome.traceback
    assert (folder / "record.json").is_file()

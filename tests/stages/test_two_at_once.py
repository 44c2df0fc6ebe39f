"""Two processes at once: one run in a folder, one pretraining for all, and no lock that a dead owner keeps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Project

pytestmark = pytest.mark.slow


def begin(project: Project, *words: str) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(project.command(*words), cwd=project.folder, env=project.environment, **pipes)


def events(folder: Path) -> Counter[str]:
    """How often each event stands in the folder's events.jsonl."""
    return Counter(json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines())


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def test_the_same_exp_twice_is_refused_until_its_owner_is_dead(project: Project) -> None:
    words = ("mode=finetune", "exp=x", "finetuning.max_steps=60", "finetuning.checkpoint_every_steps=20")
    folder = project.folder / "finetune" / "x"
    first = project.begin(*words, "hardware.workers=1", stop_by=signal.SIGSTOP)  # it lives, and does nothing
    assert os.WIFSTOPPED(os.waitpid(first.pid, os.WUNTRACED)[1])
    for more, said in ((), "(running)"), (("resume=true",), "another process"):
        second = project.run(*words, *more)
        assert second.returncode == 2 and said in second.stderr and str(folder) in second.stderr
    assert record(folder)["status"] == "running"
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=30)
    third = project.run(*words, "resume=true")  # at once: a worker of the dead owner may live for seconds
    assert third.returncode == 0, third.stderr
    assert (record(folder)["status"], record(folder)["step"]) == ("completed", 60)
    assert events(folder)["start"] == 2 and events(folder)["end"] == 1


def test_runs_that_begin_together_share_one_pretraining_run(project: Project) -> None:
    words = ("mode=finetune", "pretrain=auto", "finetuning.max_steps=2", "pretraining.max_steps=40")
    jobs = [begin(project, *words, f"exp={name}", f"seed={seed}") for seed, name in enumerate("ab")]
    ends = [job.communicate(timeout=120)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], ends
    made = list(project.folder.glob("pretrain/*/record.json"))
    assert len(made) == 1 and events(made[0].parent)["start"] == 1
    for name in "ab":
        assert record(project.folder / "finetune" / name)["pretrain"]["hash"] == record(made[0].parent)["hash"]

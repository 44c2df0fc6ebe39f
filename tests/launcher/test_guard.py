"""The guard: it gives the job's exit code, outlives the launcher, and the job does not outlive it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launcher.conftest import wait_for

GUARD = Path(__file__).resolve().parents[2] / "hydra_plugins" / "xcls_launcher" / "_guard.py"
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""
SAVES = """
import time
print("here", flush=True)
try:
    time.sleep(600)
except KeyboardInterrupt:
    time.sleep(0.3)
    print("saved", flush=True)
    raise SystemExit(130)
"""


def guard(log: Path, code: str, grace: float = 30.0, descriptors: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-IS", str(GUARD), str(grace), str(log), sys.executable, "-S", "-c", code]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, pass_fds=descriptors)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids(log: Path) -> list[int]:
    return [int(word) for word in log.read_text().split()] if log.is_file() else []


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("print('hello')", 0),
        ("raise SystemExit(3)", 3),
        ("1/0", 1),
        ("import os; os.kill(os.getpid(), 9)", 137),
        ("import os; os.abort()", 134),
    ],
)
def test_the_exit_code_and_the_output(tmp_path: Path, code: str, exit_code: int) -> None:
    process = guard(tmp_path / "log", code)
    assert process.wait(timeout=30) == exit_code
    assert (
        (tmp_path / "log")
        .read_text()
        .startswith("hello" if exit_code == 0 else ("Traceback" if exit_code == 1 else ""))
    )


def test_a_job_is_asked_to_save_first(tmp_path: Path) -> None:
    process = guard(tmp_path / "log", SAVES)
    wait_for(lambda: (tmp_path / "log").is_file() and "here" in (tmp_path / "log").read_text())
    process.stdin.close()
    assert process.wait(timeout=30) == 130
    assert (tmp_path / "log").read_text().split() == ["here", "saved"]


@pytest.mark.parametrize("how", ["grace", "terminate"])
def test_what_does_not_leave_is_killed_with_its_children(tmp_path: Path, how: str) -> None:
    process = guard(tmp_path / "log", STUBBORN, grace=0.5 if how == "grace" else 600)
    job, child = wait_for(lambda: len(pids(tmp_path / "log")) == 2 and pids(tmp_path / "log"))
    process.stdin.close()
    if how == "terminate":
        time.sleep(0.2)
        assert alive(job)
        process.terminate()
    assert process.wait(timeout=30) == 137
    wait_for(lambda: not alive(job) and not alive(child))


def test_what_a_job_leaves_behind_is_killed(tmp_path: Path) -> None:
    process = guard(tmp_path / "log", STUBBORN.replace("time.sleep(600)\n", "").replace("print(", "print(0, "))
    assert process.wait(timeout=30) == 0
    assert not alive(pids(tmp_path / "log")[-1]) or wait_for(lambda: not alive(pids(tmp_path / "log")[-1]))


def test_a_killed_guard_takes_its_job_along_and_gives_its_lease_back(tmp_path: Path) -> None:
    lease = os.open(tmp_path / "lease", os.O_RDONLY | os.O_CREAT)
    fcntl.flock(lease, fcntl.LOCK_EX)
    process = guard(tmp_path / "log", STUBBORN, descriptors=(lease,))
    os.close(lease)
    again = os.open(tmp_path / "lease", os.O_RDONLY)
    job, child = wait_for(lambda: len(pids(tmp_path / "log")) == 2 and pids(tmp_path / "log"))
    with pytest.raises(BlockingIOError):
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not alive(job))
    fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)  # neither the job nor its child had it
    os.close(again)
    os.kill(child, signal.SIGKILL)

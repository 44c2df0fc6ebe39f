"""A run that another needs first: it saves before it ends, also where the other is asked to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xcls.runs.subprocesses import run_child

CHILD = """
import pathlib, signal, sys, time
def save(number, frame):
    time.sleep(1.0)  # longer than subprocess.run would wait
    pathlib.Path("saved").write_text(signal.Signals(number).name)
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").touch()
time.sleep(60)
"""
PARENT = """
import os, sys
from xcls.runs.subprocesses import run_child
print(*run_child([sys.executable, "child.py"], os.environ))
"""
COUNTS = """
import signal, sys, time
came = []
signal.signal(signal.SIGUSR1, lambda number, frame: came.append(number))
open(sys.argv[1], "w").close()
end = time.monotonic() + 20
while not came and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.3)
sys.exit(len(came))
"""


def test_a_child_saves_before_it_ends(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < until:
        time.sleep(0.05)
    parent.send_signal(signal.SIGINT)
    assert parent.communicate(timeout=60)[0].split() == ["130", "[2]"]
    assert (tmp_path / "saved").read_text() == "SIGTERM"


def test_a_child_ends_by_itself_and_handlers_are_as_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert run_child([sys.executable, "-c", "raise SystemExit(7)"], os.environ) == (7, [])
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("early", [True, False])
def test_a_signal_is_passed_on_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    ready, popen = tmp_path / "ready", subprocess.Popen

    class Child(popen):  # type: ignore[misc, valid-type]
        def __init__(self, *command: object, **settings: object) -> None:
            super().__init__(*command, **settings)
            while not ready.exists():
                assert self.poll() is None
            if early:  # run_child has no child yet
                signal.raise_signal(signal.SIGUSR1)

        def wait(self, timeout: float | None = None) -> int:
            if not early:
                signal.raise_signal(signal.SIGUSR1)
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Child)
    code, came = run_child([sys.executable, "-c", COUNTS, str(ready)], os.environ)
    assert (code, came) == (1, [signal.SIGUSR1])

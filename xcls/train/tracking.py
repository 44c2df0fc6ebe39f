"""Weights & Biases, never in the way: a process beside the run copies what the run writes down (wandb_copy.py)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from shlex import quote
from typing import Callable

from xcls.config.schema import Wandb
from xcls.train.wandb_copy import patience

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 10  # for W&B to begin before the first step, whose time is measured
GRACE_SECONDS = 10  # for a copying process to notice by itself that its time is up


class Tracker:
    """The copying process of one run. Whatever goes wrong with it is one warning.

    Where it fails (no key, no network, a server that does not answer, killed), a second one takes over offline and
    writes down what W&B lacks; where that fails too, everything is still in the run's folder.
    """

    def __init__(self, *, settings: Wandb, folder: Path, warn: Callable[[str], None]) -> None:
        self.settings = settings
        self.folder = Path(folder)
        self.warn = warn
        self.process: subprocess.Popen[str] | None = None
        self.failed = False

    def start(self) -> None:
        """Begins to copy the run in `folder`, whose record.json names its W&B id."""
        if self.settings.mode != "disabled":
            self._spawn(self.settings.mode)
            self.check()

    def check(self) -> None:
        """Notices a copying process that has ended before the run."""
        if self.process is not None and self.process.poll() is not None:
            self._take_over()

    def finish(self) -> None:
        """The run has ended: waits, not without limit, until W&B has taken the rest."""
        while self.process is not None:
            with contextlib.suppress(OSError):  # it is gone already
                self.process.stdin.write("end\n")
                self.process.stdin.close()
            try:
                self.process.wait(patience(self.settings.artifacts) + GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            if self.process.returncode == 0:
                self.process = None
            else:
                self._take_over()

    def _spawn(self, mode: str) -> None:
        """Starts a copying process in a session of its own: it is to outlive what ends this one, and send the rest."""
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "xcls.train.wandb_copy", str(self.folder), "--mode", mode, "--follow"]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
        except OSError as error:  # no memory, no process left
            self._warn(str(error))
            return
        self._heard, self._words = threading.Event(), []
        self._listener = threading.Thread(target=self._listen, args=(self.process,), daemon=True)
        self._listener.start()
        self._heard.wait(START_SECONDS)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        """Takes down what the process says: `ready`, or why it failed."""
        with process.stdout:
            for line in process.stdout:
                self._words.append(line.strip())
                self._heard.set()
        self._heard.set()

    def _take_over(self) -> None:
        """The process has failed: one warning, and a second one goes on offline, once."""
        self._listener.join(GRACE_SECONDS)
        spoken = [word for word in self._words if word != "ready"]
        reason = spoken[-1] if spoken else f"its process ended (exit code {self.process.returncode})"
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process = None
        if not self.failed:
            self._warn(reason)
            self._spawn("offline")

    def _warn(self, reason: str) -> None:
        """The one warning."""
        if not self.failed:
            self.failed = True
            self.warn(
                f"W&B: {reason}. The run goes on, and all its numbers are in its folder. Later, to send them: "
                f"python -m xcls.train.wandb_copy {quote(str(self.folder))} && wandb sync {quote(str(self.folder / 'wandb'))}"
            )

"""The other end of training_worker.py: one training in a process of its own, which takes its turns when asked."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from typing import Any

from xcls.bench.process import killed_by


class TrainingProcess:
    """A training that waits for its turns. `cause` tells why it is no more, None while it lives."""

    def __init__(self, job: dict[str, Any], variables: dict[str, str]) -> None:
        """Starts it; `ready` then holds what it said of itself, None where it failed."""
        self.cause: str | None = None
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        command = [sys.executable, "-W", "ignore", "-m", "xcls.bench.training_worker"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self.errors, env=variables, text=True, bufsize=1
        )
        try:
            self.ready = self._exchange(job)
        except BaseException:
            self.close()
            raise

    def ask(self, word: str) -> dict[str, Any] | None:
        """One turn: the event that came of it, None where the training has failed (see `cause`)."""
        return self._exchange({"word": word})

    def close(self) -> None:
        """Ends the process at once."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.errors.close()

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any] | None:
        if self.cause is not None:
            return None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:  # it died at once: its exit code and last words tell why
            line = ""
        event = json.loads(line) if line else {"event": "stopped", "cause": self._last_words()}
        if event["event"] != "stopped":
            return event
        self.cause = event["cause"]
        return None

    def _last_words(self) -> str:
        """Why the process is gone."""
        code = self.process.wait()
        if code < 0:
            return killed_by(-code)
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors if line.strip()]
        return lines[-1][:300] if lines else f"exit code {code}"

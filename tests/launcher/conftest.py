"""A project whose run.py is the stand-in (standin.py), and what its records and events prove."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.launcher import standin


@dataclass
class Server:
    """A folder in which sweeps of stand-in jobs run, with devices and leases of its own."""

    folder: Path
    patience: float = 120  # seconds for a sweep

    @property
    def environment(self) -> dict[str, str]:
        """The caller's, without GPUs or a share of threads."""
        kept = {
            name: value for name, value in os.environ.items() if name not in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
        }
        return {**kept, "XCLS_LEASES": str(self.folder / "leases"), "XCLS_PROGRESS": "0", "HYDRA_FULL_ERROR": "1"}

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        """Starts a sweep."""
        return subprocess.Popen(
            [sys.executable, str(self.folder / "run.py"), "-m", *words],
            cwd=self.folder,
            text=True,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *words: str, **variables: str) -> tuple[int, str]:
        """Runs a sweep to its end: exit code and what it said."""
        launcher = self.start(*words, **variables)
        _, said = launcher.communicate(timeout=self.patience)
        return launcher.returncode, said

    def sweep(self, name: str) -> dict[str, Any]:
        """sweep.json."""
        return json.loads((self.folder / "multirun" / name / "sweep.json").read_text())

    def states(self, name: str) -> dict[str, str]:
        """The state of each job by its run's name without the hash, or by what was typed."""
        return {
            Path(job["folder"]).name.rpartition("-")[0] or job["overrides"][0]: job["state"]
            for job in self.sweep(name)["jobs"]
        }

    def records(self) -> list[dict[str, Any]]:
        """Every record, with the events of its run."""
        found = []
        for path in sorted(self.folder.glob("multirun/*/data/*/record.json")) + sorted(
            self.folder.glob("pretrain/*/record.json")
        ):
            events = (
                [json.loads(line) for line in (path.parent / "events.jsonl").read_text().splitlines()]
                if (path.parent / "events.jsonl").exists()
                else []
            )
            found.append({**json.loads(path.read_text()), "events": events})
        return found

    def lives(self) -> list[tuple[str, float, float]]:
        """(device, first event, last event) of every life of every job; a resumed run has several."""
        found = []
        for record in self.records():
            starts = [place for place, event in enumerate(record["events"]) if event["event"] in ("start", "resume")]
            for start, end in zip(starts, [*starts[1:], len(record["events"])]):
                life = record["events"][start:end]
                found.append((life[0]["device"], life[0]["time"], life[-1]["time"]))
        return found

    def children(self) -> list[str]:
        """Command lines of the live processes that work in this folder, other than the launchers."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().decode().split("\0")
                if (process / "cwd").resolve() == self.folder.resolve() and (process / "stat").read_text().rpartition(
                    ")"
                )[2].split()[0] != "Z":
                    found.append(" ".join(words))
            except OSError:
                continue  # it ended while we looked
        return [line for line in found if "run.py -m" not in line]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """A fresh one."""
    standin.install(tmp_path)
    return Server(tmp_path)


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Looks until `condition` gives something true, and gives that."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)
    return found


def at_most(lives: list[tuple[str, float, float]], places: int = 1) -> bool:
    """Whether no device ever had more than `places` live jobs."""
    for device in {life[0] for life in lives}:
        own = [(start, end) for name, start, end in lives if name == device]
        if any(sum(start <= moment < end for start, end in own) > places for moment, _ in own):
            return False
    return True


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

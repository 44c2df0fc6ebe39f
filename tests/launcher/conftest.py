"""A project whose run.py is the stand-in (standin.py), and what its records, its events and /proc tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.launcher import standin
from xcls.runs.record import Record


def blank(**changes: Any) -> Record:
    """The record of a run that has begun."""
    settings = {"run": "data/r", "mode": "finetune", "status": "running", "hash": "h", "seed": 0, "seq_len": 8}
    return Record(**{**settings, "step": 2, "steps": 10, **changes})


@dataclass
class Server:
    """A folder in which sweeps of stand-in jobs run, with devices and leases of its own."""

    folder: Path

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        """Starts a sweep, without the caller's GPUs and threads."""
        environment = {**os.environ, "XCLS_LEASES": str(self.folder / "leases"), "HYDRA_FULL_ERROR": "1"}
        for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
            environment.pop(name, None)
        return subprocess.Popen(
            [sys.executable, str(self.folder / "run.py"), "-m", *words],
            cwd=self.folder,
            text=True,
            env={**environment, **variables},
            stderr=subprocess.PIPE,
        )

    def run(self, *words: str, **variables: str) -> tuple[int, str]:
        """Runs a sweep to its end: exit code and what it said."""
        launcher = self.start(*words, **variables)
        _, said = launcher.communicate(timeout=120)
        return launcher.returncode, said

    def jobs(self, name: str) -> list[dict[str, Any]]:
        """The jobs in sweep.json."""
        return json.loads((self.folder / "multirun" / name / "sweep.json").read_text())["jobs"]

    def states(self, name: str) -> dict[str, str]:
        """The state of each job by its run's name without the hash."""
        return {Path(job["folder"]).name.rpartition("-")[0]: job["state"] for job in self.jobs(name)}

    def records(self) -> list[dict[str, Any]]:
        """Every record, with the events of its run."""
        found = []
        for pattern in ("multirun/*/data/*/record.json", "pretrain/*/record.json"):
            for path in sorted(self.folder.glob(pattern)):
                lines = (path.parent / "events.jsonl").read_text().splitlines()
                found.append({**json.loads(path.read_text()), "events": [json.loads(line) for line in lines]})
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
        """Command lines of the live processes that work in this folder, except the launchers."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().decode().replace("\0", " ")
                state = (process / "stat").read_text().rpartition(")")[2].split()[0]
                if (process / "cwd").resolve() == self.folder.resolve() and state != "Z":
                    found.append(words)
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


def most_at_once(lives: list[tuple[str, float, float]]) -> int:
    """The most jobs that any device had at one time."""
    return max(
        sum(other == device and begin <= moment < end for other, begin, end in lives) for device, moment, _ in lives
    )

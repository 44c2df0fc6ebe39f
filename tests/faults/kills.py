"""Kills at random instants, and right before every single file operation."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from tests.faults.process import KILLED, LastCall, spawn, wait
from tests.faults.runs import CASES, Case, differences, forgotten, history, live, saved_step
from tests.faults.tally import Tally
from xcls.runs.record import read_record
from xcls.train.checkpoint import Checkpoints, read_checkpoint

SOFT = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
SIGNALS = ("SIGKILL",) * 4 + SOFT
EARLY = {True: "SIGKILL, early", False: "signal, early"}  # those that came before a life had begun to train


def events(folder: Path) -> list[dict[str, Any]]:
    """The events of the life that began last."""
    path = folder / "events.jsonl"
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    starts = [place for place, event in enumerate(found) if event["event"] == "start"]
    return found[starts[-1] :] if starts else []


def reached(life: list[dict[str, Any]]) -> int | None:
    """The step a life had come to; None where it had not begun to train."""
    steps = [event["step"] for event in life if event["event"] in ("step", "resume")]
    return steps[-1] if steps else None


class Kills:
    """Kills runs of every case until `number` kills have come while a run was alive; resumes each to its end."""

    def __init__(self, *, number: int, folder: Path, seed: int) -> None:
        self.number, self.folder = number, folder
        self.draws = random.Random(seed)
        self.made: Counter[str] = Counter()
        self.runs = 0
        self.whole: dict[str, tuple[Path, float, float, int]] = {}
        self.lost: dict[str, list[int]] = {"SIGKILL": [0], "signal": [0]}
        self.problems: list[str] = []

    def run(self) -> list[Tally]:
        """All of them. Two tallies for SIGKILL and two for the signals that give notice: in training, and before it."""
        while sum(self.made.values()) < self.number:
            name = list(CASES)[self.runs % len(CASES)]
            if name not in self.whole:
                self.whole[name] = self._undisturbed(name, CASES[name])
            self._disturbed(name, CASES[name], *self.whole[name])
            self.runs += 1
        lost, notice = "in the results nothing", ", ".join(SOFT)
        hard = Tally("SIGKILL at a random instant of training", self.made["SIGKILL"], self.runs, lost)
        soft = Tally(
            f"{notice} at a random instant of training", sum(self.made[name] for name in SOFT), self.runs, lost
        )
        hard.steps, soft.steps, hard.problems = max(self.lost["SIGKILL"]), max(self.lost["signal"]), self.problems
        before = "at a random instant before it trains"
        return [
            hard,
            soft,
            Tally(f"SIGKILL {before}", self.made[EARLY[True]], self.runs, lost),
            Tally(f"{notice} {before}", self.made[EARLY[False]], self.runs, lost),
        ]

    def _undisturbed(self, name: str, case: Case) -> tuple[Path, float, float, int]:
        """The folder of a run that nobody disturbs, its seconds before it trains and those after, and its steps."""
        folder = self.folder / "whole" / str(list(CASES).index(name))
        folder.mkdir(parents=True)
        began = time.time()
        if wait(spawn(lambda: live(folder, case), self.folder / "log")):
            raise RuntimeError(f"{name}: it fails without any fault: {self.folder / 'log'}")
        ended = time.time()
        lead = next(event["time"] for event in events(folder) if event["event"] == "step") - began
        return folder, lead, ended - began - lead, read_record(folder).step

    def _disturbed(self, name: str, case: Case, whole: Path, lead: float, seconds: float, total: int) -> None:
        """One run, killed two to ten times, one time in five before it trains, then left to end; compared with the one
        nobody disturbed."""
        folder = self.folder / f"run{self.runs}"
        for _ in range(self.draws.randint(2, 10)):
            left = seconds * (1 - 0.8 * saved_step(folder) / total) if folder.exists() else seconds
            early = self.draws.random() < 0.2
            if self._kill(
                name, case, folder, self.draws.random() * lead if early else lead + self.draws.random() * left
            ):
                break
        before = history(folder)
        if wait(spawn(lambda: live(folder, case), self.folder / "log")):
            self.problems.append(f"{name}, {folder.name}: it could not be resumed")
        else:
            self.problems += [f"{name}, {folder.name}: {item}" for item in differences(whole, folder, before)]

    def _kill(self, name: str, case: Case, folder: Path, delay: float) -> bool:
        """One life, killed after `delay` seconds. Has it come to its end before?"""
        before = history(folder)
        process = spawn(lambda: live(folder, case), self.folder / "log")
        time.sleep(delay)
        chosen = self.draws.choice(SIGNALS)
        if os.waitpid(process, os.WNOHANG)[0]:
            return True
        os.kill(process, getattr(signal, chosen))
        code = wait(process)
        self.problems += [f"{name}, {folder.name}, after {chosen}: {item}" for item in forgotten(before, folder)]
        life = events(folder) if len(history(folder)) > len(before) else []
        if not life and code == 0:
            return True  # it had been complete before, and had nothing to do
        step = reached(life)
        self.made[chosen if step is not None else EARLY[chosen == "SIGKILL"]] += 1
        lost = 0 if step is None else step - saved_step(folder)
        self.lost["SIGKILL" if chosen == "SIGKILL" else "signal"].append(lost)
        if life and chosen != "SIGKILL":  # it had begun, so it must say how it ended
            status = read_record(folder).status
            if code < 0 or status not in ("interrupted", "completed") or lost > 0:
                self.problems.append(
                    f"{name}, {folder.name}: {chosen} left it {status} (exit {code}), {lost} steps lost"
                )
        return False


def cut_saves(folder: Path) -> Tally:
    """A kill right before every file operation of a save, one save for each; what is left must be whole."""
    tally = Tally(
        "kill before each file operation of a checkpoint write", lost="nothing: the old or the new one is whole"
    )
    payload = {"weights": torch.arange(1000.0), "progress": {"step": 1, "best_step": 1}}
    for fatal in range(10_000):
        place = folder / str(fatal)
        place.mkdir(parents=True)
        checkpoints = Checkpoints(folder=place, keep=1)
        checkpoints.save(1, payload, best=True)
        new = {**payload, "progress": {"step": 2, "best_step": 2}}
        code = wait(spawn(lambda: LastCall(fatal).during(lambda: checkpoints.save(2, new, best=True)), folder / "log"))
        if code == 0:
            return tally
        tally.tried += 1
        warnings: list[str] = []
        found = Checkpoints(folder=place, keep=1).newest(warnings.append)
        best = read_checkpoint(place / "ckpt_best.pt")
        steps = (found or {"progress": {"step": 0}})["progress"]["step"], best["progress"]["step"]
        if code != KILLED or warnings or 0 in steps or not torch.equal(best["weights"], payload["weights"]):
            tally.problems.append(f"before operation {fatal}: exit {code}, steps {steps}, {warnings}")
        tally.problems += [f"before operation {fatal}: left behind {path.name}" for path in place.glob(".*")]
    raise RuntimeError("a save never came to its end")


def cut_runs(folder: Path, stride: int, names: tuple[str, ...]) -> Tally:
    """A kill right before one in `stride` file operations of whole runs, then a resume."""
    which = f"a file operation of a whole run, one in {stride} of them ({'; '.join(names)})"
    tally = Tally(f"kill before {which}", lost="in the results nothing")
    for name in names:
        case = CASES[name]
        whole = folder / f"whole {name}"
        whole.mkdir(parents=True)
        wait(spawn(lambda: live(whole, case), folder / "log"))
        for fatal in range(0, 100_000, stride):
            place = folder / f"{name} {fatal}"
            code = wait(spawn(lambda: LastCall(fatal).during(lambda: live(place, case)), folder / "log"))
            if code == 0:
                break
            tally.tried, tally.runs = tally.tried + 1, tally.runs + 1
            before = history(place)
            code = wait(spawn(lambda: live(place, case), folder / "log"))
            wrong = [f"exit {code}"] if code else differences(whole, place, before)
            tally.problems += [f"{name}, before operation {fatal}: {item}" for item in wrong]
    return tally

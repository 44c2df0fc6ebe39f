"""What a sweep shows while it runs: a line per job that ended, and now and then one about those that run.

Everything comes from the run folders: the total of steps from `record.json`, the last numbers from `events.jsonl`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from hydra_plugins.xcls_launcher.sweep import DONE, FAILED, RUNNING, STOPPED, WAITING, Job, Sweep
from xcls.runs.record import read_record

TAIL = 16_384  # bytes of events.jsonl that are read
SHOWN = 4  # running jobs named in a line
LINES = 20  # so many lines, about, for the jobs of a sweep that are done, and for the failures in its list at the end


def newest(folder: Path) -> dict[str, Any]:
    """The newest numbers of a run: step, steps, loss, and the last validation macro-F1 or loss; what there is of them."""
    found: dict[str, Any] = {}
    try:
        record = read_record(folder)
        found.update(step=record.step, steps=record.steps)
        with open(folder / "events.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return found
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the first may be cut, the last half written
        if event.get("event") == "step":
            found.update(step=event.get("step"), loss=event.get("step_loss"))
        elif event.get("event") == "eval":
            found.update({key: event[key] for key in ("step", "macro_f1", "val_loss") if event.get(key) is not None})
    return found


def numbers(folder: Path) -> str:
    """`newest(folder)` in words: `120/282 loss 0.53 macro_f1 0.71`."""
    found = newest(folder)
    step, steps = found.get("step"), found.get("steps")
    parts = [f"{step}/{steps}"] if steps else [f"step {step}"] if step else []  # a record may lag behind the events
    parts += [f"{name} {found[name]:.3g}" for name in ("loss", "macro_f1") if found.get(name) is not None]
    if "macro_f1" not in found and found.get("val_loss") is not None:
        parts.append(f"val_loss {found['val_loss']:.3g}")
    return " ".join(parts)


class Screen:
    """Writes to stderr. On a terminal the line about running jobs stays in place; elsewhere it comes once a minute at
    first, later less often. A long sweep has no line for every job: `make status` has them all.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.terminal = sys.stderr.isatty()
        self.every = 1.0 if self.terminal else 60.0
        self.began = self.last = time.monotonic()
        self.failures = 0
        self.quiet = os.environ.get("XCLS_PROGRESS") == "0"

    def begin(self) -> None:
        """What is about to happen."""
        sweep = self.sweep
        equal = f", {sweep.equal} equal cells left out" if sweep.equal else ""
        self._line(f"sweep {sweep.name}: {self._counts()}{equal}; make status shows it, {self._place('sweep.json')}")
        for job in sweep.jobs:
            if job.state == FAILED:
                self.failed(job)

    def ended(self, job: Job) -> None:
        """A job has ended, well or not."""
        if job.stopped:
            self._line(f"{self._stopped(job)} {numbers(self.sweep.runs / job.folder)}".rstrip())
            return
        if job.state == FAILED:
            self.failed(job)
            return
        ended, jobs = sum(other.state not in (WAITING, RUNNING) for other in self.sweep.jobs), len(self.sweep.jobs)
        if ended * LINES // jobs == (ended - 1) * LINES // jobs:
            return
        share = f"[{ended}/{jobs}]"
        found = numbers(self.sweep.runs / job.folder) if job.folder else ""
        self._line(f"done   {job.label} {share} {time.time() - job.began:.0f} s {found}".rstrip())

    def failed(self, job: Job) -> None:
        """A failure with its cause and where to look, of the first LINES of them."""
        self.failures += 1
        if self.failures > LINES:
            return
        where = [text for text in (job.folder, self._output(job)) if text]
        self._line(f"FAILED {job.label}: {job.cause}" + (f"\n       {'  '.join(where)}" if where else ""))

    def tick(self) -> None:
        """The line about running jobs, when it is time."""
        now = time.monotonic()
        every = self.every if self.terminal else max(self.every, (now - self.began) / 10)
        if self.quiet or now - self.last < every:
            return
        self.last = now
        running = [job for job in self.sweep.jobs if job.state == RUNNING]
        parts = [
            f"{job.device}: {job.label} {numbers(self.sweep.runs / job.folder)}".rstrip() for job in running[:SHOWN]
        ]
        text = " | ".join([self._counts() + ("" if running else ", waiting for a free device"), *parts])
        if self.terminal:
            print("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1], end="", file=sys.stderr, flush=True)
        else:
            self._line(text)

    def stopping(self, jobs: int) -> None:
        """The user wants an end."""
        self._line(f"stopping: {jobs} jobs save and leave (once more: they are killed)")

    def end(self, stopped: int) -> None:
        """How it all ended, and what comes next."""
        sweep = self.sweep
        self._line(f"sweep {sweep.name}: {self._counts()}, {time.time() - sweep.started:.0f} s")
        failed = [job for job in sweep.jobs if job.state == FAILED]
        if stopped:
            self._line("Stopped. The same command goes on.")
        elif failed:
            self._line(f"run.py: {len(failed)} of {len(sweep.jobs)} jobs did not complete:")
            for job in failed[:LINES]:
                self._line(f"  {self._stopped(job) if job.stopped else f'{job.label}: {job.cause}'}")
            if len(failed) > LINES:
                self._line(f"  … and {len(failed) - LINES} more: make status SWEEP=multirun/{sweep.name}")
            self._line("The same command goes on with interrupted jobs; retry_failed=true runs failed ones again.")
        if any(job.state == DONE or job.state == "skipped" for job in sweep.jobs):
            there = "" if Path.cwd() == sweep.root else f"cd {shlex.quote(str(sweep.root))} && "
            self._line(f"The report: {there}python report.py 'runs=[multirun/{sweep.name}]'")

    def _stopped(self, job: Job) -> str:
        """`stopped <run>: by SIGINT`, which is no failure."""
        return f"{STOPPED} {job.label}: {(job.cause or '').removeprefix('stopped ')}"

    def _output(self, job: Job) -> str:
        """The file with what the job printed, as a user types it; empty where it has not run."""
        return "" if not job.began else f"output: {self._place(f'logs/{self.sweep.log(job).name}')}"

    def _place(self, name: str) -> str:
        """A file of the sweep as a user here types it."""
        path = self.sweep.folder / name
        return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

    def _counts(self) -> str:
        counts = self.sweep.counts()
        return ", ".join(f"{number} {state}" for state, number in counts.items()) or "nothing to do"

    def _line(self, text: str) -> None:
        """One line above the one that stays in place."""
        print(("\r\x1b[K" if self.terminal else "") + text, file=sys.stderr, flush=True)

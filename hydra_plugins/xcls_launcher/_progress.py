"""The output of a sweep: one line for each job that has ended, and on a terminal one line on the running jobs."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

from tqdm import tqdm

from hydra_plugins.xcls_launcher._job import DONE, FAILED, RUNNING, SKIPPED, WAITING, Job
from hydra_plugins.xcls_launcher._sweep import Sweep
from xcls.runs.run_status import read_run

STOPPED = "stopped"  # shown for a FAILED job that a signal stopped after it had saved
EVERY = 2.0  # seconds between two updates of the line on running jobs
SHOWN = 4  # running jobs named in a line


class Progress:
    """Writes to stderr."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        hidden = True if os.environ.get("XCLS_PROGRESS") == "0" else None  # None: hidden if stderr is no terminal
        form = "{n_fmt}/{total_fmt} {elapsed} {desc}"
        self.bar = tqdm(total=len(sweep.jobs), disable=hidden, leave=False, bar_format=form, dynamic_ncols=True)
        self.last = 0.0

    def begin(self) -> None:
        """Prints the plan of the sweep."""
        sweep = self.sweep
        equal = f", {sweep.equal} equal cells skipped" if sweep.equal else ""
        self.line(f"sweep {sweep.name}: {self.counts()}{equal}; make status shows it, {self._path('sweep.json')}")
        for job in sweep.jobs:
            if job.state == FAILED:
                self.ended(job)

    def ended(self, job: Job) -> None:
        """Prints the line of a job that has ended: its results, or the cause and its files."""
        output = f"output: {self._path(f'logs/{self.sweep.log(job).name}')}" if job.began else ""
        where = "  ".join(filter(None, (job.folder, output)))
        if job.stopped:
            self.line(f"{STOPPED} {job.label}: {job.cause} {self._numbers(job)}".rstrip())
        elif job.state == FAILED:
            self.line(f"FAILED {job.label}: {job.cause}" + (f"\n       {where}" if where else ""))
        else:
            self.line(f"done   {job.label} {time.time() - job.began:.0f} s {self._numbers(job)}".rstrip())

    def tick(self) -> None:
        """Updates the line on running jobs every EVERY seconds."""
        if self.bar.disable or time.monotonic() < self.last + EVERY:
            return
        self.last = time.monotonic()
        running = [job for job in self.sweep.jobs if job.state == RUNNING]
        self.bar.n = sum(job.state not in (WAITING, RUNNING) for job in self.sweep.jobs)
        parts = [f"{job.device}: {job.label} {self._numbers(job)}".rstrip() for job in running[:SHOWN]]
        self.bar.set_description_str(" | ".join(parts) or "waiting for a free device")

    def end(self, stopped: int) -> None:
        """Prints how the sweep ended, and the next command."""
        sweep = self.sweep
        self.bar.close()
        self.line(f"sweep {sweep.name}: {self.counts()}, {time.time() - sweep.started:.0f} s")
        failed = [job for job in sweep.jobs if job.state == FAILED]
        if stopped:
            self.line("Stopped. The same command continues the sweep.")
        elif failed:
            self.line(f"run.py: {len(failed)} of {len(sweep.jobs)} jobs did not complete:")
            for job in failed:
                self.line(f"  {f'{STOPPED} ' if job.stopped else ''}{job.label}: {job.cause}")
            self.line("The same command continues interrupted jobs; retry_failed=true runs failed ones again.")
        if any(job.state in (DONE, SKIPPED) for job in sweep.jobs):
            there = "" if Path.cwd() == sweep.root else f"cd {shlex.quote(str(sweep.root))} && "
            self.line(f"The report: {there}python report.py 'runs=[multirun/{sweep.name}]'")

    def counts(self) -> str:
        """The number of jobs in each state: `3 done, 1 failed, 2 waiting`."""
        states = [STOPPED if job.stopped else job.state for job in self.sweep.jobs]
        order = (DONE, SKIPPED, STOPPED, FAILED, RUNNING, WAITING)
        return ", ".join(f"{states.count(state)} {state}" for state in order if state in states) or "nothing to do"

    def line(self, text: str) -> None:
        """Prints one line above the line on running jobs."""
        tqdm.write(text, file=sys.stderr)

    def _numbers(self, job: Job) -> str:
        """Step, loss and score of a job's run, from its folder."""
        return read_run(self.sweep.runs / job.folder, job.label, time.time()).numbers if job.folder else ""

    def _path(self, name: str) -> str:
        """The path of a file of the sweep, relative to the working directory if possible."""
        path = self.sweep.folder / name
        return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

"""Follows the jobs that Slurm has, until they have left its queue."""

from __future__ import annotations

import pickle
import signal
import sys
import time
from pathlib import Path
from typing import Any

from hydra_plugins.xcls_launcher._progress import Screen
from hydra_plugins.xcls_launcher._slurm_queue import fate, queued, without_places
from hydra_plugins.xcls_launcher.sweep import RUNNING, WAITING, Job, Sweep

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ON_A_NODE = ("RUNNING", "COMPLETING")
MOMENT = 0.2  # seconds after which a signal is heard


class Watch:
    """Asks Slurm every so many seconds which jobs it still has; how the others ended their records say.

    `ids`: the Slurm ids of the jobs to wait for, by number; `folder`: where submitit keeps what it packs.
    """

    def __init__(self, sweep: Sweep, ids: dict[int, str], *, folder: Path, every: float) -> None:
        self.sweep, self.ids, self.folder, self.every = sweep, ids, folder, every
        self.screen = Screen(sweep)
        self.stopped = 0

    def run(self) -> int:
        """Gives 0, or the number of the signal that ended the watch; the jobs go on then."""
        wanted = [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN]  # as under nohup
        before = {number: signal.signal(number, self._stop) for number in wanted}
        try:
            self.screen.begin()
            while self._left() and not self.stopped:
                self._look()
                self.screen.tick()
                self._pause()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.stopped:
            self._leave()
        else:
            self.screen.end(0)
        return self.stopped

    def _left(self) -> list[Job]:
        return [job for job in self.sweep.jobs if job.number in self.ids and job.state in (WAITING, RUNNING)]

    def _look(self) -> None:
        there = queued()
        if there is None:
            return  # Slurm is busy, or restarts; the jobs do not mind
        for job in self._left():
            state = there.get(self.ids[job.number])
            if state is None:
                job.cause = fate(self.ids[job.number])
                self.sweep.end(job, None if job.hash else self._exit_code(job))
                self.screen.ended(job)
            elif (state in ON_A_NODE) != (job.state == RUNNING):
                job.state = RUNNING if state in ON_A_NODE else WAITING  # back in the queue
                self.sweep.write()

    def _exit_code(self, job: Job) -> int | None:
        """What a job that makes no run has given back to submitit; None where it did not come that far."""
        from submitit.core.utils import JobPaths, pickle_load

        try:
            outcome, value = pickle_load(JobPaths(self.folder, job_id=self.ids[job.number], task_id=0).result_pickle)
        except (OSError, EOFError, pickle.UnpicklingError):
            return None
        return value if outcome == "success" else None

    def _pause(self) -> None:
        until = time.monotonic() + self.every
        while self._left() and not self.stopped and time.monotonic() < until:
            time.sleep(min(MOMENT, self.every))

    def _stop(self, number: int, frame: Any) -> None:
        self.stopped = self.stopped or number

    def _leave(self) -> None:
        """What a user should know who leaves before the jobs do."""
        left = self._left()
        ids = without_places([self.ids[job.number] for job in left])
        print(
            f"\n{len(left)} jobs stay with Slurm and go on. See them: make status, or squeue --me. The same command waits for them again.\n"
            f"Cancel them: scancel {' '.join(ids)}",
            file=sys.stderr,
        )

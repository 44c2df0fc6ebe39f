"""Runs the jobs of a sweep on this machine: each in its own process on a free device; ends all processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from hydra_plugins.xcls_launcher._devices import CPU, Lease, take
from hydra_plugins.xcls_launcher._job import Job, noted_signals
from hydra_plugins.xcls_launcher._progress import Progress
from hydra_plugins.xcls_launcher._sweep import Sweep
from xcls.runs.run_status import is_held

TICK = 0.25  # seconds between two checks of the jobs and of free devices
START = Path(__file__).with_name("_start.py")


class LocalScheduler:
    """Runs the jobs of one sweep to their end."""

    def __init__(
        self, *, sweep: Sweep, devices: list[str], named: bool, jobs_per_gpu: int, jobs: int, grace_s: float
    ) -> None:
        """named: the user named the devices, so every job except a baseline takes one; jobs: number of jobs at a time
        on the CPU; grace_s: seconds that a stopped job has to save."""
        self.sweep, self.progress, self.grace_s = sweep, Progress(sweep), grace_s
        self.devices, self.named, self.jobs_per_gpu, self.jobs = devices, named, jobs_per_gpu, jobs
        self.running: dict[Job, subprocess.Popen[bytes]] = {}
        self.on_devices = any(self._wants_device(job) for job in sweep.jobs)

    def _wants_device(self, job: Job) -> bool:
        """Whether `job` takes a device; else it runs on the CPU."""
        return bool(self.devices) and job.spec.kind != "baseline" and (self.named or job.spec.gpu)

    def run(self) -> int:
        """Runs every waiting job. Returns 0, or the number of the signal that ended it early."""
        self.sweep.write()
        self.progress.begin()
        with noted_signals() as self.signals:
            while not self.signals:
                for job in self.sweep.fail_blocked():
                    self.progress.ended(job)
                self._start_ready()
                if not self.running and not self.sweep.ready():
                    break
                self._wait()
            if self.signals:
                self._stop()
            stopped = self.signals[0] if self.signals else 0
        self.progress.end(stopped)
        return stopped

    def _wait(self) -> None:
        """Waits for TICK seconds, then handles the jobs that have ended."""
        time.sleep(TICK)
        for job, process in list(self.running.items()):
            code = process.poll()
            if code is not None:
                del self.running[job]
                _kill(process)  # child processes of the job, such as workers of its data loader
                self.sweep.end(job, code if code >= 0 else 128 - code)
                self.progress.ended(job)
        self.progress.tick()

    def _stop(self) -> None:
        """Asks every job to save and end; kills those that still run after `grace_s`, or at a second signal."""
        self.progress.line(f"stopping: {len(self.running)} jobs save and end (press Ctrl-C again to kill them)")
        for process in self.running.values():
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + self.grace_s
        while self.running:
            if len(self.signals) > 1 or time.monotonic() > deadline:
                for process in self.running.values():
                    _kill(process)
            self._wait()

    def _start_ready(self) -> None:
        """Starts the jobs that are ready and that no other process runs, while there are free places."""
        full: set[bool] = set()
        for job in self.sweep.ready():
            on_device = self._wants_device(job)
            if on_device in full or job.folder and is_held(self.sweep.runs / job.folder):
                continue
            lease = self._lease(on_device)
            if lease is None:
                full.add(on_device)
                continue
            self._start(job, lease, on_device)
            lease.release()  # the job's process holds it now

    def _lease(self, on_device: bool) -> Lease | None:
        """A free place: on the device with the fewest jobs of this sweep, or on the CPU."""
        ours = [job.device for job in self.running]
        if on_device:
            devices = sorted(self.devices, key=ours.count)
            leases = (take(device, self.jobs_per_gpu) for device in devices)
            return next((lease for lease in leases if lease is not None), None)
        if ours.count(CPU) >= self.jobs:
            return None
        # With GPU jobs nobody measures the CPU, so no lock
        return Lease(CPU) if self.on_devices else take(CPU, self.jobs)

    def _start(self, job: Job, lease: Lease, on_device: bool) -> None:
        """Starts the process of `job`, which inherits `lease`."""
        at_once = len(self.devices) * self.jobs_per_gpu if on_device else self.jobs
        threads = max(1, _processors() // at_once)
        if not on_device and at_once > 1 and job.threads is None:
            job.overrides = [*job.overrides, f"hardware.threads={threads}"]
        shared = (self.jobs_per_gpu if on_device else self.jobs) > 1
        environment = {**os.environ, **job.variables(shared=shared)}
        if at_once > 1:
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        precision = job.spec.precision if job.spec.gpu else None
        if precision is not None:  # else `auto` would choose the dtype for this job's card only
            environment["XCLS_PRECISION"] = f"{precision.device} {precision.dtype}"
        if on_device:
            environment["CUDA_VISIBLE_DEVICES"] = lease.device
            environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the indices of nvidia-smi
        elif self.on_devices:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        self.sweep.prepare(job)
        self.sweep.start(job, lease.device)
        with open(self.sweep.log(job), "ab") as output:
            self.running[job] = subprocess.Popen(
                [sys.executable, "-IS", str(START), str(os.getpid()), *job.command(self.sweep.root)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=lease.descriptors,
                start_new_session=True,  # Ctrl-C then reaches only the launcher
            )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all its child processes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all have ended already
        os.killpg(process.pid, signal.SIGKILL)


def _processors() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

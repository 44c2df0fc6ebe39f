"""Which job runs when and where on this machine: a queue, leases, and an end that leaves no process behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Iterator

from filelock import FileLock, Timeout

from hydra_plugins.xcls_launcher._devices import CPU, Lease, take
from hydra_plugins.xcls_launcher._progress import Screen
from hydra_plugins.xcls_launcher.sweep import Job, Sweep

TICK = 0.5  # seconds between looks at what other sweeps hold
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Begin = Callable[[Job, "Lease | None", dict[str, str]], "subprocess.Popen[bytes]"]


@dataclass(frozen=True)
class Machine:
    """The places for jobs. `named`: the user named the devices, so every job but a baseline takes one."""

    devices: list[str]
    named: bool = False
    jobs_per_gpu: int = 1
    jobs: int = 1

    def wants_device(self, job: Job) -> bool:
        """Whether `job` takes a device; else it is one of `jobs` at a time on the CPU."""
        return bool(self.devices) and job.kind != "baseline" and (self.named or job.gpu)


@dataclass
class Place:
    """A job that runs: its guard, and the lock that keeps others from making the same run."""

    job: Job
    guard: subprocess.Popen[bytes]
    making: FileLock | None
    on_device: bool


class Desk:
    """Runs the jobs of one sweep to their end. `begin` starts a job's process."""

    def __init__(self, *, sweep: Sweep, machine: Machine, screen: Screen, begin: Begin) -> None:
        self.sweep, self.machine, self.screen, self.begin = sweep, machine, screen, begin
        self.places: list[Place] = []
        self.on_devices = any(machine.wants_device(job) for job in sweep.jobs)
        self.stopped = 0

    def run(self) -> int:
        """Runs every waiting job; gives 0, or the number of the signal that ended it early."""
        self.sweep.write()
        self.screen.begin()
        with self._woken_by_signals() as woken:
            while not self.stopped:
                for job in self.sweep.blocked():
                    self.screen.failed(job)
                for job in self.sweep.ready():
                    self._try(job)
                if not self.places and not self.sweep.ready():
                    break
                self._wait(woken, TICK)
            if self.stopped:
                self._stop(woken)
        return self.stopped

    @contextmanager
    def _woken_by_signals(self) -> Iterator[int]:
        """A pipe that is readable when a signal has come; those that ask for an end only set `stopped`."""
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        before = signal.set_wakeup_fd(wake)
        wanted = [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN]  # as under nohup
        handlers = {number: signal.signal(number, self._note) for number in (*wanted, signal.SIGCHLD)}
        try:
            yield woken
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            os.close(woken)
            os.close(wake)

    def _note(self, number: int, frame: Any) -> None:
        if number != signal.SIGCHLD:
            self.stopped = self.stopped or number

    def _wait(self, woken: int, seconds: float) -> list[int]:
        """Waits for a signal or some seconds, then takes note of the jobs that have ended. Gives the signals."""
        came = list(os.read(woken, 1024)) if select.select([woken], [], [], seconds)[0] else []
        for place in [place for place in self.places if place.guard.poll() is not None]:
            self.places.remove(place)
            self._close(place)
            self.sweep.end(place.job, place.guard.returncode)
            self.screen.ended(place.job)
        self.screen.tick()
        return came

    def _try(self, job: Job) -> None:
        """Starts `job` if its run is nobody else's at the moment and there is a place for it."""
        on_device = self.machine.wants_device(job)
        if not on_device and sum(not place.on_device for place in self.places) >= self.machine.jobs:
            return
        lease = self._lease(on_device)
        if lease is None and (on_device or not self.on_devices):
            return
        free, making = self._claim(job)
        if not free or self.sweep.skip(job):
            if lease is not None:
                lease.let_go()
            if making is not None:
                making.release()
            return
        device = lease.device if lease is not None else CPU
        self.sweep.prepare(job)
        self.sweep.start(job, device)
        self._divide_threads(job, on_device)
        guard = self.begin(job, lease, {**self._environment(device, on_device), **_planned(job)})
        self.places.append(Place(job, guard, making, on_device))
        if lease is not None:
            lease.let_go()  # the guard has it

    def _claim(self, job: Job) -> tuple[bool, FileLock | None]:
        """Whether no other process runs `job`, and for a run that several sweeps may need, the lock of who makes it."""
        folder = self.sweep.runs / job.folder
        making = None
        if job.outline is not None and job.outline.file is not None:
            folder.mkdir(parents=True, exist_ok=True)
            making = FileLock(str(folder / ".making"))
            if not _acquired(making):
                return False, None
        if job.folder and (folder / ".lock").exists():
            lock = FileLock(str(folder / ".lock"))
            if not _acquired(lock):
                if making is not None:
                    making.release()
                return False, None
            lock.release()
        return True, making

    def _lease(self, on_device: bool) -> Lease | None:
        """A free place: on the device with the fewest of our jobs, or on the CPU where that is what is measured."""
        machine = self.machine
        if not on_device:
            return None if self.on_devices else take(CPU, machine.jobs)
        ours = [place.job.device for place in self.places]
        for device in sorted(machine.devices, key=ours.count):
            lease = take(device, machine.jobs_per_gpu)
            if lease is not None:
                return lease
        return None

    def _at_once(self, on_device: bool) -> int:
        """How many jobs may run beside each other, this one included."""
        return len(self.machine.devices) * self.machine.jobs_per_gpu if on_device else self.machine.jobs

    def _divide_threads(self, job: Job, on_device: bool) -> None:
        """On the CPU each of several jobs gets its share of the threads, unless the user has set them."""
        if not on_device and self.machine.jobs > 1 and job.threads is None:
            job.overrides = [*job.overrides, f"hardware.threads={_threads(self.machine.jobs)}"]

    def _environment(self, device: str, on_device: bool) -> dict[str, str]:
        """The environment of a job on `device`: what it may see, its share of the threads, whether it shares the device."""
        environment = {**os.environ, "XCLS_PROGRESS": "0"}
        at_once = self._at_once(on_device)
        if at_once > 1:
            environment.setdefault("OMP_NUM_THREADS", str(_threads(at_once)))
        shares = self.machine.jobs_per_gpu > 1 if on_device else self.machine.jobs > 1
        environment["XCLS_SHARED"] = str(int(shares))
        if on_device:
            environment["CUDA_VISIBLE_DEVICES"] = device
            environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # an index means what nvidia-smi shows
        elif self.on_devices:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        return environment

    def _stop(self, woken: int) -> None:
        """Ends every job: each saves and leaves; what has not left after `grace_s`, or at a second Ctrl-C, is killed."""
        self.screen.stopping(len(self.places))
        for place in self.places:
            place.guard.stdin.close()
        while self.places:
            if any(number in STOPS for number in self._wait(woken, TICK)):
                for place in self.places:
                    place.guard.terminate()

    def _close(self, place: Place) -> None:
        """Gives back what a job held here."""
        place.guard.stdin.close()
        if place.making is not None:
            place.making.release()


def _planned(job: Job) -> dict[str, str]:
    """What tells `job` as what it was planned: its hash, and on a GPU the dtype, which `auto` would choose by its own card alone."""
    precision = job.outline.precision if job.gpu and job.outline is not None else None
    return {"XCLS_HASH": job.hash or "", "XCLS_PRECISION": f"{precision.device} {precision.dtype}" if precision else ""}


def _acquired(lock: FileLock) -> bool:
    """Whether `lock` was free; it is ours then."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _threads(jobs: int) -> int:
    """The share of one of `jobs` in the processors we may use."""
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, ours // jobs)

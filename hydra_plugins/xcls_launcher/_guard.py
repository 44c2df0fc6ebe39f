"""The parent of one job, in place of submitit's local controller: it outlives the launcher, and the job does not outlive it.

`_guard.py GRACE LOG COMMAND…` runs COMMAND in a process group of its own, its output in LOG, and ends with its exit code
(128 + signal where it was killed). The launcher holds the other end of standard input: when that closes, because it asks
so or because it is dead, the job gets SIGINT, which makes it save and leave, and after GRACE seconds its whole group is
killed; SIGTERM to the guard kills at once. What the job leaves behind in its group is killed too. So a lease that the
guard inherited is free at the moment when nothing of the job lives any more, and not before.

Standard library alone, run with -S: it starts in a few hundredths of a second.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time


def die_with_parent() -> None:
    """Asks Linux to kill this process when its parent dies, so that not even a killed guard leaves a job behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def kill_group(job: subprocess.Popen[bytes]) -> None:
    """SIGKILL to whatever is left of the job's process group."""
    try:
        os.killpg(job.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def watch(job: subprocess.Popen[bytes], grace: float, woken: int) -> None:
    """Returns when the job has ended. `woken`: a pipe that is readable when a signal has come."""
    deadline = None
    while job.poll() is None:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        readable, _, _ = select.select([woken] if deadline is not None else [0, woken], [], [], left)
        told = woken in readable and signal.SIGTERM in os.read(woken, 64)
        if told or deadline is not None and time.monotonic() >= deadline:
            kill_group(job)
            deadline = time.monotonic() + 1
        elif 0 in readable:  # the launcher is gone, or wants an end
            deadline = time.monotonic() + grace
            job.send_signal(signal.SIGINT)


def main() -> int:
    """Runs the command line and gives the exit code."""
    grace, log, command = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the job would inherit
    environment = {**os.environ, "SUBMITIT_LOCAL_JOB_ID": str(os.getpid())}
    with open(log, "ab", buffering=0) as output:
        job = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    try:
        watch(job, grace, woken)
    finally:
        kill_group(job)
    return job.returncode if job.returncode >= 0 else 128 - job.returncode


if __name__ == "__main__":
    sys.exit(main())

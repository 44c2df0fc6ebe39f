"""submitit's local executor with _guard.py in place of its controller. (The underscore keeps Hydra from importing it early.)

submitit packs the job, starts it in a fresh process and unpacks it there. Its controller is not used, because it ends a job
after `timeout_min`, knows GPUs only as the integers 0 … n-1, gives a job one second to save, and leaves its children alone.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from submitit.local.local import LocalExecutor, LocalJob

GUARD = Path(__file__).with_name("_guard.py")
TASK = {
    "SUBMITIT_EXECUTOR": "local",
    "SUBMITIT_LOCAL_NTASKS": "1",
    "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
    "SUBMITIT_LOCAL_NODEID": "0",
    "SUBMITIT_LOCAL_GLOBALID": "0",
    "SUBMITIT_LOCAL_LOCALID": "0",
}


class GuardedExecutor(LocalExecutor):
    """Starts one job under a guard that inherits `descriptors`; `process` is the guard then."""

    def __init__(
        self, folder: Path, *, log: Path, environment: dict[str, str], descriptors: tuple[int, ...], grace: float
    ) -> None:
        super().__init__(folder)
        self.log, self.environment, self.descriptors, self.grace = log, environment, descriptors, grace
        self.process: subprocess.Popen[bytes] | None = None

    def _submit_command(self, command: str) -> LocalJob:
        """submitit's hook that starts a process."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_bytes(b"")
        words = [sys.executable, "-IS", str(GUARD), str(self.grace), str(self.log), *shlex.split(command)]
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            env={**self.environment, **TASK},
            bufsize=0,
            pass_fds=self.descriptors,
            start_new_session=True,
        )
        return LocalJob(folder=self.folder, job_id=str(self.process.pid), process=self.process, tasks=[0])

"""A launcher that runs each job of a sweep as a process of its own: the very command a user could type.

So peak memory is the job's own, a job that is killed fails alone, and the sweep goes on.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Sequence

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, open_dict

REFUSED, INTERRUPTED = 2, (130, 143, -signal.SIGINT, -signal.SIGTERM)


def sweep_name(config: DictConfig) -> str:
    """The sweep's folder under multirun/: `exp`, else the experiment's name, else `sweep`."""
    return config.exp or config.hydra.runtime.choices.get("experiment") or "sweep"


class LocalLauncher(Launcher):
    """Runs the jobs of a sweep one after the other, each in its own process."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Hydra's hook before the launch."""
        self.config, self.hydra_context, self.task_function = config, hydra_context, task_function

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """A job's configuration as its process will compose it. Raises Hydra's errors for a bad override."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.num = 0
        return config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs every job; prints each failure as it happens. Ends the process with 1 when a job did not complete."""
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that `run` stops its job first
        configs = [self.compose(overrides) for overrides in job_overrides]  # all are checked before the first starts
        name = sweep_name(self.config)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", name):
            print(f"run.py: exp={name}: a plain name is needed, it becomes a folder under multirun/.", file=sys.stderr)
            sys.exit(REFUSED)
        returns, bad = [], []
        for place, (overrides, config) in enumerate(zip(job_overrides, configs)):
            text = " ".join(o for o in overrides if not o.startswith("hydra"))
            print(f"[{place + 1}/{len(configs)}] {text}", file=sys.stderr, flush=True)
            began = time.monotonic()
            code = self.run([*overrides, f"sweep={name}", "hydra.mode=RUN"])
            print(f"[{place + 1}/{len(configs)}] {'done' if code == 0 else f'exit code {code}'}, "
                  f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            if code in INTERRUPTED or code == REFUSED and place == 0:
                sys.exit(code if code > 0 else 128 - code)
            if code != 0:
                bad.append(f"{text} (exit code {code})")
            returns.append(JobReturn(overrides=list(overrides), cfg=config, working_dir=".", _return_value=code,
                                     status=JobStatus.COMPLETED))
        if bad:
            print(f"run.py: {len(bad)} of {len(configs)} jobs did not complete:\n  " + "\n  ".join(bad), file=sys.stderr)
            sys.exit(1)
        print(f"{len(configs)} jobs done: multirun/{name}. The report: python report.py 'runs=[multirun/{name}]'", file=sys.stderr)
        return returns

    def run(self, overrides: list[str]) -> int:
        """Runs one job to its end and gives its exit code; an interruption of the parent reaches the job."""
        command = [sys.executable, str(Path(sys.argv[0]).resolve()), *overrides]
        job = subprocess.Popen(command, env=dict(os.environ))
        try:
            return job.wait()
        except BaseException:
            job.send_signal(signal.SIGINT)
            try:
                job.wait(timeout=60)
            except subprocess.TimeoutExpired:
                job.kill()
            raise

"""`hydra/launcher=gpu_server`, the default of every sweep: M jobs on the N GPUs of this machine, or some at a time on its CPU.

hydra-submitit-launcher's local launcher, with what it lacks: a queue, a free device per job, jobs that fail alone, and an
end that leaves nothing behind. It composes and packs jobs; sweep.py says which, _desk.py when and where.
"""

# No postponed annotations here: Hydra's scan for plugins executes this file outside sys.modules, where dataclasses cannot
# look them up. Modules with an underscore are left out of that scan.

import os
import shutil
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, List, Optional, Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import LocalLauncher

from hydra_plugins.xcls_launcher.sweep import WAITING, Job, Sweep, plan_sweep
from xcls.config.schema import UserError


@dataclass
class GpuServerConf:
    """`hydra.launcher.*`; see conf/hydra/launcher/gpu_server.yaml."""

    _target_: str = "hydra_plugins.xcls_launcher.gpu_server.GpuServerLauncher"
    devices: Optional[List[str]] = None
    jobs_per_gpu: int = 1
    jobs: int = 1
    grace_s: float = 60.0


ConfigStore.instance().store(
    group="hydra/launcher", name="xcls_gpu_server", node=GpuServerConf, provider="xcls_launcher"
)


class GpuServerLauncher(LocalLauncher):
    """Runs a sweep on this machine."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs every job that is not done. Ends the process with 1 where one did not complete, 128 + signal when stopped."""
        if self.config.hydra.sweeper.get("max_batch_size"):
            raise UserError(
                "hydra.sweeper.max_batch_size: the launcher has a queue; use hydra.launcher.jobs or jobs_per_gpu."
            )
        from hydra_plugins.xcls_launcher._desk import (
            Desk,  # only now: the scan for plugins comes by here at every start
        )
        from hydra_plugins.xcls_launcher._progress import Screen

        machine = self.machine()
        if machine.named:  # what the jobs may see is what torch is asked about
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(machine.devices)
            os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        sweep = plan_sweep(self, job_overrides)
        check_hardware(sweep)
        packed = (
            sweep.folder / ".submitit" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        )  # a process id may come again
        with sweep.held():
            screen = Screen(sweep)
            desk = Desk(sweep=sweep, machine=machine, screen=screen, begin=partial(self.begin, sweep, packed))
            try:
                stopped = desk.run()
            finally:
                shutil.rmtree(packed, ignore_errors=True)
            screen.end(stopped)
        if stopped or sweep.exit_code:
            sys.exit(128 + stopped if stopped else sweep.exit_code)
        return [
            JobReturn(overrides=list(words), working_dir=".", _return_value=0, status=JobStatus.COMPLETED)
            for words in job_overrides
        ]

    def machine(self) -> Any:
        """The `Machine` that the configuration describes. Raises UserError."""
        from hydra_plugins.xcls_launcher._desk import Machine
        from hydra_plugins.xcls_launcher._devices import check_leases, visible_devices

        for key in ("jobs", "jobs_per_gpu"):
            if self.params[key] < 1:
                raise UserError(f"hydra.launcher.{key}={self.params[key]}: a value of at least 1 is needed.")
        check_leases()
        devices = self.params["devices"]
        return Machine(
            devices=visible_devices(devices),
            named=devices is not None,
            jobs_per_gpu=self.params["jobs_per_gpu"],
            jobs=self.params["jobs"],
        )

    def begin(self, sweep: Sweep, packed: Path, job: Job, lease: Any, environment: dict[str, str]) -> Any:
        """Starts `job` and gives its guard, whose standard input ends the job when it closes (_guard.py)."""
        from hydra_plugins.xcls_launcher._executor import GuardedExecutor  # submitit, only now

        paths = [str(sweep.root), environment.get("PYTHONPATH", "")]  # the job's process does not begin with our script
        executor = GuardedExecutor(
            packed,
            log=sweep.log(job),
            environment={**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            descriptors=lease.descriptors if lease else (),
            grace=self.params["grace_s"],
        )
        executor.submit(self, job.overrides, "hydra.sweep.dir", job.number, str(job.number), Singleton.get_state())
        return executor.process

    def __call__(
        self, sweep_overrides: List[str], job_dir_key: str, job_num: int, job_id: str, singleton_state: Any
    ) -> None:
        """In the job's process: runs it. Hydra keeps an exception as the job's result; here it ends the process."""
        _ = super().__call__(sweep_overrides, job_dir_key, job_num, job_id, singleton_state).return_value


def check_hardware(sweep: Sweep) -> None:
    """Refuses GPUs that cannot do what the jobs are to do, before any job begins, and says what `hardware=auto` has chosen.

    Raises UserError.
    """
    from xcls.train.cards import of_jobs
    from xcls.train.precision import check_cards

    waiting = [
        job.outline.precision for job in sweep.jobs if job.state == WAITING and job.outline.precision is not None
    ]
    for precision in dict.fromkeys(waiting):
        if precision.device == "cuda":
            check_cards(precision, of_jobs())
        if precision.why:
            print(("WARNING: " if precision.warn else "") + precision.why, file=sys.stderr)

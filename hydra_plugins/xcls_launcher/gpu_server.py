"""`hydra/launcher=gpu_server`, the default of every sweep: M jobs on the N GPUs of this machine, or on its CPU."""

# No postponed annotations here: Hydra's scan for plugins executes this file outside sys.modules, where dataclasses
# cannot look them up. Modules with an underscore are left out of that scan.

import os
import sys
from dataclasses import dataclass
from typing import List, Optional

from hydra.core.config_store import ConfigStore

from hydra_plugins.xcls_launcher._sweep import WAITING, Sweep, SweepLauncher
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


class GpuServerLauncher(SweepLauncher):
    """Runs a sweep on this machine."""

    def check(self) -> None:
        """Refuses impossible numbers of jobs, and a machine without a folder for leases. Raises UserError."""
        from hydra_plugins.xcls_launcher._devices import take, visible_devices

        for key in ("jobs", "jobs_per_gpu"):
            if self.params[key] < 1:
                raise UserError(f"hydra.launcher.{key}={self.params[key]}: a value of at least 1 is needed.")
        lease = take("check", 2)
        if lease is not None:
            lease.release()
        self.devices = visible_devices(self.params["devices"])
        if self.params["devices"] is not None:  # torch must see the same devices as the jobs
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.devices)
            os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")

    def check_jobs(self, sweep: Sweep) -> None:
        """Refuses GPUs that cannot compute the jobs, and prints the choice of `hardware=auto`.

        Raises UserError.
        """
        from xcls.train.cards import of_jobs
        from xcls.train.precision import check_cards

        for precision in dict.fromkeys(job.spec.precision for job in sweep.jobs if job.state == WAITING):
            if precision is None:
                continue
            if precision.device == "cuda":
                check_cards(precision, of_jobs())
            if precision.why:
                print(("WARNING: " if precision.warn else "") + precision.why, file=sys.stderr)

    def run(self, sweep: Sweep) -> int:
        """Runs every waiting job to its end. Returns 0, or the number of the signal that ended it early."""
        from hydra_plugins.xcls_launcher._scheduler import LocalScheduler

        settings = {key: self.params[key] for key in ("jobs_per_gpu", "jobs", "grace_s")}
        named = self.params["devices"] is not None
        return LocalScheduler(sweep=sweep, devices=self.devices, named=named, **settings).run()

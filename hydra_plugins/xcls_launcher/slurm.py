"""`hydra/launcher=slurm`: the jobs of a sweep as Slurm arrays, through hydra-submitit-launcher and submitit.

The launcher may end at any time: Slurm has everything that the jobs need.
"""

# No postponed annotations here: Hydra's scan for plugins executes this file outside sys.modules, where dataclasses
# cannot look them up. Modules with an underscore are left out of that scan.

import shutil
from dataclasses import dataclass
from typing import Optional

from hydra.core.config_store import ConfigStore
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

from hydra_plugins.xcls_launcher._sweep import Sweep, SweepLauncher
from xcls.config.schema import UserError


@dataclass
class SlurmConf(SlurmQueueConf):
    """`hydra.launcher.*`; see conf/hydra/launcher/slurm.yaml; other settings as in hydra-submitit-launcher."""

    _target_: str = "hydra_plugins.xcls_launcher.slurm.SlurmSweepLauncher"
    gpu_type: Optional[str] = None
    poll_s: float = 15.0


ConfigStore.instance().store(group="hydra/launcher", name="xcls_slurm", node=SlurmConf, provider="xcls_launcher")


class SlurmSweepLauncher(SweepLauncher):
    """Submits a sweep to Slurm and follows it."""

    def check(self) -> None:
        """Refuses settings that cannot work, and a machine without Slurm. Raises UserError."""
        timeout_min, delay_s = self.params["timeout_min"], self.params["signal_delay_s"]
        if not 0 < delay_s < 60 * timeout_min:
            raise UserError(
                f"hydra.launcher.signal_delay_s={delay_s}: it must be above 0 and below timeout_min={timeout_min}."
            )
        if self.params["poll_s"] <= 0:
            raise UserError(f"hydra.launcher.poll_s={self.params['poll_s']}: a value above 0 is needed.")
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise UserError(
                "hydra/launcher=slurm: there is no sbatch on this machine. "
                "Log in to the cluster, or use hydra/launcher=gpu_server."
            )

    def check_jobs(self, sweep: Sweep) -> None:
        """Refuses `auto`: a node may differ from this machine, and the dtype is part of a run's hash.

        Raises UserError.
        """
        for job in sweep.jobs:
            config = job.spec.record.config if job.spec.record is not None and job.spec.kind != "baseline" else {}
            auto = [f"hardware.{key}=auto" for key in ("device", "dtype") if config.get(f"hardware.{key}") == "auto"]
            if auto:
                raise UserError(
                    f"{', '.join(auto)}: the nodes of Slurm may differ from this machine. Name their hardware: "
                    "hardware=t4, v100, rtx, l4, a100, h100 or h200; without GPUs hardware=cpu hardware.dtype=fp32 "
                    "hydra.launcher.gpus_per_node=0."
                )

    def run(self, sweep: Sweep) -> int:
        """Submits jobs that are neither done nor queued, and waits for all. Returns 0, or the signal that ended it."""
        from hydra_plugins.xcls_launcher._slurm_queue import follow, submit_sweep

        return follow(sweep, submit_sweep(sweep, self.params), self.params["poll_s"])

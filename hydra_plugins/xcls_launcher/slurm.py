"""`hydra/launcher=slurm`: the jobs of a sweep as Slurm arrays, through hydra-submitit-launcher and submitit.

sweep.py says what is to run, _slurm_submit.py hands it to Slurm, _slurm_job.py is what runs on a node, _slurm_watch.py tells
how it goes. The launcher may leave at any time: Slurm has everything that the jobs need.
"""

# No postponed annotations here: Hydra's scan for plugins executes this file outside sys.modules, where dataclasses cannot
# look them up. Modules with an underscore are left out of that scan.

import shutil
import sys
from dataclasses import dataclass
from typing import Any, Dict, Optional, Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

from hydra_plugins.xcls_launcher.sweep import Sweep, plan_sweep
from xcls.config.schema import UserError

LEAST = {"timeout_min": 1, "array_parallelism": 1, "max_num_timeout": 0, "gpus_per_node": 0, "poll_s": 0.1}


@dataclass
class SlurmConf(SlurmQueueConf):
    """`hydra.launcher.*`; see conf/hydra/launcher/slurm.yaml. What is not there is as in hydra-submitit-launcher."""

    _target_: str = "hydra_plugins.xcls_launcher.slurm.SweepOnSlurm"
    gpu_type: Optional[str] = None
    poll_s: float = 15.0


ConfigStore.instance().store(group="hydra/launcher", name="xcls_slurm", node=SlurmConf, provider="xcls_launcher")


class SweepOnSlurm(SlurmLauncher):
    """Gives a sweep to Slurm and follows it."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submits every job that is neither done nor queued and waits for all. Ends the process with 1 where one did not
        complete, with 128 + signal when stopped: the jobs stay with Slurm then."""
        if self.config.hydra.sweeper.get("max_batch_size"):
            raise UserError("hydra.sweeper.max_batch_size: Slurm has a queue; use hydra.launcher.array_parallelism.")
        # Only now: the scan for plugins comes by here at every start.
        from hydra_plugins.xcls_launcher._slurm_submit import submit_sweep
        from hydra_plugins.xcls_launcher._slurm_watch import Watch

        check(self.params)
        sweep = plan_sweep(self, job_overrides)
        check_hardware(sweep)
        with sweep.held():
            ids = submit_sweep(sweep, self.params)
            stopped = Watch(
                sweep, ids, folder=sweep.folder / self.params["submitit_folder"], every=self.params["poll_s"]
            ).run()
        if stopped or sweep.exit_code:
            sys.exit(128 + stopped if stopped else sweep.exit_code)
        return [
            JobReturn(overrides=list(words), working_dir=".", _return_value=0, status=JobStatus.COMPLETED)
            for words in job_overrides
        ]


def check(params: Dict[str, Any]) -> None:
    """Refuses settings that cannot work, and a machine without Slurm. Raises UserError."""
    wrong = [
        f"hydra.launcher.{key}={params[key]}: a value of at least {least} is needed."
        for key, least in LEAST.items()
        if params[key] is not None and params[key] < least
    ]
    if not wrong and not 0 < params["signal_delay_s"] < 60 * params["timeout_min"]:
        wrong.append(
            f"hydra.launcher.signal_delay_s={params['signal_delay_s']}: more than 0 is needed, and less than timeout_min."
        )
    wrong += [
        f"hydra.launcher.{key}={params[key]}: a run is one process."
        for key in ("nodes", "tasks_per_node")
        if params[key] != 1
    ]
    if params["gpu_type"] and (params["gres"] or not params["gpus_per_node"]):
        wrong.append(f"hydra.launcher.gpu_type={params['gpu_type']}: it goes with gpus_per_node, and not with gres.")
    if wrong:
        raise UserError("\n".join(wrong))
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError(
            "hydra/launcher=slurm: there is no sbatch on this machine. Log in to the cluster, or use hydra/launcher=gpu_server."
        )


def check_hardware(sweep: Sweep) -> None:
    """Refuses `auto`: what this machine has need not be what a node has, and the dtype is part of a run's identity."""
    for job in sweep.jobs:
        named = job.outline is not None and job.outline.record is not None and job.kind != "baseline"
        config = job.outline.record.config if named else {}
        auto = [f"hardware.{key}=auto" for key in ("device", "dtype") if config.get(f"hardware.{key}") == "auto"]
        if auto:
            raise UserError(
                f"{', '.join(auto)}: the nodes that Slurm gives need not be like this machine. Name their hardware: hardware=t4, v100, "
                "rtx, l4, a100, h100 or h200; without GPUs hardware=cpu hardware.dtype=fp32 hydra.launcher.gpus_per_node=0."
            )

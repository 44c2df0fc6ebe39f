"""`hydra/launcher=slurm` on a real Slurm; what happened is read from records and events, never from Slurm's word."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.launcher.conftest import wait_for
from tests.slurm.conftest import LONG, PATIENCE, Cluster, Run, ended

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_each_job_has_a_gpu_of_its_own(cluster: Cluster, long_sweep: tuple[Cluster, Any]) -> None:
    words = ("attention=sdpa,performer", "seed=0,1,2", "exp=six", "finetuning.max_steps=100")
    ended(cluster.start(*words), 0)
    runs = cluster.runs("six")
    assert [run.record["status"] for run in runs] == ["completed"] * 6
    lives = [(run.lives[0][0]["devices"], run.lives[0][0]["time"], run.lives[0][-1]["time"]) for run in runs]
    assert {device for device, _, _ in lives} <= {"0", "1", "2", "3"} and len({life[0] for life in lives}) > 1
    for _, begin, _ in lives:
        devices = [device for device, first, last in lives if first <= begin < last]
        assert len(devices) == len(set(devices))
    stamps = [(run.folder / "record.json").stat().st_mtime_ns for run in runs]
    assert "7 skipped" in ended(cluster.start(*words), 0)  # with the baseline
    assert stamps == [(run.folder / "record.json").stat().st_mtime_ns for run in runs]


def test_preemption_and_an_administrators_requeue_cost_at_most_a_step(cluster: Cluster) -> None:
    launcher = cluster.start(*LONG, cluster.steps(16), "exp=low", "hydra.launcher.partition=low", "wandb=offline")
    run = cluster.running("low", step=5)
    cluster.ask("sbatch", "-p", "high", "--gpus-per-node=3", "-o", "/dev/null", "--wrap", "sleep 3")
    cluster.ask("sbatch", "-p", "high", "--gpus-per-node=1", "-o", "/dev/null", "--wrap", "sleep 3")
    cluster.running("low", life=2)
    cluster.ask("scontrol", "requeue", cluster.slurm_id("low", run))
    ended(launcher, 0)
    assert run.record["status"] == "completed" and len(run.lives) == 3
    assert [event["cause"] for event in run.events("interrupted")] == ["stopped by SIGUSR2", "stopped by SIGTERM"]
    assert max(run.lost) <= 1, run.lost


def test_the_launcher_leaves_and_comes_back_and_jobs_are_killed_and_cancelled(cluster: Cluster) -> None:
    long = [word.replace("finetuning", "pretraining") for word in LONG]  # it outlives the second command's planning
    words = ("pretrain=auto", "seed=0,1", "exp=left", "finetuning.checkpoint_every_steps=50", *LONG, *long)
    words += (cluster.steps(45, "pretraining"), cluster.steps(8))
    launcher = cluster.start(*words)
    jobs = wait_for(
        lambda: [job for job in cluster.jobs("left") if job["device"]][3:] and cluster.jobs("left"), PATIENCE
    )
    ids = sorted(job["device"].removeprefix("slurm:") for job in jobs)
    assert cluster.submitted("left") == ids
    waiting = [cluster.queue().get(job["device"].removeprefix("slurm:")) for job in jobs if job["kind"] == "finetune"]
    assert waiting == ["PENDING"] * 2  # they hold no GPU
    launcher.send_signal(signal.SIGINT)
    said = ended(launcher, 130)
    assert "4 jobs" in said and f"scancel {ids[0].partition('_')[0]}" in said

    launcher = cluster.start(*words)
    killed = cluster.running("left", step=100)
    assert cluster.submitted("left") == ids  # none was submitted twice
    os.kill(killed.lives[0][0]["pid"], signal.SIGKILL)
    cancelled = cluster.running("left", seed=1)
    cluster.ask("scancel", cluster.slurm_id("left", cancelled))
    said = ended(launcher, 1)
    assert "2 of 4 jobs" in said and killed.folder.name in said and "killed by SIGKILL" in said
    assert [run.record["status"] for run in (killed, cancelled)] == ["interrupted"] * 2
    assert "SIGKILL" in killed.record["cause"] and "SIGTERM" in cancelled.record["cause"]
    ended(cluster.start(*words), 0)  # goes on with the two that were stopped
    assert [(run.record["status"], len(run.lives)) for run in (killed, cancelled)] == [("completed", 2)] * 2
    assert killed.lost[0] <= 50 and cancelled.lost[0] <= 1
    [pretraining] = [Run(path.parent) for path in cluster.project.folder.glob("pretrain/*/record.json")]
    assert all(run.lives[0][0]["time"] > pretraining.lives[-1][-1]["time"] for run in (killed, cancelled))


def test_a_run_that_is_longer_than_its_time_limit_completes(long_sweep: tuple[Cluster, Any]) -> None:
    cluster, launcher = long_sweep
    ended(launcher, 0, patience=800)  # on a busy machine it takes many stays
    [run] = cluster.runs("whole")
    assert run.record["status"] == "completed" and run.record["step"] == run.record["steps"] and len(run.lives) >= 2
    assert [event["cause"] for event in run.events("interrupted")] == ["stopped by SIGUSR2"] * (len(run.lives) - 1)
    assert run.lives[1][0].get("slurm_restarts") == "1" and max(run.lost) <= 1, run.lost

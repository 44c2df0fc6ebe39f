"""`hydra/launcher=slurm` on a real Slurm; what happened is read from records and events, never from Slurm's word."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.slurm.conftest import LONG, Cluster, Run, ended, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def times(run: Run) -> tuple[float, float, str]:
    """Begin, end and device of a run of one life."""
    (life,) = run.lives
    return life[0]["time"], life[-1]["time"], life[0]["devices"]


def test_nine_jobs_on_four_gpus(cluster: Cluster) -> None:
    words = ("attention=sdpa,performer,reformer", "seed=0,1,2", "exp=nine", "finetuning.max_steps=150")
    cluster.sweep(*words)
    runs = cluster.runs("nine")
    assert [run.record["status"] for run in runs] == ["completed"] * 9
    spans = [times(run) for run in runs]
    assert {device for _, _, device in spans} == {"0", "1", "2", "3"}
    for begin, _, _ in spans:
        devices = [device for first, last, device in spans if first <= begin < last]
        assert len(devices) == len(set(devices)) <= 4
    stamps = [(run.folder / "record.json").stat().st_mtime_ns for run in runs]
    said = cluster.sweep(*words)
    assert (
        stamps == [(run.folder / "record.json").stat().st_mtime_ns for run in runs] and "10 skipped" in said
    )  # with the baseline


def test_a_timeout_costs_at_most_a_step(cluster: Cluster) -> None:
    limit = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=10")
    launcher = cluster.start(*LONG, cluster.steps(300), "exp=late", *limit)
    run = cluster.running("late", life=2)
    cluster.ask("scancel", cluster.slurm_id("late", run))
    ended(launcher, 1)
    assert [life[0].get("slurm_restarts") for life in run.lives][:2] == [None, "1"]
    assert [event["cause"] for event in run.events("interrupted")] == ["stopped by SIGUSR2"] * (len(run.lives) - 1) + [
        "stopped by SIGTERM"
    ]
    assert max(run.lost) <= 1
    print(f"timeout: {len(run.lives)} stays, steps lost {run.lost}, of {run.record['step']}")


def test_a_run_that_is_longer_than_its_time_limit_completes(cluster: Cluster) -> None:
    limit = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=10")
    launcher = cluster.start(*LONG, cluster.steps(65), "exp=whole", *limit)
    ended(launcher, 0, patience=550)  # on a busy machine it takes many stays
    (run,) = cluster.runs("whole")
    assert run.record["status"] == "completed" and run.record["step"] == run.record["steps"] and len(run.lives) >= 2
    assert [event["cause"] for event in run.events("interrupted")] == ["stopped by SIGUSR2"] * (len(run.lives) - 1)
    assert max(run.lost) <= 1
    print(f"longer than its limit: {len(run.lives)} stays, steps lost {run.lost}, of {run.record['step']}")


def test_preemption_costs_at_most_a_step(cluster: Cluster) -> None:
    launcher = cluster.start(*LONG, cluster.steps(8), "exp=low", "hydra.launcher.partition=low", "wandb=offline")
    run = cluster.running("low", step=5)
    cluster.ask("sbatch", "-p", "high", "--gpus-per-node=4", "-o", "/dev/null", "--wrap", "sleep 3")
    ended(launcher, 0)
    assert run.record["status"] == "completed" and len(run.lives) == 2
    assert [event["cause"] for event in run.events("interrupted")] == ["stopped by SIGUSR2"]
    assert run.lost[0] <= 1
    print(f"preemption: steps lost {run.lost}, {run.lives[1][0]['time'] - run.lives[0][-1]['time']:.0f} s away")


def test_an_administrators_requeue(cluster: Cluster) -> None:
    """The first time the run saves within KillWait. The second time it hangs, as on a dead file system, and is killed."""
    every = 50
    launcher = cluster.start(
        *LONG, cluster.steps(8), "exp=moved", f"finetuning.checkpoint_every_steps={every}", "hardware.workers=1"
    )
    run = cluster.running("moved", step=every)
    name = cluster.slurm_id("moved", run)
    cluster.ask("scontrol", "requeue", name)
    cluster.running("moved", step=every, life=2)
    frozen = run.lives[1][0]["pid"]
    freeze(frozen)
    asked = subprocess.Popen(["scontrol", "requeue", name])
    while freeze(frozen):  # Slurm wakes it before it asks it to end
        time.sleep(0.001)
    assert asked.wait() == 0
    ended(launcher, 0)
    assert run.record["status"] == "completed" and len(run.lives) == 3
    assert [event["cause"] for event in run.events("interrupted")] == ["stopped by SIGTERM"]
    assert run.lost[0] <= 1
    resumed = next(event["step"] for event in run.lives[2] if event["event"] == "resume")
    assert (
        resumed == max(event["step"] for event in run.events("checkpoint") if event["time"] < run.lives[2][0]["time"])
        and run.lost[1] <= every
    )
    print(f"admin requeue: steps lost {run.lost} (the second without a chance to save; a checkpoint every {every})")


def freeze(process: int) -> bool:
    """Stops a process in its tracks; False where it is gone."""
    try:
        os.kill(process, signal.SIGSTOP)
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def test_jobs_that_are_killed_and_cancelled_are_rows(cluster: Cluster) -> None:
    words = (*LONG, cluster.steps(8), "seed=0,1", "exp=mixed", "finetuning.checkpoint_every_steps=50")
    launcher = cluster.start(*words)
    killed = cluster.running("mixed", step=100)
    os.kill(killed.lives[0][0]["pid"], signal.SIGKILL)
    cancelled = cluster.running("mixed", seed=1)
    cluster.ask("scancel", cluster.slurm_id("mixed", cancelled))
    said = ended(launcher, 1)
    assert killed.record["status"] == "interrupted" and "killed by SIGKILL" in killed.record["cause"]
    assert cancelled.record["status"] == "interrupted" and "SIGTERM" in cancelled.record["cause"]
    assert "2 of 3 jobs did not complete" in said and killed.folder.name in said and "killed by SIGKILL" in said
    cluster.sweep(*words)  # goes on with the two that were stopped
    assert sorted(run.record["status"] for run in cluster.runs("mixed")) == ["completed"] * 2
    assert [len(run.lives) for run in (killed, cancelled)] == [2, 2] and killed.lost[0] <= 50 and cancelled.lost[0] <= 1
    print(f"killed: steps lost {killed.lost}; cancelled: {cancelled.lost}")


def test_the_launcher_may_leave_and_come_back(cluster: Cluster) -> None:
    long = [word.replace("finetuning", "pretraining") for word in LONG]  # it outlives the second command's planning
    words = ("pretrain=auto", "seed=0,1", "exp=left", *long, cluster.steps(45, "pretraining"))
    launcher = cluster.start(*words)
    ids = until(lambda: cluster.ids("left"))
    assert cluster.submitted("left") == sorted(ids)
    assert sorted(cluster.queue().values())[:2] == [
        "PENDING",
        "PENDING",
    ]  # the two that need the pretraining hold no GPU
    launcher.send_signal(signal.SIGINT)
    said = ended(launcher, 130)
    assert "4 jobs stay with Slurm" in said and f"scancel {ids[0].partition('_')[0]}" in said
    cluster.sweep(*words)
    assert cluster.submitted("left") == sorted(ids)  # none was submitted twice
    jobs = cluster.jobs("left")
    assert len(jobs) == len(ids) == 4
    followed = [(job["device"], f"slurm:{name}") for job, name in zip(jobs, ids) if job["state"] != "skipped"]
    assert all(
        device == name for device, name in followed
    )  # one that ended before the second command looked is skipped
    assert {job["kind"] for job in jobs if job["state"] == "skipped"} <= {"baseline"}
    assert len(followed) >= 3
    (pretraining,) = [Run(path.parent) for path in cluster.project.folder.glob("pretrain/*/record.json")]
    runs = cluster.runs("left")
    assert [run.record["status"] for run in (pretraining, *runs)] == ["completed"] * 3
    assert all(run.lives[0][0]["time"] > pretraining.lives[-1][-1]["time"] for run in runs)

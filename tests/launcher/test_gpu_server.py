"""Sweeps on one machine, with pretend devices and jobs that sleep: what the records, the events and /proc say of them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.launcher.conftest import SIGNALS, Server, at_most, wait_for


@pytest.mark.slow
def test_two_sweeps_share_the_devices_and_no_device_has_two_jobs(server: Server) -> None:
    words = ("seed=0,1,2,3", "how=meet", "hydra.launcher.devices=[a,b,c,d]")
    first, second = (server.start(*words, f"exp={name}") for name in ("one", "two"))
    assert [launcher.communicate(timeout=120)[1] and launcher.returncode for launcher in (first, second)] == [0, 0]
    lives = server.lives()
    assert len(lives) == 8 and {device for device, _, _ in lives} == {"a", "b", "c", "d"}
    assert at_most(lives)
    assert not at_most([("a", 0.0, 2.0), ("b", 0.0, 9.0), ("a", 1.0, 3.0)])  # the proof can fail
    moments = [start for _, start, _ in lives]
    assert (
        max(sum(start <= moment < end for _, start, end in lives) for moment in moments) > 1
    )  # they did run beside each other
    assert set(server.states("one").values()) | set(server.states("two").values()) == {"done"}
    assert not any(record["device"]["shared"] for record in server.records())


def test_every_job_fails_alone_and_the_same_command_goes_on(server: Server) -> None:
    words = ("how=sleep,raise_once,memory_once,exit3,kill_once", "exp=x", "hydra.launcher.devices=[a,b]")
    code, said = server.run(*words)
    states = {name.split("-")[3] if "-" in name else name: state for name, state in server.states("x").items()}
    assert code == 1
    assert states == {
        "sleep": "done",
        "raise_once": "failed",
        "memory_once": "failed",
        "exit3": "failed",
        "kill_once": "failed",
    }
    causes = {job["exit_code"]: job["cause"] for job in server.sweep("x")["jobs"]}
    assert "SIGKILL" in causes[137] and "exit code 3" in causes[3]
    assert "ValueError: told to raise" in said and "MemoryError" in said and "4 of 5 jobs did not complete" in said
    for record in server.records():
        assert record["status"] == {"sleep": "completed", "kill_once": "interrupted"}.get(
            record["run"].split("-")[3], "failed"
        )
        assert f"multirun/x/{record['run']}" in said or record["status"] == "completed"  # each failure with its folder

    stamps = {
        path: path.stat().st_mtime_ns for path in server.folder.glob("multirun/x/data/finetune-0-a-sleep*/record.json")
    }
    code, said = server.run(*words)  # skips what is done or failed, goes on with what was interrupted
    states = {name.split("-")[3] if "-" in name else name: state for name, state in server.states("x").items()}
    assert code == 1 and said.count("done   ") == 1 and "retry_failed=true" in said
    assert states == {
        "sleep": "skipped",
        "raise_once": "failed",
        "memory_once": "failed",
        "exit3": "failed",
        "kill_once": "done",
    }
    killed = next(record for record in server.records() if "kill_once" in record["run"])
    assert [event["event"] for event in killed["events"] if event["event"] != "step"] == ["start", "resume", "end"]

    code, said = server.run(*words, "retry_failed=true")
    states = [job["state"] for job in server.sweep("x")["jobs"]]
    assert code == 1 and states.count("skipped") == 2 and states.count("done") == 2 and states.count("failed") == 1
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps} and len(stamps) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: n.name)
def test_a_stopped_sweep_leaves_no_process_and_goes_on(server: Server, number: signal.Signals) -> None:
    words = ("how=sleep,stubborn,child", "exp=x", "hydra.launcher.devices=[a,b]", "hydra.launcher.grace_s=1.5")
    launcher = server.start(*words, "seconds=60")
    wait_for(lambda: len(server.records()) == 2 and len(server.children()) >= 5)  # two guards, two jobs, one grandchild
    launcher.send_signal(number)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + number and "Stopped" in said
    assert server.children() == []
    states = [job["state"] for job in server.sweep("x")["jobs"]]
    assert states == ["failed", "failed", "waiting"]
    assert [record["status"] for record in server.records()] == [
        "interrupted",
        "interrupted",
    ]  # one saved, one was killed
    assert server.run(*words)[0] == 0 and at_most(server.lives())
    assert list(server.states("x").values()) == ["done"] * 3


@pytest.mark.slow
def test_a_killed_launcher_leaves_no_process_and_its_devices_are_free(server: Server) -> None:
    launcher = server.start(
        "how=sleep,stubborn", "seconds=60", "exp=x", "hydra.launcher.devices=[a,b]", "hydra.launcher.grace_s=3"
    )
    wait_for(lambda: len(server.records()) == 2 and len(server.children()) >= 5)
    launcher.kill()
    launcher.communicate()
    code, _ = server.run(
        "seed=7,8", "exp=y", "hydra.launcher.devices=[a,b]"
    )  # waits until the jobs of the dead one are gone
    assert code == 0 and at_most(server.lives()) and server.children() == []
    saved, killed = sorted(
        (record for record in server.records() if record["seed"] == 0), key=lambda record: record["run"]
    )
    assert saved["status"] == "interrupted" and killed["status"] == "running"
    code, said = server.run("how=sleep,stubborn", "seconds=1", "exp=x", "hydra.launcher.devices=[a,b]")
    assert code == 0 and said.count("done   ") == 2


@pytest.mark.slow
def test_what_jobs_need_comes_first_and_its_failure_fails_them_alone(server: Server) -> None:
    words = ("group=a,b", "seed=0,1,0", "pretrain=auto", "exp=x", "hydra.launcher.devices=[a,b,c]")
    bad = (
        server.folder / "pretrain" / "data-pretrain-a"
    )  # its marker makes the pretraining of group a fail at its first time
    code, said = server.run(*words, "pretraining_how=raise_once")
    jobs = {job["number"]: job for job in server.sweep("x")["jobs"]}
    assert code == 1 and "2 equal cells left out" in said and bad.parent.is_dir()
    assert [job["kind"] for job in jobs.values()] == ["pretrain"] * 2 + ["baseline"] + ["finetune"] * 4
    assert all(number < job["number"] for job in jobs.values() for number in job["needs"])
    assert {job["state"] for job in jobs.values() if job["kind"] == "finetune"} == {"failed"}
    assert all("told to raise" in job["cause"] for job in jobs.values() if job["kind"] == "finetune")
    assert not any(job["device"] for job in jobs.values() if job["kind"] == "finetune")  # none held a device

    (server.folder / "pretrain").rename(server.folder / "elsewhere")
    for marker in (server.folder / "elsewhere").glob("*.once"):  # now group a's pretraining alone may fail
        (server.folder / "pretrain").mkdir(exist_ok=True)
        if "pretrain-b" in marker.name:
            (server.folder / "pretrain" / marker.name).touch()
    code, _ = server.run(*words, "pretraining_how=raise_once", "retry_failed=true")
    states = dict(server.states("x").items())
    assert code == 1
    assert {name: state for name, state in states.items() if name.startswith(("data-pretrain", "finetune"))} == {
        "data-pretrain-a": "failed",
        "data-pretrain-b": "done",
        "finetune-0-a-sleep-auto": "failed",
        "finetune-1-a-sleep-auto": "failed",
        "finetune-0-b-sleep-auto": "done",
        "finetune-1-b-sleep-auto": "done",
    }
    code, _ = server.run(*words, "pretraining_how=raise_once", "retry_failed=true")
    assert code == 0 and list(server.states("x").values()).count("done") == 3  # pretraining a and its two
    ends = {
        record["run"].rpartition("-")[0].removeprefix("data/"): record["events"][-1]["time"]
        for record in server.records()
    }
    begins = {record["run"].rpartition("-")[0].removeprefix("data/"): record["started"] for record in server.records()}
    assert all(
        ends[f"pretrain-{group}"] < begins[f"finetune-{seed}-{group}-sleep-auto"] for group in "ab" for seed in (0, 1)
    )


@pytest.mark.slow
def test_two_sweeps_that_need_one_pretraining_make_it_once(server: Server) -> None:
    words = ("seed=0,1", "pretrain=auto", "hydra.launcher.devices=[a,b,c,d]")
    launchers = [server.start(*words, f"exp={name}") for name in ("one", "two")]
    assert [launcher.communicate(timeout=120)[1] and launcher.returncode for launcher in launchers] == [0, 0]
    made = [record for record in server.records() if record["mode"] == "pretrain"]
    assert len(made) == 1 and [event["event"] for event in made[0]["events"]].count("start") == 1


@pytest.mark.slow
def test_a_sweep_is_not_run_twice_at_once(server: Server) -> None:
    launcher = server.start("seconds=60", "exp=x")
    wait_for(lambda: server.records())
    code, said = server.run("seconds=60", "exp=x")
    assert code == 2 and "running already" in said
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=60)
    assert launcher.returncode == 130


@pytest.mark.slow
def test_without_a_gpu_some_at_a_time_share_the_threads(server: Server) -> None:
    assert server.run("seed=0,1,2", "exp=one", CUDA_VISIBLE_DEVICES="")[0] == 0
    alone = server.records()
    assert at_most([("cpu", start, end) for _, start, end in server.lives()])
    assert [(r["device"]["shared"], r["device"]["omp"], r["device"]["threads"]) for r in alone] == [
        (False, None, None)
    ] * 3
    assert server.run("seed=3,4,5", "how=meet", "exp=two", "hydra.launcher.jobs=2", CUDA_VISIBLE_DEVICES="")[0] == 0
    lives = [("cpu", start, end) for _, start, end in server.lives()]
    assert at_most(lives, 2) and not at_most(lives)
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    both = [record["device"] for record in server.records() if record["seed"] >= 3]
    assert [(d["shared"], d["omp"], d["threads"]) for d in both] == [(True, str(share), share)] * 3
    assert server.run("seed=6", "exp=three", "hydra.launcher.jobs=2", "hardware.threads=1")[0] == 0
    assert (
        next(record["device"]["threads"] for record in server.records() if record["seed"] == 6) == 1
    )  # the user's own


@pytest.mark.slow
def test_jobs_may_share_a_gpu_and_are_marked(server: Server) -> None:
    assert (
        server.run("seed=0,1,2,3", "how=meet", "exp=x", "hydra.launcher.devices=[a]", "hydra.launcher.jobs_per_gpu=2")[
            0
        ]
        == 0
    )
    assert at_most(server.lives(), 2) and not at_most(server.lives())
    assert all(record["device"]["shared"] for record in server.records())


@pytest.mark.slow
def test_the_callers_devices_are_respected(server: Server) -> None:
    assert server.run("seed=0,1,2", "cuda=true", "exp=x", CUDA_VISIBLE_DEVICES="5,GPU-8932f937,MIG-c6d4f1ef")[0] == 0
    assert {device for device, _, _ in server.lives()} <= {"5", "GPU-8932f937", "MIG-c6d4f1ef"} and len(
        server.lives()
    ) == 3
    assert server.run("seed=3", "exp=y", CUDA_VISIBLE_DEVICES="5")[0] == 0
    assert (
        next(record["device"]["device"] for record in server.records() if record["seed"] == 3) == "5"
    )  # its own affair on the CPU


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("hydra.launcher.jobs=0", "hydra.launcher.jobs=0: a value of at least 1"),
        ("how=refused,sleep", "how=refused: choose another"),
        ("how=sleep,refused", "choose another"),
        ("exp=a/b", "plain name"),
        ("hydra.sweeper.max_batch_size=2", "the launcher has a queue"),
    ],
)
def test_a_bad_sweep_is_refused_before_anything_runs(server: Server, word: str, message: str) -> None:
    code, said = server.run(word)
    assert code == 2 and message in said and "Traceback" not in said
    assert not list(server.folder.glob("multirun/*/sweep.json"))


def test_nothing_of_submitit_is_left(server: Server) -> None:
    assert server.run("exp=x")[0] == 0
    assert not list(Path(server.folder / "multirun" / "x" / ".submitit").glob("*"))

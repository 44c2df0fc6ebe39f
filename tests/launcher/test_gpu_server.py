"""Sweeps on one machine, with pretend devices and jobs that sleep: what records, events and /proc tell of them."""

from __future__ import annotations

import os
import signal

import pytest

from tests.launcher.conftest import Server, most_at_once, wait_for


def test_every_job_fails_alone_and_the_same_command_goes_on(server: Server) -> None:
    words = ("how=sleep,raise_once,exit3,kill_once", "exp=x", "hydra.launcher.devices=[a,b]")

    def states() -> list[str]:
        found = server.states("x")
        return [found[f"finetune-0-a-{how}-None"] for how in ("sleep", "raise_once", "exit3", "kill_once")]

    code, said = server.run(*words)
    assert code == 1 and states() == ["done", "failed", "failed", "failed"]
    causes = {job["exit_code"]: job["cause"] for job in server.jobs("x")}
    assert "SIGKILL" in causes[137] and "exit code 3" in causes[3] and "told to raise" in causes[1]
    status = {record["run"].split("-")[3]: record["status"] for record in server.records()}
    assert status == {"sleep": "completed", "raise_once": "failed", "exit3": "failed", "kill_once": "interrupted"}
    folders = [job["folder"] for job in server.jobs("x") if job["state"] == "failed"]
    assert all(folder in said for folder in folders)
    [whole] = server.folder.glob("multirun/x/data/finetune-0-a-sleep*/record.json")
    stamp = whole.stat().st_mtime_ns

    code, said = server.run(*words)  # skips what is done or failed, goes on with what was interrupted
    assert code == 1 and states() == ["skipped", "failed", "failed", "done"] and "retry_failed=true" in said
    killed = next(record for record in server.records() if "kill_once" in record["run"])
    assert [event["event"] for event in killed["events"] if event["event"] != "step"] == ["start", "resume", "end"]

    code, said = server.run(*words, "retry_failed=true")
    assert code == 1 and states() == ["skipped", "done", "failed", "skipped"] and whole.stat().st_mtime_ns == stamp
    assert not server.children()


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("hydra.launcher.jobs=0", "hydra.launcher.jobs=0"),
        ("how=sleep,refused", "how=refused"),
        ("exp=a/b", "exp"),
        ("hydra.sweeper.max_batch_size=2", "max_batch_size"),
    ],
)
def test_a_bad_sweep_is_refused_before_anything_runs(server: Server, word: str, named: str) -> None:
    code, said = server.run(word)
    assert code == 2 and named in said and "Traceback" not in said
    assert not list(server.folder.glob("multirun/*/sweep.json"))


@pytest.mark.slow
def test_two_sweeps_share_the_devices_and_one_pretraining(server: Server) -> None:
    words = ("seed=0,1,2", "how=meet", "pretrain=auto", "cuda=true", "hydra.launcher.devices=[a,b]")
    launchers = [server.start(*words, f"exp={name}") for name in ("one", "two")]
    ended = [(launcher.communicate(timeout=120)[1], launcher.returncode) for launcher in launchers]
    assert [code for _, code in ended] == [0, 0], ended
    lives = [life for life in server.lives() if life[0]]  # a baseline takes no device
    assert {device for device, _, _ in lives} == {"a", "b"} and most_at_once(lives) == 1
    everywhere = [("any", begin, end) for _, begin, end in lives]
    assert most_at_once(everywhere) == 2
    made = [record for record in server.records() if record["mode"] == "pretrain"]
    assert len(made) == 1 and [event["event"] for event in made[0]["events"]].count("start") == 1
    assert not any(record["device"]["shared"] for record in server.records())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda n: n.name)
def test_a_stopped_sweep_leaves_no_process_and_goes_on(server: Server, number: signal.Signals) -> None:
    how = "how=sleep" if number == signal.SIGKILL else "how=sleep,stubborn"  # nobody is left to kill a stubborn one
    words = (how, "seed=0,1", "exp=x", "hydra.launcher.devices=[a,b]", "hydra.launcher.grace_s=1.5")
    launcher = server.start(*words, "seconds=60")
    wait_for(lambda: len(server.records()) == 2 and all(len(record["events"]) > 8 for record in server.records()))
    assert server.run(*words)[0] == 2  # the same sweep runs already
    launcher.send_signal(number)
    said = launcher.communicate(timeout=60)[1]
    wait_for(lambda: not server.children())
    assert launcher.returncode == (-9 if number == signal.SIGKILL else 128 + number), said
    statuses = {record["status"] for record in server.records()}
    assert statuses == {"interrupted"} and any(
        event["event"] == "saved" for record in server.records() for event in record["events"]
    )
    assert server.run(*words)[0] == 0 and most_at_once(server.lives()) == 1
    assert set(server.states("x").values()) == {"done"}


@pytest.mark.slow
def test_what_jobs_need_comes_first_and_its_failure_fails_them_alone(server: Server) -> None:
    words = ("group=a,b", "seed=0,1,0", "pretrain=auto", "exp=x", "hydra.launcher.devices=[a,b,c]")
    assert server.run("group=b", "mode=pretrain", "exp=before")[0] == 0
    code, said = server.run(*words, "pretraining_how=raise_once")
    jobs = server.jobs("x")
    assert code == 1 and "2 equal cells" in said
    assert [job["kind"] for job in jobs] == ["pretrain"] * 2 + ["baseline"] + ["finetune"] * 4
    assert all(number < job["number"] for job in jobs for number in job["needs"])
    assert [job["state"] for job in jobs if job["kind"] == "pretrain"] == ["failed", "skipped"]
    tuned = {job["folder"].split("-")[2]: job for job in jobs if job["kind"] == "finetune"}
    assert tuned["a"]["state"] == "failed" and "told to raise" in tuned["a"]["cause"] and not tuned["a"]["device"]
    assert tuned["b"]["state"] == "done"
    code, _ = server.run(*words, "pretraining_how=raise_once", "retry_failed=true")
    ends = {record["run"].split("/")[1]: record for record in server.records()}
    assert code == 0 and all(record["status"] == "completed" for record in ends.values())
    first = next(record for name, record in ends.items() if name.startswith("pretrain-a"))
    later = [record for name, record in ends.items() if name.startswith(("finetune-0-a", "finetune-1-a"))]
    assert len(later) == 2 and all(first["ended"] < record["started"] for record in later)


@pytest.mark.slow
def test_jobs_share_a_gpu_or_the_cpu_and_say_so(server: Server) -> None:
    def found(seed: int) -> dict[str, object]:
        return next(record["device"] for record in server.records() if record["seed"] == seed)

    assert server.run("seed=0,1", "exp=one", CUDA_VISIBLE_DEVICES="")[0] == 0
    assert most_at_once(server.lives()) == 1 and (found(0)["shared"], found(0)["threads"]) == (False, None)
    assert server.run("seed=2,3", "how=meet", "exp=two", "hydra.launcher.jobs=2", CUDA_VISIBLE_DEVICES="")[0] == 0
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert [(found(seed)["shared"], found(seed)["threads"]) for seed in (2, 3)] == [(True, share)] * 2
    assert server.run("seed=4", "exp=three", "hydra.launcher.jobs=2", "hardware.threads=1")[0] == 0
    assert found(4)["threads"] == 1  # the user's own
    (server.folder / "met").rename(server.folder / "met before")
    devices = ("hydra.launcher.devices=[a]", "hydra.launcher.jobs_per_gpu=2")
    assert server.run("seed=5,6", "how=meet", "exp=four", *devices)[0] == 0
    assert [(found(seed)["shared"], found(seed)["device"]) for seed in (5, 6)] == [(True, "a")] * 2
    assert server.run("seed=7,8", "cuda=true", "exp=five", CUDA_VISIBLE_DEVICES="5,GPU-8932f937")[0] == 0
    assert {found(seed)["device"] for seed in (7, 8)} <= {"5", "GPU-8932f937"}  # the caller's are respected

"""Two at once: one run in a folder, one build of what several jobs need, and no lock that a dead owner keeps."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from tests.conftest import Project
from xcls.config.schema import Tokenizer
from xcls.data import cache, encode
from xcls.data.encode import encode_cached
from xcls.data.pydocs import Pydocs
from xcls.data.tokenizer import ByteTokenizer, make_tokenizer

pytestmark = pytest.mark.slow

FORK = multiprocessing.get_context("fork")
SPAWN = multiprocessing.get_context(
    "spawn"
)  # where threads of the tokenizers' library may have begun already, a fork hangs
TEXTS = [f"text number {row} of some words" for row in range(200)]
LONG = ("mode=finetune", "exp=x", "finetuning.max_steps=60", "finetuning.checkpoint_every_steps=20")


def begin(project: Project, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        project.command(*words),
        cwd=project.folder,
        env=project.environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    """Looks until it is so; the assertion fails where it never is."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def events(folder: Path) -> Counter[str]:
    """How often each event stands in the folder's events.jsonl."""
    path = folder / "events.jsonl"
    return (
        Counter(json.loads(line)["event"] for line in path.read_text().splitlines() if line.endswith("}"))
        if path.is_file()
        else Counter()
    )


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_same_exp_twice_is_refused_until_its_owner_is_dead(project: Project, workers: int) -> None:
    words, folder = (*LONG, f"hardware.workers={workers}"), project.folder / "finetune" / "x"
    first = project.begin(*words, stop_by=signal.SIGSTOP)  # alive, and in no hurry
    assert os.WIFSTOPPED(os.waitpid(first.pid, os.WUNTRACED)[1])
    for more in ((), ("resume=true",)):
        second = project.run(*words, *more)
        assert second.returncode == 2 and (
            "is being run by another process" in second.stderr or "has already begun (running)" in second.stderr
        )
    assert "is being run by another process" in second.stderr and record(folder)["status"] == "running"
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=30)
    third = project.run(*words, "resume=true")  # at once: a worker of the dead owner may live for seconds
    assert third.returncode == 0, third.stderr
    assert record(folder)["status"] == "completed" and record(folder)["step"] == 60
    assert events(folder)["start"] == 2 and events(folder)["end"] == 1


@pytest.mark.slow
def test_of_three_that_start_together_one_runs(project: Project) -> None:
    jobs = [begin(project, *LONG) for _ in range(3)]
    ends = [job.communicate(timeout=120)[1] for job in jobs]
    assert sorted(job.returncode for job in jobs) == [0, 2, 2], ends
    assert (
        events(project.folder / "finetune" / "x") >= Counter(start=1, end=1)
        and record(project.folder / "finetune" / "x")["status"] == "completed"
    )


AUTO = ("mode=finetune", "pretrain=auto", "finetuning.max_steps=2")


@pytest.mark.parametrize("names", ["ab", pytest.param("abc", marks=pytest.mark.slow)])
def test_jobs_share_one_pretraining_run(project: Project, names: str) -> None:
    words = (*AUTO, "pretraining.max_steps=40")
    jobs = [begin(project, *words, "exp=a", "seed=1"), begin(project, *words, "exp=b", "seed=2")]
    if "c" in names:
        wait_for(lambda: any(project.folder.glob("pretrain/*/record.json")))
        jobs.append(begin(project, *words, "exp=c", "seed=3"))  # comes while it trains
    ends = [job.communicate(timeout=120)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * len(names), ends
    made = list(project.folder.glob("pretrain/*/record.json"))
    assert len(made) == 1 and events(made[0].parent)["start"] == 1
    assert {record(project.folder / "finetune" / name)["pretrain"]["hash"] for name in names} == {
        record(made[0].parent)["hash"]
    }
    assert not list((project.folder / "cache").rglob("*.part"))


@pytest.mark.slow
def test_a_job_shares_the_pretraining_of_one_that_was_killed(project: Project) -> None:
    words = (*AUTO, "pretraining.max_steps=400")
    first = begin(project, *words, "exp=a", "seed=1")
    wait_for(lambda: any(project.folder.glob("pretrain/*/record.json")))
    first.send_signal(signal.SIGKILL)  # its pretraining goes on by itself
    second = project.run(*words, "exp=b", "seed=2")
    assert second.returncode == 0, second.stderr
    made = list(project.folder.glob("pretrain/*/record.json"))
    assert len(made) == 1 and events(made[0].parent)["start"] == 1 and record(made[0].parent)["status"] == "completed"
    first.communicate(timeout=60)


def count_builds(file: Path) -> Callable[[Path, Callable[[Path], None]], None]:
    """A `cache._build` that adds a line to `file` for each build, and takes its time."""
    build = cache._build

    def counted(path: Path, make: Callable[[Path], None]) -> None:
        with open(file, "a") as lines:
            lines.write(f"{path.parent.name}\n")
        time.sleep(0.3)  # the others come while it is being made
        build(path, make)

    return counted


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and a file with a line for each build, whichever process made it."""
    monkeypatch.setenv("XCLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_build", count_builds(tmp_path / "builds"))
    return tmp_path / "builds"


def two_packages(folder: Path) -> list[str]:
    for number, package in enumerate(("one_pkg", "two_pkg")):
        (folder / package).mkdir(parents=True)
        for module in range(20):
            words = " ".join(f"word{number}{module}{place}" for place in range(12))
            (folder / package / f"m{module}.py").write_text(f'"""{words}"""\n')
        (folder / package / "__init__.py").touch()
    return ["one_pkg", "two_pkg"]


def use_all(barrier: Any, packages: list[str], builds: Path) -> None:
    """What a job, in a process of its own, reads before it trains."""
    cache._build = count_builds(builds)
    barrier.wait(60)
    assert len(Pydocs(packages=packages).load().train) > 0
    made = make_tokenizer(Tokenizer(vocab_size=60), TEXTS)
    assert len(encode_cached(TEXTS, made, seq_len=16)) == len(TEXTS)


def test_three_jobs_build_tokenizer_tokens_and_data_once(
    builds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = two_packages(tmp_path / "lib")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    barrier = SPAWN.Barrier(3)
    jobs = [SPAWN.Process(target=use_all, args=(barrier, packages, builds)) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(90)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert Counter(builds.read_text().split()) == Counter(pydocs=1, tokenizers=1, encoded=1)


def save_and_hang(file: Path, array: np.ndarray) -> None:
    """np.save, which writes half of the second array and then nothing more."""
    content = array.tobytes()
    Path(file).write_bytes(content[: len(content) // 2] if "offsets" in Path(file).name else content)
    time.sleep(60 * ("offsets" in Path(file).name))


def test_a_builder_killed_half_way_leaves_the_next_one_able_to_build(
    builds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(encode.np, "save", save_and_hang)
        job = FORK.Process(target=encode_cached, args=(TEXTS, ByteTokenizer()), kwargs={"seq_len": 16})
        job.start()
        wait_for(lambda: any((tmp_path / "cache").rglob("*.part/offsets.npy")), 30)
        os.kill(job.pid, signal.SIGKILL)
        job.join(10)
    assert not [path for path in (tmp_path / "cache" / "encoded").iterdir() if path.suffix not in (".part", ".lock")]
    made = encode_cached(TEXTS, ByteTokenizer(), seq_len=16)
    np.testing.assert_array_equal(made.ids, encode.encode(TEXTS, ByteTokenizer(), seq_len=16).ids)
    assert not list((tmp_path / "cache").rglob("*.part")) and Counter(builds.read_text().split()) == Counter(encoded=2)


def read_all_the_time(place: Path, ready: Any, seen: Any) -> None:
    """Reads each thing in the cache as soon as it has its name."""
    ready.set()
    while not seen.value >= 3:
        for path in [path for path in place.glob("encoded/*") if path.suffix not in (".part", ".lock")][seen.value :]:
            assert len(encode.read_encoded(path)) == len(TEXTS)
            seen.value += 1


def test_nobody_reads_what_is_half_written(builds: Path, tmp_path: Path) -> None:
    ready, seen = FORK.Event(), FORK.Value("i", 0)
    reader = FORK.Process(target=read_all_the_time, args=(tmp_path / "cache", ready, seen))
    reader.start()
    assert ready.wait(20)
    for seq_len in (8, 16, 32):
        encode_cached(TEXTS, ByteTokenizer(), seq_len=seq_len)
    reader.join(30)
    assert reader.exitcode == 0 and seen.value == 3

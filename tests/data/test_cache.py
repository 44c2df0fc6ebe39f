"""Builds that are shared: one builder, nothing half-made, no lock that a dead owner keeps."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from xcls.config.schema import UserError
from xcls.data.cache import build_once, cache_folder


def slow_build(target: Path) -> None:
    """Leaves a mark beside the target each time that it runs."""
    with open(target.parent / "marks", "a") as marks:
        marks.write("x")
    time.sleep(0.3)
    target.write_text("whole")


def build_and_hang(target: Path) -> None:
    target.write_text("half")
    (target.parent / "started").touch()
    time.sleep(60)


def _build(folder: Path, build) -> None:
    build_once(folder / "thing", build, what="a thing")


def test_four_processes_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_build, args=(tmp_path, slow_build)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "marks").read_text() == "x" and (tmp_path / "thing").read_text() == "whole"


def test_a_killed_builder_leaves_neither_a_half_file_nor_a_lock(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_build, args=(tmp_path, build_and_hang))
    process.start()
    until = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert process.is_alive() and time.monotonic() < until
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert not (tmp_path / "thing").exists()
    _build(tmp_path, slow_build)  # where the dead one held its lock, this would wait for ever
    assert (tmp_path / "thing").read_text() == "whole"


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(target: Path) -> None:
        target.mkdir()
        (target / "part").write_text("half")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        build_once(tmp_path / "thing", fail, what="a thing")
    assert [file.name for file in tmp_path.iterdir() if not file.name.endswith(".lock") and file.name != "cache"] == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="XCLS_CACHE"):
        build_once(tmp_path / "file" / "thing", slow_build, what="a thing")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES])
def test_only_a_full_disk_wants_room(number: int, tmp_path: Path) -> None:
    def fail(target: Path) -> None:
        raise OSError(number, os.strerror(number), "data/train.csv")

    with pytest.raises(UserError, match=r"data/train\.csv.*XCLS_CACHE") as error:
        build_once(tmp_path / "thing", fail, what="a thing")
    assert ("Make room" in str(error.value)) == (number in (errno.ENOSPC, errno.EDQUOT))


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("XCLS_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "xcls"

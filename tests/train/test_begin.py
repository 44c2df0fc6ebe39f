"""The first instants of a run: a disk that is full then, and a signal that comes then."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path
from typing import Any, Iterator

import pytest

from tests.conftest import Project
from tests.samples import make_journal
from xcls.config.schema import UserError
from xcls.runs.record import Events, read_record
from xcls.train.run_logger import ROOM
from xcls.train.signals import Interrupted

pytestmark = pytest.mark.slow


@pytest.fixture
def full(project: Project) -> Iterator[Path]:
    """The project's finetune/ on a file system of 64 KiB."""
    place = project.folder / "finetune"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a file system needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_full_at_the_start_is_told_and_nothing_stays(project: Project, full: Path) -> None:
    done = project.run("mode=finetune", "exp=x")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "traceback" not in done.stderr, done.stderr
    assert (
        f"run.py: {full / 'x'}: No space left on device, as the run began. Make room on the disk of {full / 'x'}"
        in done.stderr
    )
    assert list(full.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Make room on the disk of"),
        (errno.EDQUOT, "Make room"),
        (errno.EIO, "Check {folder}: that it is there"),
    ],
)
def test_what_cannot_be_written_at_the_start_leaves_the_earlier_life_as_it_was(
    number: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_journal(tmp_path):
        pass
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def half(self: Path, content: bytes) -> int:
        with open(self, "wb") as file:
            file.write(content[:10])
        raise OSError(number, os.strerror(number))

    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        with pytest.raises(UserError) as error, make_journal(tmp_path):
            pass
    assert f"{tmp_path}: {os.strerror(number)}" in str(error.value) and remedy.format(folder=tmp_path) in str(
        error.value
    )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_while_the_folder_is_made_is_an_interruption(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Events.add

    def add_and_stop(self: Events, event: str, details: Any = None) -> None:
        if event == "start":
            os.kill(os.getpid(), getattr(signal, name))
        add(self, event, details)

    monkeypatch.setattr(Events, "add", add_and_stop)
    with pytest.raises(Interrupted), make_journal(tmp_path):
        pytest.fail("it went on")
    record = read_record(tmp_path)
    assert (record.status, record.cause) == ("interrupted", f"stopped by {name}")
    assert not (tmp_path / ROOM).exists() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

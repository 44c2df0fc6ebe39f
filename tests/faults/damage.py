"""Checkpoints that are damaged, and disks that are full."""

from __future__ import annotations

import builtins
import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

from tests.faults.process import spawn, wait
from tests.faults.runs import CASES, differences, history, live
from tests.faults.tally import Tally
from xcls.runs.record import read_record
from xcls.train import checkpoint
from xcls.train.checkpoint import Checkpoints, read_checkpoint
from xcls.train.signals import Interrupted
from xcls.train.update import Updater

CASE = CASES["LSH, redrawn rotations"]
STOP = 8  # the step at which the run to be damaged was stopped: it has checkpoints of 8 and of 6


def flip(content: bytes, draws: random.Random) -> bytes:
    """One bit is another one."""
    changed = bytearray(content)
    changed[draws.randrange(len(changed))] ^= 1 << draws.randrange(8)
    return bytes(changed)


def cut(content: bytes, draws: random.Random) -> bytes:
    """The end is missing."""
    return content[: draws.randrange(1, len(content))]


def empty(content: bytes, draws: random.Random) -> bytes:
    """All of it is missing."""
    return b""


def blank(content: bytes, draws: random.Random) -> bytes:
    """A block of zeros, as after a power cut."""
    start = draws.randrange(max(1, len(content) - 512))
    return content[:start] + bytes(len(content[start : start + 512])) + content[start + 512 :]


KINDS = {"one bit flipped": flip, "cut short": cut, "empty": empty, "a block of zeros": blank}


def stopped(folder: Path) -> None:
    """A run that was stopped at STOP."""
    apply = Updater.apply

    def until(self: Updater, batch: Any, progress: Any) -> Any:
        found = apply(self, batch, progress)
        if progress.step + 1 == STOP:
            os.kill(os.getpid(), 15)
        return found

    with mock.patch.object(Updater, "apply", until):
        try:
            live(folder, CASE)
        except Interrupted:
            return
    raise RuntimeError("nothing has stopped it")


def whole_run(folder: Path) -> Path:
    """A run of CASE that nothing disturbs."""
    folder.mkdir(parents=True)
    if wait(spawn(lambda: live(folder, CASE), folder.parent / "log")):
        raise RuntimeError(f"it fails without any fault: {folder.parent / 'log'}")
    return folder


def damaged(folder: Path, number: int, seed: int) -> list[Tally]:
    """The newest checkpoint, under all its names, damaged at random places; resumed and compared."""
    draws = random.Random(seed)
    whole, source = whole_run(folder / "whole"), folder / "source"
    if wait(spawn(lambda: stopped(source), folder / "log")):
        raise RuntimeError(f"it could not be stopped: {folder / 'log'}")
    newest = f"ckpt_step{STOP:08d}.pt"
    tallies = []
    for kind, change in KINDS.items():
        tally = Tally(
            f"the newest checkpoint damaged: {kind}", lost="nothing: named in a warning, the one before is used"
        )
        for attempt in range(number):
            place = folder / f"{change.__name__} {attempt}"
            shutil.copytree(source, place)
            old = (place / newest).read_bytes()
            new = change(old, draws)
            for path in place.glob("ckpt_*.pt"):
                if path.read_bytes() == old:  # another name of the same file
                    path.write_bytes(new)
            if new == old:
                continue  # a block that was zeros already
            tally.tried, tally.runs = tally.tried + 1, tally.runs + 1
            before = history(place)
            code = wait(spawn(lambda: live(place, CASE), folder / "log"))
            wrong = [f"exit {code}"] if code else differences(whole, place, before)
            if not any(f"{newest} is damaged" in warning for warning in read_record(place).warnings):
                wrong.append("no warning names it")
            tally.problems += [f"{kind} {attempt}: {item}" for item in wrong]
        tallies.append(tally)
    return tallies


def limited(room: list[int]) -> Any:
    """An `open` whose files take `room[0]` bytes in all, then say that the disk is full."""

    def opening(path: Any, mode: str = "r", *given: Any, **named: Any) -> Any:
        file = builtins.open(path, mode, *given, **named)
        if "w" not in mode:
            return file
        write = file.write

        class Limited:
            def __enter__(self) -> Limited:
                return self

            def __exit__(self, *error: Any) -> None:
                file.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

            def write(self, data: Any) -> int:
                if len(data) > room[0]:
                    write(bytes(data)[: room[0]])
                    room[0] = 0
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                room[0] -= len(data)
                return write(data)

        return Limited()

    return opening


def full_disks(folder: Path, number: int, seed: int) -> Tally:
    """Disks that are full after a random number of bytes of checkpoints; the run must say so, and go on with room."""
    lost = "the work since the checkpoint before, done again; the cause is in the record"
    tally = Tally("disk full in a checkpoint write", lost=lost)
    draws = random.Random(seed)
    whole = whole_run(folder / "whole")
    size = (whole / "ckpt_last.pt").stat().st_size

    def fill(place: Path, room: int) -> None:
        with mock.patch.object(checkpoint, "open", limited([room]), create=True):
            live(place, CASE)

    for attempt in range(number):
        place = folder / str(attempt)
        room = draws.randrange(5 * size)
        wait(spawn(lambda: fill(place, room), folder / "log"))
        record = read_record(place)
        wrong = []
        if record.status != "failed" or "No space left on device, while ckpt_step" not in str(record.cause):
            wrong.append(f"with {room} bytes of room it ended {record.status}: {record.cause}")
        for path in Checkpoints(folder=place, keep=9).steps():
            read_checkpoint(path)  # raises where it is not whole
        before = history(place)
        code = wait(spawn(lambda: live(place, CASE), folder / "log"))
        wrong += [f"exit {code}"] if code else differences(whole, place, before)
        tally.tried, tally.runs = tally.tried + 1, tally.runs + 1
        tally.problems += [f"disk {attempt}: {item}" for item in wrong]
    return tally

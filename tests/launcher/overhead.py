"""What sweeps cost: `make sweeps`, or

    python -m tests.launcher.overhead 20 docs/sweeps.md    jobs of 20 s; about twelve minutes on two cores that do nothing else
    python -m tests.launcher.overhead 1                    the same with jobs of a second, to the screen: does it work?

The launcher by itself, with jobs that sleep: nine at 1, 2 and 4 at a time against the ideal, a SIGKILLed job, a SIGKILLed
launcher, the same command again. Then real runs: the seconds before a job's first step, and what a killed one has lost.
"""

from __future__ import annotations

import math
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable

from tests.conftest import make_project
from tests.launcher import standin
from tests.launcher.conftest import Server, wait_for
from tests.launcher.real import killed_run, startup

NINE = "seed=0,1,2,3,4,5,6,7,8"
MARKS = re.compile(r"(<!-- measured:begin -->\n).*?(<!-- measured:end -->)", re.DOTALL)
Row = tuple[str, str, str]  # what was done, what it took, what would be ideal


def timed(server: Server, *words: str, code: int = 0) -> float:
    """Wall seconds of a sweep that must end with `code`."""
    began = time.monotonic()
    ended, said = server.run(*words)
    assert ended == code, said
    return time.monotonic() - began


def at_a_time(server: Server, places: int, seconds: float) -> list[Row]:
    """Nine jobs on so many pretend devices."""
    devices = f"hydra.launcher.devices=[{','.join('abcd'[:places])}]"
    began = time.time()
    wall = timed(server, NINE, f"seconds={seconds}", f"exp=n{places}", devices)
    ideal = seconds * math.ceil(9 / places)
    lives = sorted((start, end) for _, start, end in server.lives() if start > began)
    rows = [
        (
            f"9 jobs of {seconds:g} s, {places} at a time",
            f"{wall:.1f} s, {wall / ideal:.2f} × the ideal",
            f"{ideal:g} s",
        )
    ]
    if places == 1:
        gaps = [start - end for (_, end), (start, _) in zip(lives, lives[1:])]
        rows.append(("from the command to the first job's work", f"{lives[0][0] - began:.1f} s", "0 s"))
        rows.append(
            (
                "from the end of a job to the work of the next",
                f"{statistics.median(gaps):.2f} s, at most {max(gaps):.2f} s",
                "0 s",
            )
        )
    return rows


def again(server: Server) -> list[Row]:
    """The same command, when all is done."""
    seconds = timed(server, NINE, "exp=n4", "hydra.launcher.devices=[a,b,c,d]")
    return [("the same command again, all nine done", f"{seconds:.1f} s", "0 s")]


def job_killed(server: Server, seconds: float) -> list[Row]:
    """Two of four jobs, on two devices, die of SIGKILL early on; then the same command again."""
    words = ("how=sleep,kill_once", "seed=0,1", f"seconds={seconds}", "exp=killed", "hydra.launcher.devices=[a,b]")
    first = timed(server, *words, code=1)
    states = list(server.states("killed").values())
    rest = timed(server, *words)
    done, failed = states.count("done"), states.count("failed")
    return [
        (
            "4 jobs, 2 at a time, 2 of them SIGKILLed",
            f"{done} done, {failed} failed, {first:.1f} s",
            "2 done, 2 failed",
        ),
        ("the same command again: it runs those two", f"{rest:.1f} s", f"{seconds:g} s"),
    ]


def launcher_killed(server: Server, seconds: float) -> list[Row]:
    """The launcher of four jobs on two devices dies of SIGKILL; how long until nothing is left, and the way to the end."""
    words = ("seed=0,1,2,3", f"seconds={seconds}", "exp=dead", "hydra.launcher.devices=[a,b]")
    launcher = server.start(*words)
    wait_for(lambda: len(server.children()) >= 4 and list(server.folder.glob("multirun/dead/data/*/events.jsonl")))
    time.sleep(seconds / 2)
    began = time.monotonic()
    launcher.kill()
    launcher.communicate()
    wait_for(lambda: not server.children())
    gone = time.monotonic() - began
    rest = timed(server, *words)
    return [
        ("a SIGKILLed launcher: until its jobs have saved and left", f"{gone:.1f} s", "0 s"),
        ("the same command again (these jobs cannot resume)", f"{rest:.1f} s", f"{2 * seconds:g} s"),
    ]


def measured(seconds: float) -> list[Row]:
    """All rows, each printed as soon as it is there."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as real:
        standin.install(Path(name))
        server, project = Server(Path(name), patience=60 + 12 * seconds), make_project(Path(real))
        parts: list[Callable[[], list[Row]]] = [
            *(lambda places=places: at_a_time(server, places, seconds) for places in (1, 2, 4)),
            lambda: again(server),
            lambda: job_killed(server, seconds),
            lambda: launcher_killed(server, seconds),
            lambda: startup(project),
            lambda: killed_run(project),
        ]
        for part in parts:
            for row in part():
                print(" | ".join(row), flush=True)
                rows.append(row)
    return rows


def markdown(rows: list[Row]) -> str:
    """The table, and where and when it was measured."""
    head = f"Measured by `make sweeps` on {time.strftime('%Y-%m-%d')}: {os.cpu_count()} processors, no GPU, Python {platform.python_version()}.\n\n"
    return head + "".join(
        f"| {' | '.join(row)} |\n" for row in [("what", "measured", "ideal"), ("---", "---", "---"), *rows]
    )


def write(document: Path, rows: list[Row]) -> None:
    """Puts the table between the marks of `document`. Raises ValueError where it has none."""
    text, found = MARKS.subn(lambda match: match[1] + markdown(rows) + match[2], document.read_text(encoding="utf-8"))
    if found != 1:
        raise ValueError(f"{document}: the marks <!-- measured:begin --> and <!-- measured:end --> are needed, once.")
    document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    table = measured(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0)
    for place in sys.argv[2:]:
        write(Path(place), table)

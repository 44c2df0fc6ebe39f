"""What the launcher costs, measured with jobs that sleep: `python -m tests.launcher.overhead [seconds of a job]`.

Nine jobs at 1, 2 and 4 at a time against the ideal; what a SIGKILLed job, a SIGKILLed launcher and the same command again
cost; the seconds from a launch to a job's first line of work. About seven minutes with jobs of 20 s.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.launcher import standin
from tests.launcher.conftest import Server, wait_for

NINE = "seed=0,1,2,3,4,5,6,7,8"


def timed(server: Server, *words: str, code: int = 0) -> float:
    """Wall seconds of a sweep that must end with `code`."""
    began = time.monotonic()
    ended, said = server.run(*words)
    assert ended == code, said
    return time.monotonic() - began


def at_a_time(server: Server, places: int, seconds: float) -> None:
    """Nine jobs on so many pretend devices."""
    devices = f"hydra.launcher.devices=[{','.join('abcd'[:places])}]"
    began = time.time()
    wall = timed(server, NINE, f"seconds={seconds}", f"exp=n{places}", devices)
    ideal = seconds * math.ceil(9 / places)
    lives = sorted((start, end) for _, start, end in server.lives() if start > began)
    print(f"9 jobs of {seconds:g} s, {places} at a time: {wall:.1f} s, ideal {ideal:g} s, ratio {wall / ideal:.3f}; "
          f"first work after {lives[0][0] - began:.2f} s")
    if places == 1:
        gaps = [start - end for (_, end), (start, _) in zip(lives, lives[1:])]
        print(f"  from the end of a job to the first work of the next: median {statistics.median(gaps):.2f} s, most {max(gaps):.2f} s")


def job_killed(server: Server, seconds: float) -> None:
    """One of four jobs, on two devices, dies of SIGKILL early on; then the same command again."""
    words = ("how=sleep,kill_once", "seed=0,1", f"seconds={seconds}", "exp=killed", "hydra.launcher.devices=[a,b]")
    first = timed(server, *words, code=1)
    states = list(server.states("killed").values())
    again = timed(server, *words)
    print(f"SIGKILLed jobs: {states.count('done')} of 4 done and {states.count('failed')} failed in {first:.1f} s; "
          f"the same command again ran those {states.count('failed')} in {again:.1f} s")


def launcher_killed(server: Server, seconds: float) -> None:
    """The launcher of four jobs on two devices dies of SIGKILL; how long until nothing is left, and the way to the end."""
    words = ("seed=0,1,2,3", f"seconds={seconds}", "exp=dead", "hydra.launcher.devices=[a,b]")
    launcher = server.start(*words)
    wait_for(lambda: len(server.children()) >= 4 and list(server.folder.glob("multirun/dead/data/*/events.jsonl")))
    time.sleep(seconds / 2)
    began = time.monotonic()
    launcher.kill()
    launcher.communicate()
    wait_for(lambda: not server.children())
    print(f"SIGKILLed launcher: its jobs had saved and left, and its devices were free, after {time.monotonic() - began:.2f} s; ", end="")
    print(f"the same command then took {timed(server, *words):.1f} s, ideal {2 * seconds:g} s (these jobs cannot resume)")


def main(seconds: float) -> None:
    """Prints the measurements."""
    with tempfile.TemporaryDirectory() as name:
        standin.install(Path(name))
        server = Server(Path(name), patience=60 + 12 * seconds)
        for places in (1, 2, 4):
            at_a_time(server, places, seconds)
        print(f"the same command again, all nine done: {timed(server, NINE, 'exp=n4', 'hydra.launcher.devices=[a,b,c,d]'):.2f} s")
        job_killed(server, seconds)
        launcher_killed(server, seconds)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0)

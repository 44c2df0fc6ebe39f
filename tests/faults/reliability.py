"""Kills runs and damages their checkpoints, and writes down what was lost: `make reliability`, or

python -m tests.faults.reliability 1000 docs/reliability.md    a thousand kills; half an hour
python -m tests.faults.reliability 20                          the same in a minute or two, to the screen
"""

from __future__ import annotations

import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Callable

ALONE = {  # one thread in the parent, so that its forks are whole processes
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XCLS_PROGRESS": "0",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "CUDA_VISIBLE_DEVICES": "",
}
SOFT = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
KILLED = 137  # exit code of a process that ended itself before a file operation
CALLS = """open write writelines flush fsync close seek truncate replace rename link unlink remove mkdir rmdir copyfile
    sendfile copy_file_range __exit__""".split()  # of posix and io: what changes files


@dataclass
class Tally:
    """How often a kind of fault was tried, on how many runs, what was lost, and what should not have been."""

    what: str
    tried: int = 0
    runs: int = 0
    lost: str = "in the results nothing"
    steps: int = 0  # the most steps of work that were lost at once
    problems: list[str] = field(default_factory=list)


def kills(folder: Path, number: int, seed: int) -> list[Tally]:
    """Kills runs of every case in turn until `number` kills have met a live run; resumes each to its end."""
    from tests.faults.runs import CASES, history, last_life, live, resumed, saved_step, spawn, wait, whole_run
    from xcls.runs.record import read_record

    draws, whole = random.Random(seed), {}
    hard, soft = Tally("SIGKILL at a random instant"), Tally(f"{', '.join(SOFT)} at a random instant")
    while hard.tried + soft.tried < number:
        name = list(CASES)[hard.runs % len(CASES)]
        case, run = CASES[name], folder / f"{name} {hard.runs}"
        if name not in whole:
            began = time.monotonic()
            whole[name] = (whole_run(folder / f"{name} whole", case), time.monotonic() - began)
        for _ in range(draws.randint(2, 10)):
            chosen = draws.choice(("SIGKILL",) * 4 + SOFT)
            before = history(run)
            process = spawn(lambda run=run, case=case: live(run, case), folder / "log")
            time.sleep(draws.random() * whole[name][1])
            if os.waitpid(process, os.WNOHANG)[0]:
                break  # it has come to its end
            os.kill(process, getattr(signal, chosen))
            code = wait(process)
            tally = hard if chosen == "SIGKILL" else soft
            tally.tried += 1
            life = last_life(run) if len(history(run)) > len(before) else []
            reached = [event["step"] for event in life if event["event"] in ("step", "resume")]
            lost = reached[-1] - saved_step(run) if reached else 0
            tally.steps = max(tally.steps, lost)
            status = read_record(run).status if life else "interrupted"
            if tally is soft and life and (code < 0 or lost > 0 or status not in ("interrupted", "completed")):
                soft.problems.append(f"{run.name}: {chosen} left it {status} (exit {code}), {lost} steps lost")
        hard.problems += resumed(whole[name][0], run, case) if run.is_dir() else []
        hard.runs, soft.runs = hard.runs + 1, soft.runs + 1
    return [hard, soft]


class LastCall:
    """A profiler that ends its process, as SIGKILL would, right before call number `fatal` of CALLS."""

    def __init__(self, fatal: int) -> None:
        self.left = fatal

    def __call__(self, frame: FrameType, event: str, function: Any) -> None:
        if event != "c_call" or function.__name__ not in CALLS:
            return
        owner = type(getattr(function, "__self__", None)).__module__
        if owner == "_io" or function.__module__ in ("posix", "_io", "io"):
            if self.left == 0:
                os._exit(KILLED)
            self.left -= 1

    def during(self, action: Callable[[], Any]) -> None:
        """Runs `action` under it."""
        sys.setprofile(self)
        try:
            action()
        finally:
            sys.setprofile(None)


def cut_saves(folder: Path) -> Tally:
    """A kill right before every file operation of a save, one save for each; what is left must be whole."""
    import torch

    from tests.faults.runs import spawn, wait
    from xcls.train.checkpoint import Checkpoints, read_checkpoint

    tally = Tally(
        "kill before each file operation of a checkpoint write", lost="nothing: the old or the new one is whole"
    )
    old = {"weights": torch.arange(1000.0), "progress": {"step": 1, "best_step": 1}}
    new = {**old, "progress": {"step": 2, "best_step": 2}}
    for fatal in range(10_000):
        place = folder / str(fatal)
        place.mkdir(parents=True)
        checkpoints = Checkpoints(folder=place, keep=1)
        checkpoints.save(1, old, best=True)
        save = LastCall(fatal)
        code = wait(spawn(lambda: save.during(lambda: checkpoints.save(2, new, best=True)), folder / "log"))
        if code == 0:
            return tally
        tally.tried += 1
        warnings: list[str] = []
        found = Checkpoints(folder=place, keep=1).newest(warnings.append)
        best = read_checkpoint(place / "ckpt_best.pt")
        if code != KILLED or warnings or found is None or not torch.equal(best["weights"], old["weights"]):
            tally.problems.append(f"before operation {fatal}: exit {code}, {warnings}")
        tally.problems += [f"before operation {fatal}: left behind {path.name}" for path in place.glob(".*")]
    raise RuntimeError("a save never came to its end")


def _flip(content: bytes, draws: random.Random) -> bytes:
    changed = bytearray(content)
    changed[draws.randrange(len(changed))] ^= 1 << draws.randrange(8)
    return bytes(changed)


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "one bit flipped": _flip,
    "cut short": lambda content, draws: content[: draws.randrange(1, len(content))],
    "empty": lambda content, draws: b"",
}


def damaged(folder: Path, number: int, seed: int) -> list[Tally]:
    """The newest checkpoint of an interrupted run, under all its names, damaged at random places; then resumed."""
    from tests.faults.runs import CASES, live, resumed, spawn, wait, whole_run
    from xcls.runs.record import read_record
    from xcls.train.checkpoint import Checkpoints

    case, draws = CASES["LSH, redrawn rotations"], random.Random(seed)
    whole, source = whole_run(folder / "whole", case), folder / "source"
    save = Checkpoints.save

    def stopped() -> None:
        def save_and_stop(self: Checkpoints, step: int, *given: Any, **named: Any) -> Path:
            if step == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return save(self, step, *given, **named)

        Checkpoints.save = save_and_stop
        live(source, case)

    wait(spawn(stopped, folder / "log"))
    newest = max(source.glob("ckpt_step*.pt"))
    tallies = []
    for kind, change in DAMAGES.items():
        tally = Tally(
            f"the newest checkpoint damaged: {kind}", lost="nothing: a warning names it, the one before is used"
        )
        for attempt in range(number):
            place = folder / f"{kind} {attempt}"
            shutil.copytree(source, place)
            old = newest.read_bytes()
            new = change(old, draws)
            for path in place.glob("ckpt_*.pt"):
                if path.read_bytes() == old:  # another name of the same file
                    path.write_bytes(new)
            tally.tried, tally.runs = tally.tried + 1, tally.runs + 1
            tally.problems += resumed(whole, place, case)
            if not any(newest.name in warning for warning in read_record(place).warnings):
                tally.problems.append(f"{place.name}: no warning names it")
        tallies.append(tally)
    return tallies


def document(tallies: list[Tally], number: int, seconds: float) -> str:
    """docs/reliability.md."""
    import torch

    from tests.faults.runs import CASES

    problems = [problem for tally in tallies for problem in tally.problems]
    table = []
    for tally in tallies:
        work = f"at most {tally.steps} steps of work, done again; " if "instant" in tally.what else ""
        wrong = f"**{len(tally.problems)}**" if tally.problems else "nothing"
        table.append(f"| {tally.what} | {tally.tried:,} | {tally.runs or ''} | {work}{tally.lost} | {wrong} |")
    return f"""# Faults tried, how often, and what was lost

Written by `python -m tests.faults.reliability {number}` in {seconds / 60:.0f} minutes (torch {torch.__version__},
Python {platform.python_version()}, one thread, {time.strftime("%Y-%m-%d")}); `make reliability` writes it anew.

Every disturbed run is resumed to its end and compared with the same run undisturbed: `metrics.csv` in every column
except time, throughput and memory; the weights, optimizer and random states of the last and the best checkpoint to the
bit; the predictions; the record. `events.jsonl` must keep what it said. The runs are small, 10 steps in two epochs with
a checkpoint every 3, and of these kinds in turn:

{chr(10).join(f"- {case}" for case in CASES)}

| fault | tried | runs | lost | not as it should be |
|---|---:|---:|---|---|
{chr(10).join(table)}
{chr(10).join(["", "## Not as it should be", "", *(f"- {problem}" for problem in problems), ""]) if problems else ""}
A kill is SIGKILL from another process, or `os._exit` right before a file operation (`open`, `write`, `fsync`,
`replace`, `link`, `unlink` and the like). The runs are forks of one process that has imported everything, has a single
thread and has opened none of their files. Of a power cut only the order of writes is tested: a file is synced before it
is renamed, its folder before older files are removed.

The tests try more faults, in every run of `make test-slow`: full disks, bad data, bad configuration, no memory, numbers
that are not finite, W&B without a network, two processes at once, damaged records in the report.
"""


def main() -> int:
    """0: all is as it should be; 1: it is not."""
    if any(os.environ.get(name) != value for name, value in ALONE.items()):
        os.environ.update(ALONE)
        os.execv(sys.executable, [sys.executable, "-m", "tests.faults.reliability", *sys.argv[1:]])  # before any import
    number, began = int((sys.argv[1:] or ["20"])[0]), time.monotonic()
    import pyarrow.parquet  # noqa: F401 - in the parent, without a thread
    import torch
    from tqdm import tqdm

    from tests.faults.runs import CASES, live
    from xcls.train.metrics import scores

    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # no thread
    scores([0, 1, 2], torch.eye(3).numpy())
    with tempfile.TemporaryDirectory(prefix="xcls-faults-") as name:
        folder = Path(name)
        live(folder / "first", CASES["MLM, LSH, bf16"])  # what is imported and made at the first use
        tallies = [*kills(folder / "kills", number, seed=0), cut_saves(folder / "saves")]
        tallies += damaged(folder / "damage", max(1, min(15, number // 20)), seed=2)
    text = document(tallies, number, time.monotonic() - began)
    print(text)
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(text, encoding="utf-8")
    return int(any(tally.problems for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())

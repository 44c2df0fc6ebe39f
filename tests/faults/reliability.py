"""Tries the faults and writes down what was lost: `make reliability`, or

    python -m tests.faults.reliability full docs/reliability.md    a thousand kills, ten thousand inputs; an hour
    python -m tests.faults.reliability quick                       the same in a minute or two, to the screen

A third word names a file in which finished parts are kept, so that a command that was cut off goes on with the next.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable

from tests.faults.elsewhere import LIST, run_fuzz, run_tests
from tests.faults.tally import Tally, joined

ROOT = Path(__file__).resolve().parents[2]
ALONE = {  # one thread in the parent, so that its forks are whole processes
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XCLS_PROGRESS": "0",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "CUDA_VISIBLE_DEVICES": "",
}
SIZES = {  # kills; runs cut before every so-manieth file operation; damages of each kind; full disks; other tests too; random inputs
    "tiny": {"kills": 10, "stride": 1801, "damages": 1, "disks": 2, "tests": False, "fuzz": 0},
    "quick": {"kills": 60, "stride": 401, "damages": 4, "disks": 6, "tests": False, "fuzz": 0},
    "slow": {"kills": 200, "stride": 201, "damages": 10, "disks": 20, "tests": False, "fuzz": 0},
    "full": {"kills": 1000, "stride": 101, "damages": 15, "disks": 20, "tests": True, "fuzz": 10_000},
}
PORTION = 200  # kills in a part of their own
CUT = ("LSH, redrawn rotations", "bad steps left out")


def warm_up(folder: Path) -> None:
    """Imports and first uses of everything that the forks need, but nothing that starts a thread."""
    import numpy as np
    import pyarrow.parquet  # noqa: F401 - writing with it would start threads
    import torch
    from tqdm import tqdm

    from tests.faults.runs import CASES, live
    from xcls.train.metrics import scores

    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # its thread
    live(folder, CASES["MLM, LSH, bf16"], epochs=1.0)
    scores(np.array([0, 1, 2]), np.eye(3))


def parts(size: dict[str, Any], folder: Path) -> dict[str, Callable[[], list[Tally]]]:
    """What is tried, by name."""
    from tests.faults.damage import damaged, full_disks
    from tests.faults.kills import Kills, cut_runs, cut_saves

    found: dict[str, Callable[[], list[Tally]]] = {}
    for seed, done in enumerate(range(0, size["kills"], PORTION)):
        number, place = min(PORTION, size["kills"] - done), folder / f"kills {seed}"
        found[f"kills, portion {seed}"] = Kills(number=number, folder=place, seed=seed).run
    found["saves"] = lambda: [cut_saves(folder / "saves")]
    found["runs"] = lambda: [cut_runs(folder / "runs", size["stride"], CUT)]
    found["damage"] = lambda: damaged(folder / "damage", size["damages"], seed=2)
    found["disks"] = lambda: [full_disks(folder / "disks", size["disks"], seed=3)]
    for what, tests in LIST.items() if size["tests"] else ():
        found[what] = lambda what=what, tests=tests: [run_tests(what, tests)]
    if size["fuzz"]:
        found["fuzz"] = lambda: [run_fuzz(size["fuzz"])]
    return found


def attempt(size: dict[str, Any], known: Path | None) -> tuple[list[Tally], float]:
    """The tallies of all parts, one after the other, and the seconds that they took."""
    done: dict[str, Any] = json.loads(known.read_text(encoding="utf-8")) if known and known.exists() else {}
    with tempfile.TemporaryDirectory(prefix="xcls-faults-") as folder:
        warm_up(Path(folder) / "warm")
        for name, part in parts(size, Path(folder)).items():
            if name in done:
                continue
            began = time.monotonic()
            tallies = [asdict(tally) for tally in part()]
            done[name] = {"seconds": time.monotonic() - began, "tallies": tallies}
            print(f"{name}: {done[name]['seconds']:.0f} s", file=sys.stderr, flush=True)
            if known:
                known.write_text(json.dumps(done), encoding="utf-8")
    tallies = [Tally(**tally) for part in done.values() for tally in part["tallies"]]
    return joined(tallies), sum(part["seconds"] for part in done.values())


def document(tallies: list[Tally], name: str, seconds: float) -> str:
    """docs/reliability.md."""
    import torch

    from tests.faults.runs import CASES
    from xcls.train.versions import cpu_name

    lines = [
        "# Faults tried, how often, and what was lost",
        "",
        f"Written by `python -m tests.faults.reliability {name}` in {seconds / 60:.0f} minutes (torch {torch.__version__},",
        f"Python {platform.python_version()}, {cpu_name()}, one thread); `make reliability` writes it anew.",
        "",
        "Every run that was disturbed is resumed to its end and compared with the same run undisturbed: `metrics.csv` in",
        "every column but time, throughput and memory, the weights, optimizer and random states of the last and the best",
        "checkpoint to the bit, the predictions, and the record. The runs are small, 10 steps in two epochs with a",
        "checkpoint every 3, and of these kinds in turn:",
        "",
        *[f"- {case}" for case in CASES],
        "",
        "| fault | tried | runs | lost | not as it should be |",
        "|---|---:|---:|---|---|",
    ]
    for tally in tallies:
        wrong = "nothing" if not tally.problems else f"**{len(tally.problems)}**"
        work = "" if tally.steps is None else f"at most {tally.steps} steps of work, done again; "
        lines.append(f"| {tally.what} | {tally.tried:,} | {tally.runs or ''} | {work}{tally.lost} | {wrong} |")
    problems = [problem for tally in tallies for problem in tally.problems]
    if problems:
        lines += ["", "## Not as it should be", "", *[f"- {problem}" for problem in problems[:100]]]
    lines += [
        "",
        "What a kill is here: SIGKILL from another process, or `os._exit` right before a file operation of the run",
        "(Python's calls of `open`, `write`, `fsync`, `replace`, `link`, `unlink` and the like). The runs are forks of one",
        "process that has imported everything, has a single thread and has opened none of their files. Of a power cut only",
        "the order of writes is tested (a file is synced before it is renamed, its folder before older files go); the disk",
        "is trusted with the rest.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """0: all is as it should be; 1: it is not."""
    if any(os.environ.get(name) != value for name, value in ALONE.items()):
        os.environ.update(ALONE)
        os.execv(sys.executable, [sys.executable, "-m", "tests.faults.reliability", *sys.argv[1:]])  # before any import
    name, out, known = [*(sys.argv[1:] or ["quick"]), None, None][:3]
    tallies, seconds = attempt(SIZES[name], Path(known) if known else None)
    text = document(tallies, name, seconds)
    print(text)
    if out:
        Path(out).write_text(text, encoding="utf-8")
    return 1 if any(tally.problems for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())

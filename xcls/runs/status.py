"""`make status`, `make watch`: a table of all runs by sweep, from `sweep.json` and the run folders.

Standard library only.

python -m xcls.runs.status [FOLDER …] [--all] [--watch [SECONDS]]
Exit code: 0; 1 if a run has failed, is stale (its record says running, but no process runs it) or cannot be read;
2 if a folder does not exist.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xcls.runs.identity import runs_root
from xcls.runs.run_status import BAD, STATES, RunStatus, duration, read_run, run_folders

USUAL = ("multirun", "pretrain", "finetune")  # may be missing if nothing has run yet
LISTED = {"running": 100, "waiting": 3, "done": 0}  # number of runs per sweep and state that are shown without --all
OTHERS = 20
PIPED = 160  # columns if the output is no terminal


@dataclass
class SweepStatus:
    """A sweep, or the runs of one folder."""

    name: str
    runs: list[RunStatus] = field(default_factory=list)
    started: float | None = None  # seconds since the epoch
    launcher: str = ""
    note: str = ""

    def count(self, *states: str) -> int:
        """The number of runs in one of `states`."""
        return sum(run.state in states for run in self.runs)

    @property
    def left(self) -> float | None:
        """Estimated seconds left: running and waiting runs at the pace of completed ones; None if unknown."""
        running = [run for run in self.runs if run.state == "running"]
        lasted = [run.lasted for run in self.runs if run.lasted and run.kind == "finetune"]
        known = [run.left for run in running if run.left is not None]
        if not running or len(known) < len(running) or self.count("waiting") and not lasted:
            return None
        if not self.count("waiting"):
            return max(known)
        return statistics.mean(known) + self.count("waiting") * statistics.median(lasted) / len(running)


def read_all(places: list[Path], root: Path, now: float) -> list[SweepStatus]:
    """Every run at or below `places` (run folders, sweep folders, folders of these), by sweep, sorted by name."""
    root, places = Path(os.path.abspath(root)), [Path(os.path.abspath(place)) for place in places]
    patterns = ("sweep.json", "*/sweep.json", "multirun/*/sweep.json")
    sweeps: dict[str, SweepStatus] = {}
    taken: set[Path | None] = set()
    for folder in sorted({file.parent for place in places for pattern in patterns for file in place.glob(pattern)}):
        sweep = read_sweep(folder, root, now)
        sweeps[sweep.name] = sweep
        taken |= {run.folder for run in sweep.runs}
    for folder in sorted({folder for place in places for folder in run_folders(place)} - taken):
        home = next((p for p in folder.parents if p.parent.name == "multirun" or p.name in USUAL[1:]), folder.parent)
        sweep = sweeps.setdefault(_below(home, root), SweepStatus(name=_below(home, root)))
        sweep.runs.append(read_run(folder, _below(folder, home), now))
    return [sweeps[name] for name in sorted(sweeps)]


def read_sweep(folder: Path, root: Path, now: float) -> SweepStatus:
    """The jobs of the sweep in `folder` from its sweep.json; none if that file is damaged."""
    sweep = SweepStatus(name=_below(folder, root))
    try:
        content = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        sweep.launcher, sweep.started = str(content["launcher"]), float(content["started"])
        alive = content["host"] != socket.gethostname() or _exists(int(content["pid"]))
        sweep.runs = [_job_status(entry, folder, now, alive) for entry in content["jobs"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        sweep.note = f"sweep.json cannot be read ({type(error).__name__}); this lists the runs that have a record."
        return sweep
    if not alive and sweep.count("waiting"):
        sweep.note = "its launcher has ended. Jobs of a cluster continue; the same command starts the others."
    return sweep


def _job_status(entry: dict[str, Any], sweep: Path, now: float, alive: bool) -> RunStatus:
    """The status of a job of sweep.json: from its record, else from its launcher. `alive`: the launcher is running."""
    state, cause = str(entry["state"]), str(entry["cause"] or "")
    if state not in ("waiting", "running", "done", "skipped", "failed"):
        raise ValueError(f"state {state}")
    state = "done" if state == "skipped" else state
    project = sweep.parent.parent
    folder = project / str(entry["folder"]) if entry["folder"] else None
    name = _below(folder, sweep if sweep in folder.parents else project) if folder else " ".join(entry["overrides"])
    if folder is None or not (folder / "record.json").is_file():
        run = RunStatus(name=name, state=state, folder=folder, note=cause)
        if state == "running":
            run.note = "starting" if alive else "no record yet, and its launcher has ended"
            run.state = "running" if alive else "silent"
    else:
        run = read_run(folder, name, now)
        if alive and state in ("waiting", "running") and run.state in ("failed", "interrupted"):
            run.state, run.note = state, f"again, after: {run.note}"  # the new process has not yet written the record
        elif run.state == "failed":
            run.note = run.note or cause
    run.kind, run.device = str(entry["kind"]), str(entry["device"] or run.device)
    return run


def _exists(pid: int) -> bool:
    """Whether this machine has a process with this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _below(folder: Path, root: Path) -> str:
    """`folder` relative to `root`, or the full path if it is elsewhere."""
    return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)


def table(sweeps: list[SweepStatus], width: int, *, everything: bool = False) -> list[str]:
    """The lines of the table, at most `width` wide. A completed sweep takes one line."""
    if not sweeps:
        return ["Nothing has run yet under multirun/, pretrain/, finetune/."]
    lines: list[str] = []
    for sweep in sweeps:
        rows: list[RunStatus] = []
        more: list[str] = []
        for state in STATES:
            runs = [run for run in sweep.runs if run.state == state]
            shown = len(runs) if everything else LISTED.get(state, OTHERS)
            rows += runs[:shown]
            more += [f"  … and {len(runs) - shown} more {state}"] if len(runs) > shown > 0 else []
        if lines and (rows or lines[-1].startswith(" ")):
            lines.append("")
        lines += textwrap.wrap(_summary(sweep), width, subsequent_indent="  ")
        lines += textwrap.wrap(sweep.note, width, initial_indent="  ", subsequent_indent="  ")
        named = max((len(run.name) for run in rows), default=0)
        for run in rows:
            pace = f", {run.pace}" if run.state in ("running", "silent") and run.pace else ""
            lines += _wrapped(f"{run.state:<12}{run.name:<{named}}  {run.numbers}{pace}", width)
            lines += _wrapped(" " * 12 + run.note, width)[:3] if run.note else []
        lines += more
    return lines


def _summary(sweep: SweepStatus) -> str:
    """`multirun/quick: 12 jobs: 7 done, 2 running, 3 waiting. Started 14:02 (gpu_server). About 25 min left.`"""
    counts = [f"{sweep.count(state)} {state}" for state in ("done", *STATES[:-1]) if sweep.count(state)]
    noun = ("job" if sweep.launcher else "run") + "s" * (len(sweep.runs) != 1)
    text = f"{sweep.name}: {len(sweep.runs)} {noun}: {', '.join(counts) or 'none'}."
    if sweep.started:
        text += f" Started {time.strftime('%Y-%m-%d %H:%M', time.localtime(sweep.started))} ({sweep.launcher})."
    return text + (f" About {duration(sweep.left)} left." if sweep.left is not None else "")


def _wrapped(text: str, width: int) -> list[str]:
    """The lines of a run, wrapped to `width`."""
    return textwrap.wrap(text, width, initial_indent="  ", subsequent_indent=" " * 14, drop_whitespace=True)


def main(words: list[str] | None = None) -> int:
    """Prints the table once, or repeatedly until Ctrl-C. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m xcls.runs.status", description="The status of all runs.")
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="run folders, sweeps, folders of these (all)")
    parser.add_argument("--all", action="store_true", help="list completed and all waiting runs too")
    parser.add_argument("--watch", nargs="?", type=float, const=5.0, metavar="SECONDS", help="again every SECONDS (5)")
    args = parser.parse_args(words)
    base = runs_root(Path.cwd())
    missing = [name for name in args.folders if not (base / name).is_dir()]
    if missing:
        print(f"status: no such folder: {', '.join(missing)}", file=sys.stderr)
        return 2
    code = 0
    try:
        while True:
            sweeps = read_all([base / name for name in args.folders or USUAL], base, time.time())
            code = int(any(sweep.count(*BAD) for sweep in sweeps))
            width, height = shutil.get_terminal_size((PIPED, 1_000_000))
            lines = table(sweeps, width, everything=args.all)
            if args.watch is None:
                print("\n".join(lines))
                return code
            lines = [f"{time.strftime('%H:%M:%S')}, again every {args.watch:g} s; Ctrl-C ends", "", *lines]
            if sys.stdout.isatty():
                print("\x1b[H\x1b[J" + "\n".join(lines[: height - 1]), end="", flush=True)
            else:
                print("\n".join(lines) + "\n", flush=True)
            time.sleep(max(0.2, args.watch))
    except KeyboardInterrupt:
        print()
        return code


if __name__ == "__main__":
    sys.exit(main())

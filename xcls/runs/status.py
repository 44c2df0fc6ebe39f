"""`make status`, `make watch`: a table of where runs stand, as their folders tell. Standard library only.

python -m xcls.runs.status [FOLDER …] [--all] [--watch [SECONDS]]
Exit code: 0; 1 where a run has failed, is stale (its record says running, but no process holds it) or cannot be read;
2 for a folder that is not there.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
import time
from pathlib import Path

from xcls.runs.identity import runs_root
from xcls.runs.run_status import BAD, DONE, RUNNING, SILENT, STATES, WAITING, Standing, span
from xcls.runs.sweep_status import Group, standings

USUAL = ("multirun", "pretrain", "finetune")  # may be missing: nothing has run yet
LISTED = {RUNNING: 100, WAITING: 3, DONE: 0}  # runs of one group in this state that are shown without --all
OTHERS = 20
PIPED = 160  # columns where nobody looks at a terminal
NAME, FIGURES = 12, "{step:>15}  {loss:>7}  {speed:>9}  {left:>11}  {device}"
TITLES = FIGURES.format(step="step", loss="loss", speed="tokens/s", left="left", device="device")


def main(words: list[str] | None = None) -> int:
    """Prints the table once, or again and again until Ctrl-C. Gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m xcls.runs.status", description="Where runs stand, as their folders tell."
    )
    parser.add_argument(
        "folders", nargs="*", metavar="FOLDER", help="run folders, sweeps, folders of these (all that there is)"
    )
    parser.add_argument("--all", action="store_true", help="list what is done and all that waits, too")
    parser.add_argument(
        "--watch", nargs="?", type=float, const=5.0, metavar="SECONDS", help="look again every SECONDS (5)"
    )
    args = parser.parse_args(words)
    missing = [name for name in args.folders if not (runs_root(Path.cwd()) / name).is_dir()]
    if missing:
        print(f"status: no such folder: {', '.join(missing)}", file=sys.stderr)
        return 2
    base = runs_root(Path.cwd())
    places = [base / name for name in args.folders or USUAL]
    code = 0
    try:
        while True:
            groups = standings(places, base)
            code = int(any(group.count(*BAD) for group in groups))
            width, height = shutil.get_terminal_size((PIPED, 1_000_000))
            lines = table(groups, width, everything=args.all)
            if args.watch is None:
                print("\n".join(lines))
                return code
            draw([f"{time.strftime('%H:%M:%S')}, again every {args.watch:g} s; Ctrl-C ends", "", *lines], height)
            time.sleep(max(0.2, args.watch))
    except KeyboardInterrupt:
        print()
        return code


def draw(lines: list[str], height: int) -> None:
    """One picture of `watch`: over the last one on a terminal, below it elsewhere."""
    if sys.stdout.isatty():
        if len(lines) > height - 1:
            lines = [*lines[: height - 2], f"… {len(lines) - height + 2} more lines"]
        print("\x1b[H\x1b[J" + "\n".join(lines), end="", flush=True)
    else:
        print("\n".join(lines) + "\n", flush=True)


def table(groups: list[Group], width: int, *, everything: bool = False) -> list[str]:
    """The lines of the table, none wider than `width`. Groups in which all is done are one line."""
    if not groups:
        return ["Nothing has run yet under multirun/, pretrain/, finetune/."]
    lines: list[str] = []
    for group in groups:
        rows, more = _chosen(group, everything)
        if lines and (rows or lines[-1].startswith(" ")):
            lines.append("")
        lines += textwrap.wrap(_summary(group), width, subsequent_indent="  ")
        for note in group.notes:
            lines += textwrap.wrap(note, width, initial_indent="  ", subsequent_indent="  ")
        named = max((len(run.name) for run in rows), default=0)
        longer = max((len(run.device) - len("device") for run in rows), default=0)
        one_line = 2 + NAME + named + 2 + len(TITLES) + max(0, longer) <= width
        if any(run.state in (RUNNING, SILENT) for run in rows):
            lines += _row("state", "run", TITLES, named, one_line, width)
        for run in rows:
            lines += _run(run, named, one_line, width)
        lines += [f"  … and {count} more {state}" for state, count in more]
    return lines


def _chosen(group: Group, everything: bool) -> tuple[list[Standing], list[tuple[str, int]]]:
    """The runs that are listed, in the order of STATES, and how many of which state are not."""
    rows, more = [], []
    for state in STATES:
        runs = [run for run in group.runs if run.state == state]
        shown = len(runs) if everything else LISTED.get(state, OTHERS)
        rows += runs[:shown]
        if len(runs) > shown > 0:
            more.append((state, len(runs) - shown))
    return rows, more


def _summary(group: Group) -> str:
    """`multirun/quick: 12 jobs: 7 done, 2 running, 3 waiting. Started 14:02 (local). About 25 min left.`"""
    counts = [f"{group.count(state)} {state}" for state in (DONE, *STATES[:-1]) if group.count(state)]
    noun = ("job" if group.launcher else "run") + "s" * (len(group.runs) != 1)
    text = f"{group.name}: {len(group.runs)} {noun}: {', '.join(counts) or 'none'}."
    if group.started:
        text += f" Started {time.strftime('%Y-%m-%d %H:%M', time.localtime(group.started))} ({group.launcher})."
    if group.left is not None:
        text += f" About {span(group.left)} left."
    return text


def _run(run: Standing, named: int, one_line: bool, width: int) -> list[str]:
    """The lines of one run: its figures, and the note below."""
    if run.state in (RUNNING, SILENT):
        share = f" ({run.step / run.steps:.0%})" if run.steps else ""
        figures = FIGURES.format(
            step=f"{run.step}/{run.steps}{share}" if run.steps else str(run.step or "-"),
            loss="-" if run.loss is None else f"{run.loss:.4f}",
            speed="-" if run.tokens_per_s is None else f"{run.tokens_per_s:,.0f}",
            left="-" if run.left is None else span(run.left),
            device=run.device or "-",
        )
    elif run.state == DONE:
        figures = "" if run.score is None else f"macro-F1 {run.score:.4f}"
    else:
        figures = f"at step {run.step}/{run.steps}" if run.steps and run.step else ""
    lines = _row(run.state, run.name, figures, named, one_line, width)
    indent = " " * (2 + NAME)
    return lines + textwrap.wrap(
        run.note, width, initial_indent=indent, subsequent_indent=indent, max_lines=3, placeholder=" …"
    )


def _row(state: str, name: str, figures: str, named: int, one_line: bool, width: int) -> list[str]:
    """State, name and figures: on one line where all rows of the group fit, else the figures on a second one."""
    if one_line:
        return [f"  {state:<{NAME}}{name:<{named}}  {figures}".rstrip()]
    room = width - 2 - NAME
    if len(name) > room:
        name = f"{name[: room // 2]}…{name[len(name) - room + room // 2 + 1 :]}"
    lines = [f"  {state:<{NAME}}{name}"]
    return lines + ([f"{'':{2 + NAME}}{figures}"[:width].rstrip()] if figures else [])


if __name__ == "__main__":
    sys.exit(main())

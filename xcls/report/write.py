"""Writes the whole report: the order of things is the order of this file."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Sequence

from xcls.record import write_atomic
from xcls.report import compare, tables
from xcls.report.aggregate import Board, Group, group_runs, make_boards
from xcls.report.collect import Found, collect, shown
from xcls.report.measures import MEASURES
from xcls.report.page import page
from xcls.report.plots import draw
from xcls.report.reproduce import script
from xcls.report.settings import Claims, Settings, claims_from
from xcls.report.verdict import Judge
from xcls.schema import UserError, flatten, nearest

OWN_PLOTS = ("quality_vs_*.png", "learning-*.png", "pretraining.png")


def write_report(settings: Settings, *, typed: Sequence[str] = (), root: Path) -> str:
    """Reads the records under `settings.runs`, writes the report to `settings.out`, gives the text for stdout.

    `typed` are the keys under `claims.` that the user typed: they win over an experiment's own claims. Paths are
    relative to `root`. Raises UserError before anything is written.
    """
    claims = check(settings)
    found = collect(settings.runs, root)
    if not found.runs:
        unread = "".join(f"\n  {item.place}: {item.reason}" for item in found.unreadable)
        raise UserError(
            f"runs: no record.json under {', '.join(settings.runs)}. Make some first: python run.py --help{unread}"
        )
    groups = group_runs(found)
    boards = make_boards(groups, settings.rank_by)
    judge = Judge(claims_for(asdict(claims), typed))
    out = root / settings.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out: {settings.out}: {error.strerror}. A folder is needed.") from error
    _write_tables(out, found, groups, boards, judge, claims)
    studies = sorted({run.record.study for run in found.runs if run.record.study})
    plots = draw(boards, groups)
    _write_plots(out / "plots", plots)
    text = compare.stdout(boards, judge, claims.references[0], found, studies)
    write_atomic(out / "report.md", text)
    html = page(
        boards=boards,
        groups=groups,
        found=found,
        judge=judge,
        references=claims.references,
        studies=studies,
        plots=plots,
        rank_by=settings.rank_by,
        pretty_config={"rank_by": settings.rank_by, "claims": asdict(claims)},
    )
    write_atomic(out / "index.html", html)
    _write_script(out, found, settings)
    return f"{text}\n{len(found.runs)} runs, {len(groups)} groups. The page: {shown(out, root)}/index.html\n"


def check(settings: Settings) -> Claims:
    """Refuses impossible settings with UserError; gives the claims."""
    if not settings.runs:
        raise UserError("runs: at least one folder is needed, e.g. runs=[multirun/quick].")
    if settings.rank_by not in MEASURES:
        raise UserError(
            f"rank_by={settings.rank_by}: one of {', '.join(MEASURES)} is needed."
            f"{nearest(settings.rank_by, list(MEASURES))}"
        )
    return claims_from(flatten(asdict(settings.claims)))


def claims_for(claims: dict[str, Any], typed: Sequence[str]) -> Callable[[Group], tuple[Claims, str]]:
    """The thresholds of a group: the report's, over them its experiment's `claims`, over these what was typed."""
    report = flatten(claims)

    def decided(key: str) -> bool:
        return any(key == node or key.startswith(f"{node}.") or not node for node in typed)

    def of(group: Group) -> tuple[Claims, str]:
        own = [
            {key.partition(".")[2]: value for key, value in run.record.config.items() if key.startswith("claims.")}
            for run in group.runs
        ]
        if any(other != own[0] for other in own):
            return claims_from(report), "its runs state different claims"
        stated = {key: value for key, value in (own[0] if own else {}).items() if not decided(key)}
        try:
            return claims_from({**report, **stated}), ""
        except UserError as error:
            return claims_from(report), f"in its own configuration: {error}"

    return of


def _write_tables(
    out: Path, found: Found, groups: list[Group], boards: list[Board], judge: Judge, claims: Claims
) -> None:
    first = claims.references[0]
    states = {
        group.id: (
            judge.verdict(group, board, first, "validation").state,
            judge.verdict(group, board, first, "test").state,
        )
        for board in boards
        for group in board.groups
    }
    write_atomic(out / "results.csv", tables.to_csv(*tables.results(found.runs, groups, states)))
    write_atomic(out / "groups.csv", tables.to_csv(*tables.group_rows(groups, boards, states)))
    write_atomic(out / "wnf.csv", tables.to_csv(*tables.claim_rows(boards, judge, claims.references)))


def _write_plots(folder: Path, plots: dict[str, tuple[bytes, str]]) -> None:
    """Writes the plots and removes those of an earlier report that are no longer drawn."""
    folder.mkdir(exist_ok=True)
    for pattern in OWN_PLOTS:
        for old in folder.glob(pattern):
            if old.stem not in plots:
                old.unlink()
    for name, (image, _) in plots.items():
        (folder / f"{name}.png").write_bytes(image)


def _write_script(out: Path, found: Found, settings: Settings) -> None:
    """reproduce.sh, with the pretraining runs that the runs started from, wherever they lie."""
    records = {run.record.hash: run.record for run in reversed(found.runs) if run.record.status != "completed"}
    records.update(found.parents)
    records.update({run.record.hash: run.record for run in reversed(found.runs) if run.record.status == "completed"})
    runs = ",".join(sorted({str(path) for path in settings.runs}))
    report = [f"runs=[{runs}]", f"out={settings.out}", f"rank_by={settings.rank_by}"]
    write_atomic(out / "reproduce.sh", script(list(records.values()), report))
    os.chmod(out / "reproduce.sh", 0o755)

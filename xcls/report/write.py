"""Writes the whole report: the order of things is the order of this file."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Callable, Sequence

from xcls.config.schema import UserError, flatten
from xcls.report.bench import benches_beside, crossovers, sentence
from xcls.report.claims import Study
from xcls.report.comparisons import further_tables
from xcls.report.groups import Group, group_runs, results_by_dataset
from xcls.report.intervals import Differences
from xcls.report.load import Found, collect, shown
from xcls.report.page import page
from xcls.report.plots import MOST_BOARDS, Plot, draw
from xcls.report.settings import Claims, Settings, check, claims_from, cli_overrides, inside, key_of
from xcls.report.tables import main_tables
from xcls.report.text import best_runs, printed
from xcls.runs.record import write_atomic
from xcls.runs.reproduce import read_patch, script

# What an earlier report may have drawn.
OWN_PLOTS = "quality_vs_* seeds-* cost_vs_length-* learning-* confusion-* pretraining* bench-* step-*".split()


def write_report(settings: Settings, *, typed: Sequence[str] = (), root: Path) -> str:
    """Reads the records under `settings.runs`, writes the report to `settings.out`, gives the text for stdout.

    `typed` are the overrides that the user typed: those under `claims.` win over an experiment's own claims. Paths are
    relative to `root`. Raises UserError before anything is written.
    """
    study = make_study(settings, typed=typed, root=root)
    settings, found = study.settings, study.found
    out = root / settings.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out: {settings.out}: {error.strerror}. A folder is needed.") from error
    tables = [*main_tables(study), *further_tables(study)]
    for table in tables:
        if table.rows:
            write_atomic(out / f"{table.name}.csv", table.csv)
        else:
            (out / f"{table.name}.csv").unlink(missing_ok=True)  # of an earlier report
    about, crossings, plots = remarks(study), crossovers(study.benches, study.groups), draw(study)
    _write_plots(out / "plots", plots)
    best = best_runs(study.boards)
    used = {**asdict(settings), "runs": sorted(set(settings.runs))}
    html = page(study, tables, plots=plots, notes=about, crossings=crossings, best=best, used=used)
    write_atomic(out / "index.html", html)
    _write_script(out, found, cli_overrides(settings, typed))
    return printed(study, [*filter(None, map(sentence, crossings)), *about], f"{shown(out, root)}/index.html", best)


def make_study(settings: Settings, *, typed: Sequence[str] = (), root: Path) -> Study:
    """Reads the records under `settings.runs`. Raises UserError for impossible settings, and where there is no
    record.
    """
    own_claims = [key.partition(".")[2] for key in map(key_of, typed) if key.split(".")[0] == "claims"]
    claims, settings = check(settings), inside(settings, root)
    found = collect(settings.runs, root)
    if not found.runs:
        unread = "".join(f"\n  {place}: {reason}" for place, reason in found.unreadable)
        none = f"runs: no record.json under {', '.join(settings.runs)}."
        raise UserError(f"{none} Make some first: python run.py --help{unread}")
    groups = group_runs(found)
    differences = Differences(settings=settings.intervals, references=claims.references)
    boards, benches = results_by_dataset(groups, settings.rank_by), benches_beside(found.benches, root)
    settings = replace(settings, claims=claims)
    return Study(
        settings, found, groups, boards, claims_for(claims, own_claims), claims.references, differences, benches
    )


def remarks(study: Study) -> list[str]:
    """What a reader must know about the input as a whole: too few runs to compare, too many data sets to draw."""
    notes = []
    if len({run.record.hash for run in study.found.runs if run.record.mode != "baseline"}) == 1:
        again = "type its command again with -m attention=sdpa,performer,reformer seed=0,1,2"
        notes.append(f"Only one run of an encoder was found. A comparison needs two or more configurations: {again}")
    if len(study.boards) > MOST_BOARDS:
        drawn = f"Plots are drawn for the first {MOST_BOARDS} of {len(study.boards)} data sets"
        notes.append(f"{drawn}; name fewer folders in runs=[…] for the others.")
    return notes


def claims_for(claims: Claims, typed: Sequence[str]) -> Callable[[Group], tuple[Claims, str]]:
    """The thresholds of a group: the report's, over them its experiment's `claims`, over these what was typed."""
    report: dict[str, Any] = flatten(asdict(claims))

    def of(group: Group) -> tuple[Claims, str]:
        """The thresholds of one group, and what is wrong with them."""
        configs = [run.record.config.items() for run in group.runs]
        own = [{key[7:]: value for key, value in config if key.startswith("claims.")} for config in configs]
        if any(other != own[0] for other in own):
            return claims, "its runs state different claims"
        stated = {
            key: value
            for key, value in (own[0] if own else {}).items()
            if not any(not node or f"{key}.".startswith(f"{node}.") for node in typed)
        }
        try:
            return claims_from({**report, **stated}), ""
        except UserError as error:
            return claims, f"in its own configuration: {error}"

    return of


def _write_plots(folder: Path, plots: Sequence[Plot]) -> None:
    """Writes the plots in place of those of an earlier report."""
    folder.mkdir(exist_ok=True)
    for old in (path for pattern in OWN_PLOTS for path in folder.glob(f"{pattern}.png")):
        old.unlink()
    for plot in plots:
        (folder / f"{plot.name}.png").write_bytes(plot.image)


def _write_script(out: Path, found: Found, report: Sequence[str]) -> None:
    """reproduce.sh, with the pretraining runs that the runs started from, wherever they lie; `report`: the
    overrides."""
    records = {run.record.hash: run.record for run in reversed(found.runs) if run.record.status != "completed"}
    records.update(found.parents)
    records.update({run.record.hash: run.record for run in reversed(found.runs) if run.record.status == "completed"})
    patches: dict[str, str] = {}
    for run in found.runs:
        patches.update(read_patch(run.folder, run.record))
    write_atomic(out / "reproduce.sh", script(list(records.values()), report, patches=patches))
    os.chmod(out / "reproduce.sh", 0o755)

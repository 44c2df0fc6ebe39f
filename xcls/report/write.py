"""Writes the whole report; `write_report` calls all other modules in order."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Sequence

from xcls.config.schema import UserError
from xcls.report.bench import benches_beside, crossovers, sentence
from xcls.report.claims import Study
from xcls.report.comparisons import further_tables
from xcls.report.groups import MACRO_F1, DatasetResults, group_runs, results_by_dataset
from xcls.report.load import Found, collect, shown
from xcls.report.page import page
from xcls.report.plots import MOST_DATASETS, Plot, draw
from xcls.report.settings import Settings, check, cli_overrides, key_of, with_relative_paths
from xcls.report.summary import headline
from xcls.report.tables import comparison, main_tables, unfinished
from xcls.runs.paths import quoted
from xcls.runs.record import write_atomic
from xcls.runs.reproduce import read_patch, script

MOST_PRINTED_DATASETS, MOST_PRINTED = 3, 8  # data sets on the screen; rows of their tables together (at least two each)
# Plots of an earlier report, which are removed.
OWN_PLOTS = "quality_vs_* seeds-* cost_vs_length-* learning-* confusion-* pretraining* bench-* step-*".split()


def write_report(settings: Settings, *, typed: Sequence[str] = (), root: Path) -> str:
    """Reads the records in `settings.runs`, writes the report to `settings.out`, returns the text for stdout.

    `typed`: the overrides of the command line; those of `claims.*` win over the claims of an experiment. Paths are
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
    about, crossings = remarks(study), crossovers(study.benches, study.groups)
    plots = draw(study, crossings)
    _write_plots(out / "plots", plots)
    best = best_runs(study.datasets)
    used = {**asdict(settings), "runs": sorted(set(settings.runs))}
    html = page(study, tables, plots=plots, notes=about, crossings=crossings, best=best, used=used)
    write_atomic(out / "index.html", html)
    _write_script(out, found, cli_overrides(settings, typed))
    return printed(study, [*filter(None, map(sentence, crossings)), *about], f"{shown(out, root)}/index.html", best)


def make_study(settings: Settings, *, typed: Sequence[str] = (), root: Path) -> Study:
    """Reads the records in `settings.runs`. Raises UserError for impossible settings, or if there is no record."""
    own_claims = [key.partition(".")[2] for key in map(key_of, typed) if key.split(".")[0] == "claims"]
    claims, settings = check(settings), with_relative_paths(settings, root)
    found = collect(settings.runs, root)
    if not found.runs:
        unread = "".join(f"\n  {place}: {reason}" for place, reason in found.unreadable)
        none = f"runs: no record.json under {', '.join(settings.runs)}."
        raise UserError(f"{none} Make some first: python run.py --help{unread}")
    groups = group_runs(found)
    datasets, benches = results_by_dataset(groups, settings.rank_by), benches_beside(found.benches, root)
    return Study(replace(settings, claims=claims), found, groups, datasets, benches, own_claims)


def remarks(study: Study) -> list[str]:
    """Notes on the input as a whole: too few runs to compare, too many data sets to plot."""
    notes = []
    if len({run.record.hash for run in study.found.runs if run.record.mode != "baseline"}) == 1:
        again = "give its command again with -m attention=sdpa,performer,reformer seed=0,1,2"
        notes.append(f"Only one run of an encoder was found. A comparison needs two or more configurations: {again}")
    if len(study.datasets) > MOST_DATASETS:
        drawn = f"Plots are drawn for the first {MOST_DATASETS} of {len(study.datasets)} data sets"
        notes.append(f"{drawn}; name fewer folders in runs=[…] for the others.")
    return notes


def printed(study: Study, findings: Sequence[str], page: str, best: Sequence[tuple[str, str]]) -> str:
    """The text for stdout. findings: sentences; page: path of the page; best: see `best_runs`."""
    blocks, following, datasets = study.names[:MOST_PRINTED_DATASETS], [], study.datasets
    most = max(2, MOST_PRINTED // max(1, min(len(datasets), MOST_PRINTED_DATASETS)))
    for results in datasets[:MOST_PRINTED_DATASETS]:
        head = headline(results, study)
        following += [f"Next: {head.next}"] if head.next else []
        table = comparison(results, study)
        kept = [*table.rows[: min(most, len(results.groups))], *table.rows[len(results.groups) :]]
        more = len(table.rows) - len(kept)
        left = f"\n… {more} more groups in groups.csv" if more else ""
        blocks += [f"{results.name}: {head.text}", replace(table, rows=kept).markdown + left]
    lost = len(unfinished(study.found).rows)
    also = [f"{len(datasets) - MOST_PRINTED_DATASETS} more data sets"] if len(datasets) > MOST_PRINTED_DATASETS else []
    also += [f"{lost} runs that did not complete, with their causes"] if lost else []
    last = [f"{len(study.found.runs)} runs. The page: {page}" + (f" (also: {'; '.join(also)})" if also else "")]
    text = "\n\n".join([*blocks, *findings, "\n".join([*last, *dict.fromkeys(following)])]) + "\n"
    return text + "".join(f"\n{about}\n\n    {command}\n" for about, command in best)


def best_runs(datasets: Sequence[DatasetResults]) -> list[tuple[str, str]]:
    """(text, command that predicts) for the run with the best validation macro-F1 on each data set.

    Only fine-tuned runs that have their best checkpoint and learned something.
    """
    found = []
    for results in datasets:
        groups = [group for group in results.groups if not group.learned_nothing]
        runs = [run for group in groups for run in group.runs if (run.folder / "ckpt_best.pt").is_file()]
        scored = [(score, run.place) for run in runs if (score := MACRO_F1.of(run.record)) is not None]
        if scored:
            score, place = max(scored)
            text = (
                f"The best run on {results.name} by macro-F1 on validation ({score:.3f}) is {place}. Predict with it:"
            )
            words = ["python", "run.py", "mode=predict", f"exp={quoted(place)}", "input=new.csv", "output=out.csv"]
            found.append((text, shlex.join(words)))
    return found


def _write_plots(folder: Path, plots: Sequence[Plot]) -> None:
    """Writes the plots and removes those of an earlier report."""
    folder.mkdir(exist_ok=True)
    for old in (path for pattern in OWN_PLOTS for path in folder.glob(f"{pattern}.png")):
        old.unlink()
    for plot in plots:
        (folder / f"{plot.name}.png").write_bytes(plot.image)


def _write_script(out: Path, found: Found, report: Sequence[str]) -> None:
    """Writes reproduce.sh for all runs and their pretraining runs. `report`: the overrides of this report."""
    known = [*found.parents.values(), *(run.record for run in reversed(found.runs))]
    records = {record.hash: record for record in sorted(known, key=lambda record: record.status == "completed")}
    patches: dict[str, str] = {}
    for run in found.runs:
        patches.update(read_patch(run.folder, run.record))
    write_atomic(out / "reproduce.sh", script(list(records.values()), report, patches=patches))
    os.chmod(out / "reproduce.sh", 0o755)

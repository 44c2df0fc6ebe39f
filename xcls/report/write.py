"""Writes the whole report: the order of things is the order of this file."""

from __future__ import annotations

import os
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any, Callable, Sequence

from xcls.record import MORE_TRAINING, write_atomic
from xcls.report import compare, tables
from xcls.report.aggregate import Board, Group, group_runs, make_boards
from xcls.report.bench_ratio import benches_beside
from xcls.report.best import best_runs
from xcls.report.collect import Found, collect, shown
from xcls.report.console import printed
from xcls.report.crossover import TITLE, Crossover, caption, crossovers, sentence, table
from xcls.report.crossover import remarks as footnotes
from xcls.report.differences import Differences
from xcls.report.measures import GPU_MEMORY, MEASURES
from xcls.report.page import Story, page
from xcls.report.plot_style import Plot
from xcls.report.plots import MOST_BOARDS, draw
from xcls.report.reproduce import read_patch, script
from xcls.report.retyped import inside, overrides
from xcls.report.settings import Claims, Settings, check_numbers, claims_from
from xcls.report.sheet import Sheet
from xcls.report.sheets import WORDS, Context, disagreements, further_sheets
from xcls.report.verdict import Judge
from xcls.schema import UserError, flatten, nearest

OWN_PLOTS = tuple(
    f"{name}.png"
    for name in ("quality_vs_*", "seeds-*", "cost_vs_length-*", "learning-*", "confusion-*", "pretraining", "bench-*", "step-*")
)
MOST_NAMED = 5  # groups in a note
TITLES = {"results": "runs", "groups": "groups", "wnf": "claims"}
IN_REPORT = {  # of these tables, what report.md shows
    "groups": ("label", "mode", "dataset", "n", "not_completed", "rank", *(f"{name}_{part}" for name in (
        "macro_f1", "accuracy", "auroc", "test_macro_f1", "time_per_epoch", "tokens_per_s", GPU_MEMORY, "max_rss_MiB",
        "params", "latency_ms", "inference_examples_per_s") for part in tables.parts_of(name)[:-1])),
    "wnf": ("label", "dataset", "n", "reference", "split", "claim", "measured", "value", "relation", "threshold", "margin",
            "state", "interval_low", "interval_high", "interval_says", "bench", "reason", "measured_differently"),
}  # fmt: skip


def write_report(settings: Settings, *, typed: Sequence[str] = (), root: Path) -> str:
    """Reads the records under `settings.runs`, writes the report to `settings.out`, gives the text for stdout.

    `typed` are the keys under `claims.` that the user typed: they win over an experiment's own claims. Paths are
    relative to `root`. Raises UserError before anything is written.
    """
    claims, settings = check(settings), inside(settings, root)
    found = collect(settings.runs, root)
    if not found.runs:
        unread = "".join(f"\n  {item.place}: {item.reason}" for item in found.unreadable)
        raise UserError(
            f"runs: no record.json under {', '.join(settings.runs)}. Make some first: python run.py --help{unread}"
        )
    groups = group_runs(found)
    boards = make_boards(groups, settings.rank_by)
    differences = Differences(settings=settings.intervals, references=claims.references)
    benches = benches_beside(found.benches, root)
    judge = Judge(claims_for(asdict(claims), typed), differences, settings.intervals.level, benches)
    out = root / settings.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out: {settings.out}: {error.strerror}. A folder is needed.") from error
    sheets = _sheets(found, groups, boards, judge, claims)
    sheets += further_sheets(Context(boards, judge, claims.references, found, benches, settings))
    for name in WORDS:
        (out / f"{name}.csv").unlink(missing_ok=True)  # of an earlier report
    for sheet in sheets:
        if sheet.board is None:  # the others are parts of these
            write_atomic(out / f"{sheet.name}.csv", tables.to_csv(sheet.rows, sheet.header))
    studies = sorted({run.record.study for run in found.runs if run.record.study})
    about, disagree = remarks(found, boards), disagreements(sheets)
    notes = [*about, *disagree]
    crossings = crossovers(benches, groups)
    plots = draw(boards, groups, found.benches, claims.references[0], crossings)
    _write_plots(out / "plots", plots)
    text = compare.summary(boards, judge, claims.references[0], found, studies)
    text += "".join(f"\n{note}\n" for note in notes)
    text += "".join(f"\n{block}\n" for one in crossings for block in in_words(one, boards))
    best = best_runs(boards, settings.rank_by, root)
    use = "".join(f"\n{shown_not_run(item.text)}\n\n    {item.command}\n" for item in best)  # in a block of code nothing is HTML or a link
    write_atomic(out / "report.md", shown_not_run(text) + use + shown_not_run(in_markdown(sheets, boards)))
    used = {**asdict(settings), "runs": sorted(set(settings.runs)), "claims": asdict(claims)}
    story = Story(boards, groups, found, judge, claims, studies, plots, sheets, notes, settings.rank_by, used, crossings, best)
    write_atomic(out / "index.html", page(story))
    _write_script(out, found, overrides(settings, typed))
    findings = [*filter(None, map(sentence, crossings)), *about]
    return printed(
        boards, judge, claims.references, found=found, studies=studies, findings=findings, remarks=len(disagree),
        page=f"{shown(out, root)}/index.html",
    ) + use  # fmt: skip


def in_words(one: Crossover, boards: Sequence[Board]) -> list[str]:
    """A crossover in Markdown, block by block."""
    return [f"## {TITLE}", caption(one), compare.markdown(table(one, boards)), *footnotes(one)]


def remarks(found: Found, boards: Sequence[Board]) -> list[str]:
    """What a reader must know about the input as a whole: too few runs to compare, too many data sets to draw."""
    notes = []
    if len({run.record.hash for run in found.runs if run.record.mode != "baseline"}) == 1:
        notes.append(
            "Only one run of an encoder was found. A comparison needs two or more with different configurations: "
            "type its command again with -m attention=sdpa,performer,reformer seed=0,1,2"
        )
    for board in boards:
        nothing = [group.learned_nothing for group in [*board.groups, *board.baselines] if group.learned_nothing]
        if nothing:
            told = "; ".join(nothing[:MOST_NAMED]) + (f"; and {len(nothing) - MOST_NAMED} more" if len(nothing) > MOST_NAMED else "")
            notes.append(f"{board.name}: {told}. No claim about quality is made from these runs, as reference neither. {MORE_TRAINING}")
    if len(boards) > MOST_BOARDS:
        drawn = f"Plots are drawn for the first {MOST_BOARDS} of {len(boards)} data sets"
        notes.append(f"{drawn}; name fewer folders in runs=[…] for the others.")
    return notes


def check(settings: Settings) -> Claims:
    """Refuses impossible settings with UserError; gives the claims."""
    if not settings.runs:
        raise UserError("runs: at least one folder is needed, e.g. runs=[multirun/quick].")
    if settings.rank_by not in MEASURES:
        raise UserError(
            f"rank_by={settings.rank_by}: one of {', '.join(MEASURES)} is needed."
            f"{nearest(settings.rank_by, list(MEASURES))}"
        )
    check_numbers(settings)
    return claims_from(flatten(asdict(settings.claims)))


def claims_for(claims: dict[str, Any], typed: Sequence[str]) -> Callable[[Group], tuple[Claims, str]]:
    """The thresholds of a group: the report's, over them its experiment's `claims`, over these what was typed."""
    report = flatten(claims)

    def decided(key: str) -> bool:
        return any(key == node or key.startswith(f"{node}.") or not node for node in typed)

    def of(group: Group) -> tuple[Claims, str]:
        """The thresholds of one group, and what is wrong with them."""
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


def _sheets(found: Found, groups: list[Group], boards: list[Board], judge: Judge, claims: Claims) -> list[Sheet]:
    """Every table of the report: each is written as a CSV file, and shown on the page unless it is there already."""
    first = claims.references[0]
    states = {
        group.id: (
            judge.verdict(group, board, first, "validation").state,
            judge.verdict(group, board, first, "test").state,
        )
        for board in boards
        for group in board.groups
    }
    made = {
        "results": ("A row per run.", tables.results(found.runs, groups, states)),
        "groups": ("A row per group of runs alike but for the seed.", tables.group_rows(groups, boards, states)),
        "wnf": ("A row per number of every claim.", tables.claim_rows(boards, judge, claims.references)),
    }
    return [
        Sheet(name, TITLES[name], words, rows, columns, on_page=False, in_report=IN_REPORT.get(name, ()))
        for name, (words, (rows, columns)) in made.items()
    ]


def _write_plots(folder: Path, plots: Sequence[Plot]) -> None:
    """Writes the plots and removes those of an earlier report that are no longer drawn."""
    folder.mkdir(exist_ok=True)
    names = {plot.name for plot in plots}
    for pattern in OWN_PLOTS:
        for old in folder.glob(pattern):
            if old.stem not in names:
                old.unlink()
    for plot in plots:
        (folder / f"{plot.name}.png").write_bytes(plot.image)


def _write_script(out: Path, found: Found, report: Sequence[str]) -> None:
    """reproduce.sh, with the pretraining runs that the runs started from, wherever they lie; `report`: the overrides."""
    records = {run.record.hash: run.record for run in reversed(found.runs) if run.record.status != "completed"}
    records.update(found.parents)
    records.update({run.record.hash: run.record for run in reversed(found.runs) if run.record.status == "completed"})
    patches: dict[str, str] = {}
    for run in found.runs:
        patches.update(read_patch(run.folder, run.record))
    write_atomic(out / "reproduce.sh", script(list(records.values()), report, patches=patches))
    os.chmod(out / "reproduce.sh", 0o755)


def cell(value: Any) -> str:
    """A value in a Markdown table: four digits of a number, a dash for what is missing."""
    if value is None:
        return compare.NONE
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else str(round(value))
    return str(value)


def in_markdown(sheets: Sequence[Sheet], boards: Sequence[Board]) -> str:
    """The further tables of every board, for report.md."""
    blocks = []
    for board in boards:
        for sheet in sheets:
            if sheet.board == board.slug and sheet.on_page:
                table = sheet.header, [[cell(row.get(name)) for name in sheet.header] for row in sheet.rows]
                blocks.append(f"## {board.name}: {sheet.title}\n\n{sheet.words}\n\n{compare.markdown(table)}\n")
    for sheet in sheets:
        header = [name for name in sheet.in_report if any(row.get(name) is not None for row in sheet.rows)]
        if header:
            table = header, [[cell(row.get(name)) for name in header] for row in sheet.rows]
            blocks.append(f"## {sheet.title.capitalize()}\n\n{sheet.words} More in {sheet.name}.csv.\n\n{compare.markdown(table)}\n")
    return "".join(f"\n{block}" for block in blocks)


def shown_not_run(text: str) -> str:
    """Markdown in which HTML and links are letters: names, causes and settings of a run come from anywhere, and what
    shows a .md file would take them for its own. Nothing else in `text` is HTML or a link."""
    return escape(text, quote=False).replace("](", "]\\(")

"""The page, one self-contained HTML file: the answer first, then tables, plots, failures, settings, environment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Sequence

from xcls.report import compare, crossover
from xcls.report.aggregate import Board, Group
from xcls.report.answer import decide
from xcls.report.answer_lines import claims_in_words, mechanism_lines
from xcls.report.best import Best
from xcls.report.collect import Found
from xcls.report.crossover import Crossover
from xcls.report.measures import MEASURES
from xcls.report.page_parts import SIGNS, escape, figure, folded, note, sheet_table, table
from xcls.report.page_script import SCRIPT, policy
from xcls.report.page_settings import environment, settings_parts
from xcls.report.page_style import STYLE
from xcls.report.plot_style import Plot
from xcls.report.settings import Claims
from xcls.report.sheet import Sheet
from xcls.report.verdict import Judge

FILES = (
    "results.csv has a row per run, groups.csv a row per group, wnf.csv every number of every claim, report.md the "
    "tables as text, plots/ the pictures; reproduce.sh makes it all again from a fresh clone. A text in a CSV file that "
    "a spreadsheet would take for a formula (it begins with = + - @, and is no number) has an apostrophe before it."
)
NO_BENCH = (
    "No measurement of mode=bench was found, so the runs' own cost ratios stand alone: other work on the machine may have "
    "slowed one mechanism and not the other. Measure them in turns: python run.py mode=bench 'bench.attentions=[sdpa,…]'."
)
MOST_COSTS = 9  # measures of one table
LONGEST = 24  # rows of a table that is open when the page is
ORDER = {"finetune": 0, "baseline": 1, "pretrain": 2}


@dataclass(frozen=True)
class Story:
    """All that the page tells."""

    boards: Sequence[Board]
    groups: Sequence[Group]
    found: Found
    judge: Judge
    claims: Claims  # the report's; an experiment may have its own
    studies: Sequence[str]
    plots: Sequence[Plot]
    sheets: Sequence[Sheet]
    notes: Sequence[str]
    rank_by: str
    settings: dict[str, Any]  # conf/report.yaml as used
    crossings: Sequence[Crossover] = ()
    best: Sequence[Best] = ()

    @property
    def references(self) -> Sequence[str]:
        """The mechanisms that others are compared with; the first decides."""
        return self.claims.references


def page(story: Story) -> str:
    """The whole page as HTML text; everything that comes from a record is escaped, nothing is loaded from elsewhere."""
    names = ", ".join(board.name for board in story.boards) or "no fine-tuned runs yet"
    title = f"Attention mechanisms for text classification: {names}"
    sections = [(board.name, f"board-{number}", _board(board, story)) for number, board in enumerate(story.boards)]
    sections += [(name, anchor, parts) for name, anchor, parts in _rest(story) if parts]
    links = "".join(f'<li><a href="#{anchor}">{escape(name)}</a></li>' for name, anchor, _ in sections)
    body = [
        f"<header><h1>{escape(title)}</h1>",
        *(f'<p class="study">{escape(study)}</p>' for study in story.studies),
        "</header><main>",
    ]
    body += [_answer(board, story, number) for number, board in enumerate(story.boards)]
    body += [f"{note(item.text)}<pre>{escape(item.command)}</pre>" for item in story.best]
    body += [note(text) for text in story.notes]
    if story.boards:
        told = "".join(f"<p>{escape(text)}</p>" for text in _passing(story))
        body.append(folded("What passing means", told))
    body.append(f'<nav aria-label="Contents"><ul>{links}</ul></nav>')
    for name, anchor, parts in sections:
        body += [f'<section id="{anchor}"><h2>{escape(name)}</h2>', *parts, "</section>"]
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy()}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    inside = "\n".join(body)
    end = f"</main>\n<script>{SCRIPT}</script></body></html>\n"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{inside}\n{end}'


def _passing(story: Story) -> list[str]:
    """What passing means by the thresholds that the groups are judged by: an experiment's own, else the report's."""
    groups = [group for board in story.boards for group in board.groups if group.runs]
    used: dict[str, tuple[Claims, list[str]]] = {}
    for group in groups:
        claims, fault = story.judge.claims_for(group)
        if not fault:
            used.setdefault(repr(claims), (claims, []))[1].append(group.label)
    told = []
    for claims, labels in used.values() or [(story.claims, [])]:
        whom = "" if len(used) < 2 else f"Of {', '.join(dict.fromkeys(labels))}: "
        told.append(f"{whom}On validation, over at least {claims.min_seeds} seeds, at {claims.seq_len} tokens.")
        told += claims_in_words(claims)
    return told


def _answer(board: Board, story: Story, number: int) -> str:
    """The box on top: the decision on one board in words, what qualifies it, and every mechanism in a sentence."""
    answer = decide(board, story.judge, story.references)
    but = "".join(f"<p>{escape(text)}</p>" for text in answer.but)
    lines = mechanism_lines(board, story.judge, story.references[0])
    items = "".join(
        f'<li class="{line.state}"><span>{SIGNS.get(line.state, "·")}</span>'
        f"<span><b>{escape(line.name)}:</b> {escape(line.text)}</span></li>"
        for line in lines
    )
    following = f'<p class="next">Next: {escape(answer.next)}</p>' if answer.next else ""
    return (
        f'<section class="answer {answer.state}" aria-labelledby="answer-{number}">'
        f'<h2 id="answer-{number}">{escape(board.name)}</h2>'
        f'<p class="headline"><b class="{answer.state}">{SIGNS[answer.state]}</b> {escape(answer.headline)}</p>'
        f"{but}<ul>{items}</ul>{following}</section>"
    )


def _board(board: Board, story: Story) -> list[str]:
    """The section of one board: comparison, plots, claims, and whatever tables belong to it."""
    first = story.references[0]
    header, rows = compare.comparison(board, story.judge, first)
    parts = [
        table(
            header,
            rows,
            f"The mechanisms on {board.name}, ranked by {story.rank_by}, then the baseline.",
            file="groups.csv",
        )
    ]
    parts += [note(text) for text in compare.footnotes(board, first)]
    parts.append(_pictures([plot for plot in story.plots if plot.board == board.slug]))
    parts += _sheets([sheet for sheet in story.sheets if sheet.board == board.slug])
    parts += ["<h3>Claims</h3>", note(compare.MEANING)]
    for reference in story.references:
        for split in ("validation", "test"):
            name = f"Against {reference}, macro-F1 on {split}"
            header, rows = compare.claims_table(board, story.judge, reference, split)
            decides = (reference, split) == (first, "validation")
            shown = table(header, rows, f"{name}: every claim with value, threshold and margin.", file="wnf.csv")
            parts.append(folded(name, shown, opened=decides and len(rows) <= 2 * LONGEST, prints=decides))
    return parts


def _pictures(plots: Sequence[Plot]) -> str:
    """Plots side by side where there is room, each under its title."""
    shown = "".join(f"<div><h3>{escape(plot.title)}</h3>{figure(plot)}</div>" for plot in plots)
    return f'<div class="plots">{shown}</div>' if plots else ""


def _sheets(sheets: Sequence[Sheet]) -> list[str]:
    """Tables under their titles, or behind them where they are long."""
    return [
        folded(sheet.title, sheet_table(sheet))
        if sheet.folded or len(sheet.rows) > LONGEST
        else f"<h3>{escape(sheet.title)}</h3>{sheet_table(sheet)}"
        for sheet in sheets
        if sheet.on_page
    ]


def _rest(story: Story) -> list[tuple[str, str, list[str]]]:
    """(name, anchor, HTML) of the sections after the boards; those without any are left out."""
    boards = {board.slug for board in story.boards}
    benches = [plot for plot in story.plots if plot.board is None and plot.name.startswith("bench-")]
    steps = [plot for plot in story.plots if plot.board is None and plot.name.startswith("step-")]
    others = [plot for plot in story.plots if plot.board is None and plot not in (*benches, *steps)]
    failed = compare.unfinished(story.found)
    caption = "Every run that did not complete and every record that cannot be used, with its cause and its folder. "
    caption += "They are in no mean and in no ranking."
    unfinished = [table(*failed, caption)] if failed[1] else [note("None.")]
    used = f"<pre>{escape(json.dumps(story.settings, indent=1, ensure_ascii=False, default=str))}</pre>"
    return [
        (crossover.TITLE, "crossover", _crossings(story, steps)),
        ("More tables", "tables", _sheets([sheet for sheet in story.sheets if sheet.board not in boards])),
        ("Measured apart (mode=bench)", "bench", _bench(story, benches)),
        ("Pretraining", "pretraining", [_pictures(others)] if others else []),
        ("Runs that did not complete", "failed", unfinished),
        ("All groups", "groups", _everything(story.groups, story.rank_by) if story.groups else []),
        ("Settings", "settings", settings_parts(story.groups)),
        ("Environment", "environment", [environment(story.found.runs), *(note(text) for text in story.found.notes)]),
        (
            "Thresholds and files",
            "files",
            [folded("conf/report.yaml as used", used), note(f"Beside this page: {FILES}")],
        ),
    ]


def _crossings(story: Story, plots: Sequence[Plot]) -> list[str]:
    """Training steps against length: the plots, then of each its table and what it says."""
    parts = [_pictures(plots)] if plots else []
    for one in story.crossings:
        header, rows = crossover.table(one, story.boards)
        parts.append(table(header, rows, crossover.caption(one), file=f"{one.bench.place}/results.csv"))
        parts += [note(text) for text in crossover.remarks(one)]
    return parts


def _bench(story: Story, plots: Sequence[Plot]) -> list[str]:
    """The plots of mode=bench, and a word where nothing of it can stand beside the runs' own ratios."""
    parts = [_pictures(plots)] if plots else []
    if story.boards and not any(sheet.name == "bench_ratios" for sheet in story.sheets):
        parts.append(note(NO_BENCH))
    return parts


def _everything(groups: Sequence[Group], rank_by: str) -> list[str]:
    """All groups with all measures that any of them has: in tables that a sheet of paper is wide enough for."""
    measures = [name for name in MEASURES if any(group.stat(name).n for group in groups)]
    ordered = sorted(
        groups, key=lambda g: (ORDER[g.record.mode], str(g.key.get("choice.dataset")), g.rank or 10**9, g.label, g.id)
    )  # fmt: skip
    scores = [name for name in measures if MEASURES[name].place.startswith("metrics")]
    costs = [name for name in measures if name not in scores]
    parts = [("Scores", scores), ("Costs", costs[:MOST_COSTS]), ("Costs, continued", costs[MOST_COSTS:])]
    return [_measured(ordered, title, names, rank_by) for title, names in parts if names]


def _measured(ordered: Sequence[Group], title: str, measures: Sequence[str], rank_by: str) -> str:
    """All groups with some measures."""
    rows = [
        [
            group.label,
            group.record.mode,
            group.rank,
            len(group.runs),
            len(group.others),
            *(_stat(group, name) for name in measures),
        ]
        for group in ordered
    ]
    header = ["group", "mode", f"rank by {rank_by}", "n", "not completed", *measures]
    middle = "median" if title.startswith("Costs") else "mean"
    caption = f"{title}: {middle} ± sample standard deviation over seeds (best in brackets), ranked by {rank_by}."
    return table(header, rows, f"{caption} Unrounded: groups.csv.", file="groups.csv")


def _stat(group: Group, name: str) -> str:
    stat = group.stat(name)
    if stat.middle is None:
        return compare.NONE
    form = (lambda value: f"{value:.4f}") if MEASURES[name].place.startswith("metrics") else compare.amount
    spread = f" ± {form(stat.sd)}" if stat.sd else ""
    return f"{form(stat.middle)}{spread}" + (f" ({form(stat.best)})" if stat.n > 1 and stat.best is not None else "")

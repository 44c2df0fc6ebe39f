"""The report as text: what `report.py` prints, and report.md."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Sequence

from xcls.quoting import quoted
from xcls.record import is_guess
from xcls.report import bench
from xcls.report.bench import Crossover
from xcls.report.groups import Board, class_count
from xcls.report.load import Run
from xcls.report.measures import MEASURES, NONE, TableText
from xcls.report.summary import comparison, footnotes, headline, matrix, unfinished
from xcls.report.tables import Sheet, Study

MOST_BOARDS = 3  # printed
MOST_PRINTED, MOST_ROWS = 8, 40  # rows of all tables printed together, two of each at least; of a table in report.md


def printed(study: Study, *, findings: Sequence[str], remarks: int, page: str, best: Sequence[Best]) -> str:
    """The text for stdout. findings: sentences; remarks: how many more stand on the page; page: its path."""
    blocks, following, boards = study.names[:MOST_BOARDS], [], study.boards
    most = max(2, MOST_PRINTED // max(1, min(len(boards), MOST_BOARDS)))
    for board in boards[:MOST_BOARDS]:
        told = headline(board, study.judge, study.references)
        following += [f"Next: {told.next}"] if told.next else []
        table = comparison(board, study.judge, study.references[0])
        blocks += [f"{board.name}: {told.text}", markdown(shortened(table, len(board.groups), most))]
    lost = len(unfinished(study.found)[1])
    more = [f"{len(boards) - MOST_BOARDS} more data sets"] if len(boards) > MOST_BOARDS else []
    more += [f"{lost} runs that did not complete, with their causes"] if lost else []
    more += [f"{remarks} costs on which runs and mode=bench disagree"] if remarks else []
    last = [f"{len(study.found.runs)} runs. The page: {page}" + (f" (also: {'; '.join(more)})" if more else "")]
    text = "\n\n".join([*blocks, *findings, "\n".join([*last, *dict.fromkeys(following)])]) + "\n"
    return text + "".join(f"\n{item.text}\n\n    {item.command}\n" for item in best)


def report_md(
    study: Study, sheets: Sequence[Sheet], *, notes: Sequence[str], crossings: Sequence[Crossover], best: Sequence[Best]
) -> str:
    """The whole of report.md. What comes from a run is letters there, neither HTML nor a link."""
    blocks, judge, references = study.names, study.judge, study.references
    for board in study.boards:
        told, claims = headline(board, judge, references), matrix(board, judge, references[0])
        following = f"Next: {told.next}" if told.next else ""
        blocks += [f"## {board.name}", told.text, *told.notes, following, markdown(claims.text)]
        blocks.append("\n".join(f"{place}. {note}" for place, note in enumerate(claims.notes, 1)))
        blocks.append(markdown(shortened(comparison(board, judge, references[0]), len(board.groups), MOST_ROWS)))
        blocks.append("\n".join(footnotes(board, references[0])))
    failed = unfinished(study.found)
    blocks += ["## Not completed (in no mean, in no ranking)", markdown(failed)] if failed[1] else []
    blocks += notes
    for one in crossings:
        table = markdown(bench.table(one, study.boards))
        blocks += [f"## {bench.TITLE}", bench.caption(one), table, *bench.remarks(one)]
    for board in study.boards:
        for sheet in (sheet for sheet in sheets if sheet.board == board.slug):
            blocks += _sheet(sheet, f"{board.name}: {sheet.title}", sheet.words, sheet.header)
    for sheet in sheets:
        columns = [name for name in sheet.in_report if any(row.get(name) is not None for row in sheet.rows)]
        if columns:
            blocks += _sheet(sheet, sheet.title.capitalize(), f"{sheet.words} More in {sheet.name}.csv.", columns)
    for item in best:  # the command is in a block of code, where nothing is HTML or a link
        blocks += [item.text, f"    {item.command}"]
    commands = {f"    {item.command}" for item in best}
    return "\n\n".join(block if block in commands else letters(block) for block in blocks if block) + "\n"


def _sheet(sheet: Sheet, title: str, words: str, columns: Sequence[str]) -> list[str]:
    rows = [[cell(row.get(name)) for name in columns] for row in sheet.rows]
    return [f"## {title}", words, markdown((list(columns), rows))]


def shortened(table: TableText, keep: int, most: int) -> TableText:
    """The table with at most `most` of its first `keep` rows, and those after them."""
    header, rows = table
    if keep > most:
        rows = [*rows[:most], [f"… {keep - most} more in groups.csv", *[""] * (len(header) - 1)], *rows[keep:]]
    return header, rows


def markdown(table: TableText) -> str:
    """A table as Markdown, its columns aligned."""
    header, rows = table
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def cell(value: Any) -> str:
    """A value in a Markdown table: four digits of a number, a dash for what is missing."""
    if value is None:
        return NONE
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else str(round(value))
    return str(value)


def letters(text: str) -> str:
    """Markdown in which HTML and links are letters: names, causes and settings of a run come from anywhere, and what
    shows a .md file would take them for its own. Nothing else in `text` is HTML or a link."""
    return escape(text, quote=False).replace("](", "]\\(")


@dataclass(frozen=True)
class Best:
    """`text` names the run; `command` is for a shell in the project's folder."""

    text: str
    command: str


def best_runs(boards: Sequence[Board], rank_by: str, root: Path) -> list[Best]:
    """One for each board that has a completed fine-tuned run whose best checkpoint is there. Of a test score the run with the
    best validation macro-F1 counts: test selects nothing. `root`: the working directory, to which the runs' places are relative.
    """
    measure = MEASURES["macro_f1" if MEASURES[rank_by].place == "metrics.test" else rank_by]
    sign = 1 if measure.low_is_better else -1
    found = []
    for board in boards:
        runs = [run for group in board.groups for run in group.runs if _usable(run)]
        values = [(measure.of(run.record), run) for run in runs]
        values = [(sign * value, run.place, value, run) for value, run in values if value is not None]
        if values:
            _, _, value, run = min(values, key=lambda item: item[:2])
            exp = run.place if (root / "run.py").is_file() else str(run.folder)
            words = ["mode=predict", f"exp={quoted(exp)}", "input=new.csv", "output=predictions.csv"]
            text = f"The best run on {board.name} by {measure.name} ({value:.4g}) is {run.place}."
            text += " Predict with it (input: .csv, .txt, .jsonl, …):"
            found.append(Best(" ".join(text.split()), f"python run.py {' '.join(map(shlex.quote, words))}"))
    return found


def _usable(run: Run) -> bool:
    """Whether the run learned something, mode=predict can read it, and a shell its name."""
    classes = class_count(run.record)
    if classes and is_guess(MEASURES["macro_f1"].of(run.record), classes):
        return False
    return run.record.mode == "finetune" and (run.folder / "ckpt_best.pt").is_file() and str(run.folder).isprintable()

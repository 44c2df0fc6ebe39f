"""What `report.py` prints: the table, what was found, where the page is. All else is in report.md and on the page."""

from __future__ import annotations

from typing import Sequence

from xcls.report.aggregate import Board
from xcls.report.answer import decide
from xcls.report.collect import Found
from xcls.report.compare import comparison, markdown, unfinished
from xcls.report.verdict import Judge

MOST_BOARDS = 3
MOST_ROWS = 8  # of all tables together, two of each at least; the baselines come on top


def printed(
    boards: Sequence[Board], judge: Judge, references: Sequence[str], *, found: Found, studies: Sequence[str],
    findings: Sequence[str], remarks: int, page: str,
) -> str:  # fmt: skip
    """The text for stdout. findings: sentences; remarks: how many more stand on the page; page: its path."""
    blocks, nexts = list(studies[:MOST_BOARDS]), []
    for board in boards[:MOST_BOARDS]:
        answer = decide(board, judge, references)
        nexts += [answer.next] if answer.next else []
        header, rows = comparison(board, judge, references[0])
        ends, most = len(board.groups), max(2, MOST_ROWS // min(len(boards), MOST_BOARDS))
        if ends > most:
            rows = [*rows[:most], [f"… {ends - most} more in groups.csv", *[""] * (len(header) - 1)], *rows[ends:]]
        blocks += [f"{board.name}: {answer.headline}", markdown((header, rows))]
    blocks += findings
    more = [f"{len(boards) - MOST_BOARDS} more data sets"] if len(boards) > MOST_BOARDS else []
    lost = len(unfinished(found)[1])
    more += [f"{lost} runs that did not complete, with their causes"] if lost else []
    more += [f"{remarks} costs on which runs and mode=bench disagree"] if remarks else []
    last = [f"{len(found.runs)} runs. The page: {page}" + (f" (also: {'; '.join(more)})" if more else "")]
    return "\n\n".join([*blocks, "\n".join([*last, *(f"Next: {text}" for text in dict.fromkeys(nexts))])]) + "\n"

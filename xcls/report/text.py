"""The report as text: the table of groups, and what `report.py` prints."""

from __future__ import annotations

import shlex
from typing import Sequence

from xcls.report.claims import Study, difference_pp, find_reference, ratio, strictest
from xcls.report.groups import MACRO_F1, DatasetResults, Group
from xcls.report.load import Found, final_status
from xcls.report.measures import NONE, TextTable, amount, memory_measure, signed
from xcls.report.settings import quoted
from xcls.report.summary import headline

MOST_BOARDS, MOST_PRINTED = 3, 8  # printed: data sets, and rows of all their tables together, two of each at least


def comparison(board: DatasetResults, study: Study) -> TextTable:
    """The groups in the order of their rank, then the baselines; costs beside those of the reference."""
    reference = study.references[0]
    header = ["mechanism", "PASS_WNF", "PASS_WNF_TEST", "n", "macro-F1 validation", "macro-F1 test"]
    header += [f"vs {reference}, pp", "vs baseline, pp", "time/epoch, s", "tokens/s", "memory, MiB"]
    baseline = strictest(board.baselines)
    rows = []
    for group in board.groups:
        other, _ = find_reference(group, board, reference)
        states = [study.verdict(group, board, reference, split).state for split in ("validation", "test")]
        scores = [group.stat("macro_f1").text, group.stat("test_macro_f1").text]
        gaps = [_gap(group, other, board, study), _gap(group, baseline, board, study)]
        memory = _with_ratio(group, other, memory_measure(group.device.get("kind")))
        costs = [_with_ratio(group, other, "time_per_epoch"), amount(group.stat("tokens_per_s").middle), memory]
        rows.append([group.label, *states, str(len(group.runs)), *scores, *gaps, *costs])
    for group in board.baselines:
        default, tuned = group.stat("macro_f1"), group.stat("tuned_macro_f1")
        rows.append(_baseline_row(group, "", NONE))
        if tuned.mean is not None and default.mean is not None:
            rows.append(_baseline_row(group, "tuned_", signed((tuned.mean - default.mean) * 100)))
    return header, rows


def _baseline_row(group: Group, kind: str, gap: str) -> list[str]:
    """The baseline as the claims use it, or, of the kind `tuned_`, the one tuned on validation."""
    seconds = group.stat(f"{kind}train_seconds").middle
    took = NONE if seconds is None else f"{amount(seconds)} in all"
    label = group.label + (", tuned" if kind else "")
    scores = [group.stat(f"{kind}{name}").text for name in ("macro_f1", "test_macro_f1")]
    return [label, "", "", str(len(group.runs)), *scores, NONE, gap, took, NONE, NONE]


def _gap(group: Group, other: Group | None, board: DatasetResults, study: Study) -> str:
    """The difference of validation macro-F1 in percentage points, with its interval in brackets."""
    if other is None or other is group:
        return NONE
    around = study.differences.between(group, other, board, "validation").text
    return signed(difference_pp(group, other, "validation")) + (f" ({around})" if around else "")


def _with_ratio(group: Group, other: Group | None, name: str) -> str:
    """The median of a cost, and in brackets its ratio to the reference."""
    middle = group.stat(name).middle
    share = ratio(group, other, name) if other is not None and other is not group else None
    return amount(middle) + (f" ({share:.2f}×)" if share is not None else "")


def unfinished(found: Found) -> TextTable:
    """Every run that did not complete, with its cause and folder; then the records that cannot be read."""
    rows = [[run.record.run, *final_status(run), run.place] for run in found.runs if run.record.status != "completed"]
    rows += [["", "unreadable", reason, place] for place, reason in found.unreadable]
    return ["run", "status", "cause", "folder"], rows


def printed(study: Study, findings: Sequence[str], page: str, best: Sequence[tuple[str, str]]) -> str:
    """The text for stdout. findings: sentences; page: its path."""
    names = sorted({run.record.study for run in study.found.runs if run.record.study})
    blocks, following, boards = names[:MOST_BOARDS], [], study.boards
    most = max(2, MOST_PRINTED // max(1, min(len(boards), MOST_BOARDS)))
    for board in boards[:MOST_BOARDS]:
        told = headline(board, study)
        following += [f"Next: {told.next}"] if told.next else []
        header, rows = comparison(board, study)
        kept = [*rows[: min(most, len(board.groups))], *rows[len(board.groups) :]]
        left = f"\n… {len(rows) - len(kept)} more groups in groups.csv" if len(rows) > len(kept) else ""
        blocks += [f"{board.name}: {told.text}", markdown((header, kept)) + left]
    lost = len(unfinished(study.found)[1])
    more = [f"{len(boards) - MOST_BOARDS} more data sets"] if len(boards) > MOST_BOARDS else []
    more += [f"{lost} runs that did not complete, with their causes"] if lost else []
    last = [f"{len(study.found.runs)} runs. The page: {page}" + (f" (also: {'; '.join(more)})" if more else "")]
    text = "\n\n".join([*blocks, *findings, "\n".join([*last, *dict.fromkeys(following)])]) + "\n"
    return text + "".join(f"\n{about}\n\n    {command}\n" for about, command in best)


def markdown(table: TextTable) -> str:
    """A table as Markdown, its columns aligned."""
    header, rows = table
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def best_runs(boards: Sequence[DatasetResults]) -> list[tuple[str, str]]:
    """(the run, the command that predicts with it) of the best run on each data set by validation macro-F1.

    Only fine-tuned runs whose best checkpoint is there, and only those that learned something.
    """
    found = []
    for board in boards:
        groups = [group for group in board.groups if not group.learned_nothing]
        runs = [run for group in groups for run in group.runs if (run.folder / "ckpt_best.pt").is_file()]
        scored = [(score, run.place) for run in runs if (score := MACRO_F1.of(run.record)) is not None]
        if scored:
            score, place = max(scored)
            text = f"The best run on {board.name} by macro-F1 on validation ({score:.3f}) is {place}. Predict with it:"
            words = ["python", "run.py", "mode=predict", f"exp={quoted(place)}", "input=new.csv", "output=out.csv"]
            found.append((text, shlex.join(words)))
    return found

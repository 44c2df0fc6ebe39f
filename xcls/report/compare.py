"""The tables a person reads (on the screen, in report.md and on the page), and the answer in plain sentences."""

from __future__ import annotations

from typing import Sequence

from xcls.report.aggregate import Board, Group, Stat
from xcls.report.circumstances import unlike_groups
from xcls.report.collect import Found
from xcls.report.cost_ratio import excluded_note
from xcls.report.cut import cut_note
from xcls.report.differences import OPEN, RATIO, Interval
from xcls.report.endings import ending
from xcls.report.labels import BASELINE
from xcls.report.measures import memory_measure
from xcls.report.verdict import (
    FAIL,
    MISSING,
    PASS,
    Claim,
    Judge,
    Measured,
    Verdict,
    difference_pp,
    find_reference,
    ratio,
    strictest,
)

NONE = "–"
MEANING = (
    "time and memory ratio: median of the group / median of the reference; its interval is Student's t over the seeds' "
    "logarithms. Where it spans the threshold, or one seed's cost is far from the others' (claims.max_cost_factor), the claim "
    "is OPEN, with the run to repeat, and PASS_WNF is MISSING. mode=bench: the same ratio measured in turns. macro-F1 loss: reference − group; gain: group − "
    "baseline; spread: best seed − worst; all in percentage points. margin: distance to the threshold, positive where "
    "it holds. "
    "WNF-1 cost needs one of the two ratios, and the loss. Memory is the allocator's peak on a GPU, weights and AdamW's state "
    "included, and the growth of the process in training on a CPU, without the weights: no claim compares the two. interval of a difference: had other examples and other seeds "
    "been drawn, 95 % unless intervals.level says otherwise (docs/intervals.md); where it spans the threshold one cannot "
    "tell. The verdict on macro-F1 is by the value, as the rule is written; this interval decides nothing."
)
MEMORY = {  # by the kind of the device
    "cuda": "Memory on a GPU: the most that torch's allocator held in training, with weights, gradients and AdamW's state.",
    "cpu": "Memory on a CPU: growth of peak RSS from before the first step, so with gradients and AdamW's state, without the weights.",
}
Table = tuple[list[str], list[list[str]]]


def markdown(table: Table) -> str:
    """A table as Markdown, its columns aligned."""
    header, rows = table
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def score(stat: Stat) -> str:
    """`0.912 ± 0.003`: mean and sample standard deviation."""
    if stat.mean is None:
        return NONE
    return f"{stat.mean:.3f}" + ("" if stat.sd is None else f" ± {stat.sd:.3f}")


def signed(value: float | None) -> str:
    """`+5.02` percentage points."""
    return NONE if value is None else f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")


def amount(value: float | None) -> str:
    """A number with three significant digits, or whole from 1,000 on."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def interval_text(interval: Interval | None) -> str:
    """`−1.20 … +0.31` percentage points, `0.71 … 0.78` of a ratio; '' without an interval."""
    if interval is None or interval.low is None:
        return ""
    if interval.unit == RATIO:
        return f"{amount(interval.low)} … {amount(interval.high)}"
    return f"{signed(interval.low)} … {signed(interval.high)}"


def _gap(group: Group, other: Group | None, board: Board, judge: Judge) -> str:
    """The difference of validation macro-F1 in percentage points, with its interval in brackets."""
    if other is None or other is group:
        return NONE
    interval = None if judge.differences is None else judge.differences.between(group, other, board, "validation")
    around = interval_text(interval)
    return signed(difference_pp(group, other, "validation")) + (f" ({around})" if around else "")


def _beside(group: Group, other: Group | None, name: str) -> str:
    """The median of a cost, and in brackets its ratio to the reference."""
    middle = group.stat(name).middle
    share = ratio(group, other, name) if other is not None and other is not group else None
    mark = "*" if group.shared and middle is not None else ""
    unlike = " †" if share is not None and other is not None and unlike_groups(group, other) else ""
    return amount(middle) + mark + (f" ({share:.2f}×{unlike})" if share is not None else "")


def comparison(board: Board, judge: Judge, reference: str) -> Table:
    """One board: the mechanisms in the order of their rank, then the baselines; costs beside those of the reference."""
    header = [
        "mechanism", "PASS_WNF", "PASS_WNF_TEST", "n", "macro-F1 validation", "macro-F1 test", f"vs {reference}, pp",
        "vs baseline, pp", "time/epoch, s", "tokens/s", "memory, MiB",
    ]  # fmt: skip
    baseline = strictest(board.baselines)
    rows = []
    for group in board.groups:
        other, _ = find_reference(group, board, reference)
        rows.append([
            group.label, *(judge.verdict(group, board, reference, split).state for split in ("validation", "test")),
            str(len(group.runs)), score(group.stat("macro_f1")), score(group.stat("test_macro_f1")),
            _gap(group, other, board, judge), _gap(group, baseline, board, judge),
            _beside(group, other, "time_per_epoch"), amount(group.stat("tokens_per_s").middle),
            _beside(group, other, memory_measure(group.device.get("kind"))),
        ])  # fmt: skip
    for group in board.baselines:
        rows += _baseline_rows(group)
    return header, rows


def _baseline_rows(group: Group) -> list[list[str]]:
    """The baseline as the claims use it, and the one tuned on validation, where it was fitted."""
    seconds = amount(group.stat("train_seconds").middle)
    default, test = group.stat("macro_f1"), group.stat("test_macro_f1")
    rows = [
        [group.label, "", "", str(len(group.runs)), score(default), score(test), NONE, NONE, f"{seconds} in all", NONE, NONE]
    ]
    tuned, on_test = group.stat("tuned_macro_f1"), group.stat("tuned_test_macro_f1")
    if tuned.mean is not None and default.mean is not None:
        gap, seconds = signed((tuned.mean - default.mean) * 100), group.stat("tuned_train_seconds").middle
        took = NONE if seconds is None else f"{amount(seconds)} in all"
        scores = [score(tuned), score(on_test)]
        rows.append([f"{group.label}, tuned", "", "", str(tuned.n), *scores, NONE, gap, took, NONE, NONE])
    return rows


def footnotes(board: Board, reference: str) -> list[str]:
    """What one must know to read the comparison."""
    notes = [
        "n: completed seeds; ±: sample standard deviation over them. Costs: the median over them. In brackets: the ratio to "
        f"the {reference} group equal in everything but attention."
    ]
    notes += [note] if (note := excluded_note(board.groups)) else []
    kinds = {group.device.get("kind") for group in board.groups}
    notes += [text for kind, text in MEMORY.items() if kind in kinds]
    if any(group.shared for group in board.groups):
        notes.append("*: another job ran on the same device; no cost claim is made from it.")
    for group in board.groups:
        other, _ = find_reference(group, board, reference)
        unlike = [] if other is None else unlike_groups(group, other)
        if unlike:
            notes.append(f"†: {group.label} and {other.label} were measured differently: {'; '.join(unlike)}.")
    if len({repr(group.device) for group in board.groups if group.runs}) > 1:
        notes.append(
            "The runs are from different devices or settings of the device: their costs do not compare across these."
        )
    cut = cut_note(run.record for group in board.groups for run in group.runs)
    return notes if cut is None else [*notes, cut]


def claims_table(board: Board, judge: Judge, reference: str, split: str) -> Table:
    """Every claim about the groups of a board with value, threshold and margin."""
    header = [
        "mechanism", "n", "claim", "verdict", "measured", "value", "threshold", "margin", "interval", "interval says",
        "mode=bench", "reason",
    ]  # fmt: skip
    rows = []
    for group in board.groups:
        verdict = judge.verdict(group, board, reference, split)
        if not verdict.claims:
            rows.append([group.label, str(len(group.runs)), NONE, MISSING, *[""] * 7, verdict.reason])
        for claim in verdict.claims:
            for number in claim.measured:
                rows.append([
                    group.label, str(len(group.runs)), claim.code, claim.state, number.name, _exact(number.value),
                    _bound(number), signed(number.margin), interval_text(number.interval), number.told,
                    "" if number.bench is None else f"{number.bench:.2f}×", why(claim, number),
                ])  # fmt: skip
    return header, rows


def why(claim: Claim, number: Measured) -> str:
    """Everything that must be said beside a number of a claim: why it is missing, why there is no interval, and in
    what the costs compared differ."""
    parts = [claim.reason or number.reason]
    if number.interval is not None and number.interval.reason:
        parts.append(f"no interval: {number.interval.reason}")
    if number.bench is not None:
        parts.append(f"mode=bench agrees: {number.bench_says}")
    if claim.remark and "ratio" in number.name:
        parts.append(f"measured differently: {claim.remark}")
    return "; ".join(part for part in parts if part)


def _exact(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def unfinished(found: Found) -> Table:
    """Every run that did not complete, with its cause and folder; then the records that cannot be read."""
    rows = [[run.record.run, *ending(run), run.place] for run in found.runs if run.record.status != "completed"]
    rows += [["", "unreadable", item.reason, item.place] for item in found.unreadable]
    return ["run", "status", "cause", "folder"], rows


def answer(board: Board, judge: Judge, reference: str) -> list[str]:
    """The board in plain sentences: what each mechanism saves, at which loss, does it pass; then the baseline."""
    if not board.groups:
        return ["No encoder was fine-tuned on these rows yet, only the baseline was fitted."]
    sentences = []
    for group in board.groups:
        verdict = judge.verdict(group, board, reference, "validation")
        if verdict.claims and verdict.reference_group is not group and group.runs:
            sentences.append(_of_mechanism(group, verdict))
        if len(sentences) == 4:
            break
    if not sentences:
        sentences.append(f"No mechanism can be compared with {reference} yet: see the reasons in the table of claims.")
    return [*sentences, *_of_baseline(board)]


def _of_mechanism(group: Group, verdict: Verdict) -> str:
    other = verdict.reference_group
    end = {
        PASS: "It passes.",
        FAIL: f"It fails: {_failed(verdict)}.",
        MISSING: f"No verdict: {'; '.join(verdict.reasons)}.",
    }
    n = f"n = {len(group.runs)}"
    if other is None:
        return f"{group.label} ({n}): {end[verdict.state]}"
    if len(other.runs) != len(group.runs):
        n += f" against {len(other.runs)}"
    name = memory_measure(group.device.get("kind"))
    parts = [
        _more_or_less(ratio(group, other, "time_per_epoch"), "time per epoch"),
        _more_or_less(ratio(group, other, name), "memory"),
    ]
    loss = difference_pp(group, other, "validation")
    around = interval_text(_interval(verdict))
    told = " and ".join(part for part in parts if part) or "an unknown amount of time and memory"
    at = "" if loss is None else f" at {signed(loss)} pp macro-F1" + (f" ({around})" if around else "")
    unlike = f" Measured differently: {'; '.join(unlike_groups(group, other))}." if unlike_groups(group, other) else ""
    return f"{group.label} takes {told}{at} against {other.label} ({n}). {end[verdict.state]}{_open(verdict)}{unlike}"


def _interval(verdict: Verdict) -> Interval | None:
    """The interval of `group - reference`, from the claim about the loss."""
    found = [number.interval for claim in verdict.claims for number in claim.measured if "loss" in number.name]
    return found[0].turned if found and found[0] is not None else None


def _open(verdict: Verdict) -> str:
    """Which thresholds of macro-F1 these runs are too few to tell about."""
    numbers = {number.name: number for claim in verdict.claims for number in claim.measured if number.told == OPEN and number.interval.unit != RATIO}
    told = [f"{name} {interval_text(number.interval)}, {_bound(number)} is claimed" for name, number in numbers.items()]
    return f" By the interval one cannot tell: {'; '.join(told)}." if told else ""


def _more_or_less(share: float | None, what: str) -> str:
    if share is None:
        return ""
    percent = round(abs(1 - share) * 100)
    return f"as much {what}" if percent == 0 else f"{percent} % {'less' if share < 1 else 'more'} {what}"


def _failed(verdict: Verdict) -> str:
    """The claims that fail, with what decided them."""
    told = []
    for claim in verdict.claims:
        if claim.state == FAIL:
            bad = [_told(number) for number in claim.measured if number.state == FAIL]
            told.append(f"{claim.code} ({claim.reason or '; '.join(bad)})")
    return ", ".join(told)


def _told(number: Measured) -> str:
    return f"{number.name} {_exact(number.value)}, {_bound(number)} is claimed"


def _bound(number: Measured) -> str:
    return f"{'≤' if number.relation == '<=' else '≥'} {number.threshold:g}"


def _of_baseline(board: Board) -> list[str]:
    baseline = strictest(board.baselines)
    scored = [(group.stat("macro_f1").mean, group) for group in board.groups if group.stat("macro_f1").mean is not None]
    if baseline is None or not scored:
        return []
    best, group = max(scored, key=lambda item: (item[0], item[1].label))
    mean, seconds = baseline.stat("macro_f1").mean, baseline.stat("train_seconds").middle
    took = "" if seconds is None else f" in {amount(seconds)} s"
    gap = difference_pp(group, baseline, "validation")
    apart = "" if gap is None else f": {abs(gap):.2f} pp {'above' if gap >= 0 else 'below'} it"
    return [
        f"{BASELINE} reaches {mean:.3f} macro-F1 on the same rows{took}; the best encoder, {group.label}, "
        f"{best:.3f}{apart}."
    ]


def summary(
    boards: Sequence[Board], judge: Judge, reference: str, found: Found, studies: Sequence[str], most: int = 40
) -> str:
    """The Markdown that report.md begins with; at most `most` rows of a table, the rest is in groups.csv."""
    blocks = list(studies)
    for board in boards:
        header, rows = comparison(board, judge, reference)
        ends = len(board.groups)
        if len(rows) > most:
            rows = [
                *rows[: min(most, ends)],
                [f"… {ends - most} more in groups.csv", *[""] * (len(header) - 1)],
                *rows[ends:],
            ]
        blocks += [
            f"## {board.name}",
            "\n".join(f"- {line}" for line in answer(board, judge, reference)),
            markdown((header, rows)),
        ]
        blocks.append("\n".join(footnotes(board, reference)))
    failed = unfinished(found)
    if failed[1]:
        blocks += ["## Not completed (in no mean, in no ranking)", markdown(failed)]
    return "\n\n".join(blocks) + "\n"

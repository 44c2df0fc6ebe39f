"""The decision in words: one sentence on top of the page, what qualifies it, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Sequence

from xcls.record import MORE_TRAINING
from xcls.report.aggregate import Board, Group
from xcls.report.answer_lines import cheapest_nearby, doubts, measured_differently
from xcls.report.compare import amount, signed
from xcls.report.labels import BASELINE
from xcls.report.measures import memory_measure
from xcls.report.verdict import (
    FAIL,
    MISSING,
    PASS,
    UNDECIDED,
    Judge,
    Verdict,
    difference_pp,
    find_reference,
    ratio,
    strictest,
)

SHOWN = 3  # groups named in a sentence


@dataclass(frozen=True)
class Answer:
    """`state` gives the sign beside the headline; `but` qualifies it; `next` says what would settle it, or is ''."""

    state: str
    headline: str
    but: tuple[str, ...] = ()
    next: str = ""


def decide(board: Board, judge: Judge, references: Sequence[str]) -> Answer:
    """The answer of one board against the first of `references`; the others qualify it. Where runs learned nothing, the
    first thing to do is to train them so that they do."""
    made = _decide(board, judge, references)
    nothing = any(group.learned_nothing for group in board.groups)
    return replace(made, next=MORE_TRAINING) if nothing and made.state != PASS else made


def _decide(board: Board, judge: Judge, references: Sequence[str]) -> Answer:
    first = references[0]
    runners = [group for group in board.groups if group.runs]
    if not runners:
        text = (
            "No encoder has finished on these rows yet; only the baseline was fitted."
            if any(baseline.runs for baseline in board.baselines)
            else "No run has finished yet."
        )
        return Answer(
            MISSING, text, next="Give the command of the sweep again, which goes on with what was interrupted, or fine-tune on the same dataset=."
        )
    verdicts = [judge.verdict(group, board, first, "validation") for group in runners]
    judged = [verdict for verdict in verdicts if verdict.claims and verdict.group.attention not in references]
    judged = [verdict for verdict in judged if _at_claims(verdict, judge)] or judged
    passing = sorted((v for v in judged if v.state == PASS), key=_saving)
    if passing:
        return _take(passing, board, judge, references)
    told = cheapest_nearby(board, judge, first), _own_worth(board, judge, first), _bag_of_words(board)
    but = tuple(text for text in told if text)
    if not judged:
        best = max(runners, key=lambda group: (group.stat("macro_f1").mean or 0.0, group.label))
        text = (
            f"Nothing was run beside {first} yet."
            if len(runners) == 1
            else "None of these configurations has a claim to judge."
        )
        return Answer(MISSING, f"{text} Best so far: {best.label}{_scored(best)}.", but, _beside(board, first))
    if any(verdict.state == FAIL for verdict in judged):
        open_ = [verdict.group.label for verdict in judged if verdict.state == MISSING]
        names = _listed([verdict.group.label for verdict in judged])
        text = f"Nothing passes: {'neither of ' if len(judged) == 2 else ''}{names} meets every claim against {first}."
        if len(judged) == 1:
            text = f"Nothing passes: {names} does not meet every claim against {first}."
        elif len(judged) > 2:
            text = f"Nothing passes: none of {names} meets every claim against {first}."
        if open_:
            text = f"Nothing passes so far; no verdict yet on {_listed(open_)}."
        return Answer(FAIL, text, but, _remedy(board, judge, judged, first) if open_ else "")
    return Answer(MISSING, f"No verdict yet: {_reason(judged)}.", but, _remedy(board, judge, judged, first))


def _take(passing: Sequence[Verdict], board: Board, judge: Judge, references: Sequence[str]) -> Answer:
    """The answer where something passes: the cheapest of these, and what speaks against it."""
    best = passing[0]
    group, other = best.group, best.reference_group
    doubt = doubts(best)
    unsure = ", though these runs cannot tell" if doubt else ""
    text = f"{_capital(group.label)} saves {_saved(group, other)}{_at(group, other)}; it passes{unsure}."
    but = [f"{_capital(doubt)}."] if doubt else []
    unlike = measured_differently(best)
    but += [f"{_capital(unlike)}."] if unlike else []
    but += [f"{_capital(number.reason)}." for claim in best.claims for number in claim.measured if number.undecided]
    but += _further(best, passing[1:])
    on_test = judge.verdict(group, board, references[0], "test")
    if on_test.state != PASS:
        but.append(f"On the test split it does not pass: {on_test.state}.")
    for reference in references[1:]:
        verdict = judge.verdict(group, board, reference, "validation")
        if verdict.reference_group is None:
            but.append(
                f"It was not compared with {reference}, which a practitioner would use instead: no such runs are here."
            )
        elif verdict.state != PASS:
            share = ratio(group, verdict.reference_group, "time_per_epoch")
            takes = "" if share is None else f" (its time is {share:.2f}×)"
            but.append(f"Against {reference}, which a practitioner would use instead, it does not pass{takes}.")
    near = cheapest_nearby(board, judge, references[0], best)
    but += [text for text in (near, _own_worth(board, judge, references[0]), _bag_of_words(board)) if text]
    return Answer(PASS, text, tuple(but))


def _saving(verdict: Verdict) -> tuple[float, float, float, str]:
    """What a group costs beside its own reference, in whole percent: time, then memory; of equals the better one."""
    group = verdict.group
    time, memory = (_percent(verdict, name) for name in ("time_per_epoch", memory_measure(group.device.get("kind"))))
    return time, memory, -(group.stat("macro_f1").mean or 0.0), group.label


def _percent(verdict: Verdict, name: str) -> float:
    other = verdict.reference_group
    share = None if other is None else ratio(verdict.group, other, name)
    return float("inf") if share is None else round(100 * share)


def _further(best: Verdict, others: Sequence[Verdict]) -> list[str]:
    """The other groups that pass, and what they cost beside `best`.

    Times compare only where the reference is the same group: another has another size, length or device.
    """
    told: dict[str, list[str]] = {}
    for verdict in others:
        told.setdefault(_dearer(best, verdict), []).append(verdict.group.label)
    sentences = []
    for words, names in told.items():
        one, many = words.split("|") if "|" in words else (words, words)
        passes = "passes" if len(names) == 1 else "pass"
        sentences.append(f"{_capital(_listed(names))} {passes} too{one if len(names) == 1 else many}.")
    return sentences


def _dearer(best: Verdict, verdict: Verdict) -> str:
    """How `verdict`'s group costs more than that of `best`, for one group | for several; '' where it is not known."""
    mine, theirs = _percent(verdict, "time_per_epoch"), _percent(best, "time_per_epoch")
    if float("inf") in (mine, theirs):
        return ""
    if verdict.reference_group is best.reference_group:
        return ", and takes more time|, and take more time" if mine > theirs else ", in as much time"
    if mine == theirs:
        return ", and saves as much time beside its own reference|, and save as much time beside their own references"
    return ", and saves less time beside its own reference|, and save less time beside their own references"


def _saved(group: Group, other: Group | None) -> str:
    """`30 % time and 40 % memory`: what is saved, or that one of them is not."""
    told = []
    for name, word in (("time_per_epoch", "time"), (memory_measure(group.device.get("kind")), "memory")):
        share = None if other is None else ratio(group, other, name)
        if share is not None and round(abs(1 - share) * 100):
            percent = f"{abs(1 - share) * 100:.0f} %"
            told.append(f"{percent} {word}" if share < 1 else f"no {word} ({percent} more)")
    return " and ".join(told) or "neither time nor memory"


def _at(group: Group, other: Group | None) -> str:
    gap = None if other is None else difference_pp(group, other, "validation")
    return "" if gap is None else f" at {signed(gap)} pp of macro-F1 against {other.label} ({_seeds(group)})"


def _own_worth(board: Board, judge: Judge, reference: str) -> str:
    """Whether the reference itself falls short of what is claimed for it."""
    for group in board.of_mechanism.get(reference, []):
        verdict = judge.verdict(group, board, reference, "validation")
        if verdict.state == FAIL:
            codes = [claim.code for claim in verdict.claims if claim.state == FAIL]
            words = _listed([code.partition(" ")[2] or code for code in codes])
            so = (
                "a weak opponent, so savings against it say little"
                if "WNF-2 quality" in codes
                else "what is compared with it is less sure"
            )
            return f"The reference, {group.label}, falls short of its own claims ({words}): {so}."
    return ""


def _bag_of_words(board: Board) -> str:
    """Whether the bag of words is better than every encoder, tuned or not."""
    baseline = strictest(board.baselines)
    scored = [(group.stat("macro_f1").mean or 0.0, group.label) for group in board.groups if group.stat("macro_f1").n]
    if baseline is None or not scored:
        return ""
    default, tuned = baseline.stat("macro_f1").mean or 0.0, baseline.stat("tuned_macro_f1").mean or 0.0
    score, label = max(scored)
    if default > score:
        seconds = baseline.stat("train_seconds").middle
        took = "" if seconds is None else f", fitted in {amount(seconds)} s"
        better = f" ({tuned:.3f} tuned)" if tuned > default else ""
        scores = f"{default:.3f} macro-F1{better} against {score:.3f} of {label}"
        return f"{BASELINE}{took}, is better than every encoder here: {scores}."
    if tuned > score:
        scores = f"{tuned:.3f} macro-F1 against {score:.3f} of {label}"
        return f"{BASELINE}, tuned on validation, is better than every encoder here: {scores}."
    return ""


def _at_claims(verdict: Verdict, judge: Judge) -> bool:
    """Whether a group was run at the length that its claims are made at; at another one it can never be judged."""
    return verdict.group.record.seq_len == judge.claims_for(verdict.group)[0].seq_len


def _reason(verdicts: Sequence[Verdict]) -> str:
    """Why there is no verdict: the reason that most of the verdicts have."""
    reasons = [reason for verdict in verdicts for reason in verdict.reasons]
    return max(sorted(set(reasons)), key=reasons.count) if reasons else "something was not measured"


def _remedy(board: Board, judge: Judge, verdicts: Sequence[Verdict], reference: str) -> str:
    """What to run so that there is a verdict."""
    waiting = [verdict for verdict in verdicts if verdict.state == MISSING]
    claims, _ = judge.claims_for(waiting[0].group)
    if not any(_at_claims(verdict, judge) for verdict in waiting):
        done = any(group.record.seq_len == claims.seq_len for group in board.of_mechanism.get(reference, []))
        rest = f"{reference} was run there, run the others there too" if done else f"add seq_len={claims.seq_len}"
        way = f": seq_len={claims.seq_len} in the same sweep" if done else " to the sweep"
        return f"The claims are made at {claims.seq_len} tokens: {rest}{way}."
    alone = [verdict for verdict in waiting if verdict.reference_group is None]
    if alone:
        return _beside(board, reference) or _twin(alone[0], board, reference)
    if strictest(board.baselines) is None:
        return f"Fit the baseline: python run.py mode=baseline dataset={board.groups[0].record.choices.get('dataset')}"
    if any(len(verdict.group.seeds) < claims.min_seeds for verdict in waiting):
        seeds = ",".join(map(str, range(claims.min_seeds)))
        return f"Run more seeds: seed={seeds} in the same sweep; what is done is skipped."
    if any(claim.state == UNDECIDED for verdict in waiting for claim in verdict.claims):
        return "Repeat a run that is named: remove its folder and give the sweep's command again; what is done is skipped."
    return ""


def _beside(board: Board, reference: str) -> str:
    return "" if reference in board.of_mechanism and len(board.of_mechanism) > 1 else (
        "A verdict needs runs that differ in the mechanism alone: "
        f"python run.py -m attention={reference},performer,reformer seed=0,1,2"
    )  # fmt: skip


def _twin(verdict: Verdict, board: Board, reference: str) -> str:
    """The reference was run, but not alike: what a group of it must have."""
    _, reason = find_reference(verdict.group, board, reference)
    return f"Run {reference} with the settings and on the device of {verdict.group.label}: {reason}."


def _scored(group: Group) -> str:
    mean = group.stat("macro_f1").mean
    return "" if mean is None else f", macro-F1 {mean:.3f} ({_seeds(group)})"


def _seeds(group: Group) -> str:
    return f"n = {len(group.runs)}"


def _listed(names: Sequence[str]) -> str:
    """`a, b and c`; the first few of many."""
    if len(names) > SHOWN:
        return f"{', '.join(names[:SHOWN])} and {len(names) - SHOWN} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

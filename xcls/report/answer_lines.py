"""A sentence per mechanism for the top of the page: what it saves, at which loss, whether it passes and if not why."""

from __future__ import annotations

from dataclasses import dataclass

from xcls.report.aggregate import Board, Group
from xcls.report.circumstances import unlike_groups
from xcls.report.compare import amount, signed
from xcls.report.cost_ratio import cost_interval
from xcls.report.differences import OPEN
from xcls.report.labels import BASELINE
from xcls.report.measures import memory_measure
from xcls.report.settings import Claims, FamilyClaims
from xcls.report.verdict import FAIL, MISSING, PASS, Claim, Judge, Measured, Verdict, difference_pp, ratio, strictest

MOST = 6  # mechanisms told; the table has them all
PHRASES = {  # of a measured number: in words, with its limit
    "time ratio": "its time is {value:.2f}× (at most {limit:g}× is claimed)",
    "memory ratio": "its memory is {value:.2f}× (at most {limit:g}×)",
    "macro-F1 loss (pp)": "it loses {value:.2f} pp (at most {limit:g})",
    "macro-F1 gain (pp)": "it is {size:.2f} pp {side} the bag of words (at least {limit:g} above)",
    "macro-F1 spread (pp)": "its seeds lie {value:.2f} pp apart (at most {limit:g})",
}
NEAR_PP = 1.0  # of macro-F1 below the reference: as good, for a reader who looks for the cheapest
RATIOS = ("time ratio", "memory ratio")  # one of the two is enough


@dataclass(frozen=True)
class Line:
    """One mechanism: the sign beside it, its name, and the rest of the sentence."""

    state: str
    name: str
    text: str


def mechanism_lines(board: Board, judge: Judge, reference: str) -> list[Line]:
    """The mechanisms with a claim, those with a verdict first, in the order of their rank; then the baseline."""
    verdicts = [judge.verdict(group, board, reference, "validation") for group in board.groups if group.runs]
    claimed = [verdict for verdict in verdicts if verdict.claims]
    claimed.sort(
        key=lambda verdict: verdict.state == MISSING
    )  # those with a verdict first, each part in the order of rank
    lines = [
        Line(verdict.state, verdict.group.label, f"{_costs(verdict)}{_end(verdict)}") for verdict in claimed[:MOST]
    ]
    if len(claimed) > MOST:
        lines.append(Line(MISSING, f"{len(claimed) - MOST} more", "see the tables below."))
    baseline = strictest(board.baselines)
    if baseline is not None:
        lines.append(Line("", BASELINE, _baseline(baseline)))
    return lines


def _costs(verdict: Verdict) -> str:
    """`10 % less time, 8 % more memory, macro-F1 −0.60 pp (n = 3)` beside the reference."""
    group, other = verdict.group, verdict.reference_group
    if other is None or other is group:
        quality = group.stat("macro_f1").mean
        score = "" if quality is None else f", macro-F1 {quality:.3f}"
        return f"{'the reference' if other is group else 'nothing to compare it with'}{score} (n = {len(group.runs)})"
    told = []
    for name, word in (("time_per_epoch", "time"), (memory_measure(group.device.get("kind")), "memory")):
        share = ratio(group, other, name)
        if share is not None:
            percent = round(abs(1 - share) * 100)
            told.append(f"{percent} % {'less' if share < 1 else 'more'} {word}" if percent else f"as much {word}")
    gap = difference_pp(group, other, "validation")
    told += [] if gap is None else [f"macro-F1 {signed(gap)} pp"]
    unlike = measured_differently(verdict)
    so = f", {unlike}" if unlike else ""
    return f"{', '.join(told) or 'nothing measured'} beside {other.label} (n = {len(group.runs)}{so})"


def measured_differently(verdict: Verdict) -> str:
    """In what the costs compared were measured differently (`torch 2.12.0 against 2.13.0`), or ''."""
    unlike = [] if verdict.reference_group is None else unlike_groups(verdict.group, verdict.reference_group)
    return f"measured differently: {'; '.join(unlike)}" if unlike else ""


def cheapest_nearby(board: Board, judge: Judge, reference: str, taken: Verdict | None = None) -> str:
    """The group with the lowest time within a point of its reference, judged or not, in a sentence; '' where that is
    `taken`, what the answer recommends. Beside `taken` only groups with the same reference compare.
    """
    found = []
    for group in board.groups:
        verdict = judge.verdict(group, board, reference, "validation")
        other = verdict.reference_group
        if not group.runs or other is None or other is group or group.shared or other.shared:
            continue
        if taken is not None and other is not taken.reference_group:
            continue
        share, gap = ratio(group, other, "time_per_epoch"), difference_pp(group, other, "validation")
        unsure = cost_interval(group, other, "time_per_epoch", judge.level).tells("<=", 1.0) == OPEN
        if share is not None and gap is not None and share < 1 and not unsure and gap >= -NEAR_PP:
            elsewhere = group.record.seq_len != judge.claims_for(group)[0].seq_len
            found.append((elsewhere, share, -gap, group.label, verdict))
    if not found:
        return ""
    best = min(found, key=lambda item: item[:4])[-1]
    if taken is not None and best.group is taken.group:
        return ""
    ends = {PASS: "it passes", FAIL: "it does not pass", MISSING: best.reason or "it has no verdict"}
    return f"Cheapest within {NEAR_PP:g} pp of {reference}: {best.group.label}, {_costs(best)}; {ends[best.state]}."


def _end(verdict: Verdict) -> str:
    doubt = doubts(verdict)
    if verdict.state == PASS:
        return f". It passes{', but ' + doubt if doubt else ''}."
    if verdict.state == MISSING:
        return f". No verdict: {'; '.join(verdict.reasons) or 'something was not measured'}."
    told = [reason for claim in verdict.claims if claim.state == FAIL for reason in _why(claim)]
    return f". It fails: {'; '.join(dict.fromkeys(told))}{'. But ' + doubt if doubt else ''}."


def _why(claim: Claim) -> list[str]:
    """What fails in a claim, in words."""
    return [claim.reason] if claim.reason else [phrase(number) for number in _bad(claim)]


def _bad(claim: Claim) -> list[Measured]:
    """The numbers for which a claim fails: a ratio that is too high is none where the other one is low enough."""
    saves = any(number.name in RATIOS and number.state == PASS for number in claim.measured)
    return [number for number in claim.measured if number.state == FAIL and not (saves and number.name in RATIOS)]


def phrase(number: Measured) -> str:
    """A measured number and its limit in words."""
    form = PHRASES.get(number.name, f"{number.name} is {{value:.3f}} ({number.relation} {{limit:g}} is claimed)")
    value = number.value or 0.0
    told = {"value": value, "limit": number.threshold, "size": abs(value), "side": "above" if value >= 0 else "below"}
    return form.format(**told)


def doubts(verdict: Verdict) -> str:
    """Where the interval of a number that decides spans its limit: the verdict is by the value, these runs cannot tell.

    What decides a PASS are all numbers: one that is open leaves the whole open. What decides a FAIL are those that
    fail: one that fails for certain is enough, and the open ones are named as such.
    """
    failing = [claim for claim in verdict.claims if claim.state == FAIL]
    if verdict.state == FAIL:
        deciding = [number for claim in failing for number in _bad(claim)]
    else:
        deciding = [number for claim in verdict.claims for number in claim.measured if number.state == verdict.state]
    known = {number.name: number for number in deciding if number.told == OPEN and number.interval is not None}
    if not known:
        return ""
    named = [f"its {name.replace(' (pp)', '')} ({_span(number)})" for name, number in known.items()]
    certain = verdict.state == FAIL and (
        any(claim.reason for claim in failing) or any(number.told != OPEN for number in deciding)
    )
    spans = "spans its limit" if len(named) == 1 else "span their limits"
    intervals = f"the interval{'s' if len(named) > 1 else ''} of {' and '.join(named)} {spans}"
    return f"{intervals}: of {'that' if len(named) == 1 else 'these'} alone these runs cannot tell" if certain else (
        f"{intervals}: these runs cannot tell"
    )  # fmt: skip


def _span(number: Measured) -> str:
    interval = number.interval
    return "" if interval is None else f"{signed(interval.low)} to {signed(interval.high)} pp"


def _baseline(baseline: Group) -> str:
    default, tuned, seconds = (baseline.stat(name).middle for name in ("macro_f1", "tuned_macro_f1", "train_seconds"))
    took = "" if seconds is None else f", fitted in {amount(seconds)} s"
    better = "" if tuned is None else f"; tuned on validation {tuned:.3f}"
    return f"the bag of words on the same rows: macro-F1 {default or 0.0:.3f}{took}{better}."


def claims_in_words(claims: Claims) -> list[str]:
    """What passing means, a sentence per family of mechanisms."""
    return [f"{name}: {_family(family, claims.references[0])}" for name, family in sorted(claims.families.items())]


def _family(family: FamilyClaims, reference: str) -> str:
    saves = [
        f"{word} at most {limit:g}× that of {reference}"
        for word, limit in (("time per epoch", family.max_time_ratio), ("peak memory", family.max_memory_ratio))
        if limit is not None
    ]
    told = [" or ".join(saves)] if saves else []
    for limit, words in (
        (family.max_loss_pp, f"at most {{:g}} pp of macro-F1 below {reference}"),
        (family.min_gain_pp, f"at least {{:g}} pp above {BASELINE}"),
        (family.max_spread_pp, "best and worst seed at most {:g} pp apart"),
    ):
        told += [] if limit is None else [words.format(limit)]
    return "; ".join(told) or "nothing is claimed"

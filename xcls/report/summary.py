"""The summary of a data set: the headline with its notes, and the matrix of mechanisms and claims."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

from xcls.report.claims import (
    FAIL,
    GAIN,
    LOSS,
    MEMORY,
    MISSING,
    PASS,
    SPREAD,
    TIME,
    UNDECIDED,
    Measured,
    Study,
    Verdict,
)
from xcls.report.groups import DatasetResults
from xcls.report.intervals import OPEN
from xcls.report.references import difference_pp
from xcls.report.settings import Claims
from xcls.report.table import NONE, signed
from xcls.runs.record import MORE_TRAINING

SIGNS = {PASS: "✓", FAIL: "✗", MISSING: "?", UNDECIDED: "?"}
CLAIMED = {  # columns of the matrix: name of the measured number -> heading
    TIME: "time",
    MEMORY: "memory",
    LOSS: "loss against {}, pp",
    GAIN: "gain over TF-IDF, pp",
    SPREAD: "spread of seeds, pp",
}
SWEEP = "Run mechanisms with the same settings: python run.py -m attention=sdpa,performer,reformer seed=0,1,2"
SHOWN = 3  # groups named in a sentence
MOST = 12  # rows of a matrix


@dataclass(frozen=True)
class Headline:
    """`state` gives the sign beside `text`; `notes` qualify it; `next`: what to run for a verdict, or ''."""

    state: str
    text: str
    notes: tuple[str, ...] = ()
    next: str = ""


@dataclass(frozen=True)
class Cell:
    """One claim about one group: the value, its limit, the state (a key of SIGNS, or ''), numbers of footnotes.

    `doubtful`: the value decides, as the specification says, but the interval contains the limit.
    """

    value: str
    limit: str = ""
    state: str = ""
    notes: tuple[int, ...] = ()
    doubtful: bool = False

    @property
    def sign(self) -> str:
        """✓ holds, ✗ does not, ? cannot be decided; ✓? and ✗? if doubtful."""
        return SIGNS.get(self.state, "") + "?" * self.doubtful


@dataclass(frozen=True)
class Matrix:
    """Mechanisms × claims. rows: (label, n, cells, verdict on validation, verdict on test). notes: footnotes 1, 2 …"""

    header: list[str]
    rows: list[tuple[str, int, list[Cell], str, str]]
    notes: list[str]


def headline(results: DatasetResults, study: Study) -> Headline:
    """What passes against the first reference, or why nothing does, and what to run next."""
    first, done = study.references[0], [group for group in results.groups if group.runs]
    if not done:
        again = "Give the command of the sweep again: it goes on with what was interrupted."
        return Headline(MISSING, "No encoder has finished on these rows yet.", next=again)
    verdicts = [study.verdict(group, first) for group in done]
    judged = [verdict for verdict in verdicts if verdict.claims and verdict.group.attention not in study.references]
    judged = [v for v in judged if v.group.record.seq_len == v.thresholds.seq_len] or judged
    passing = sorted((verdict for verdict in judged if verdict.state == PASS), key=_saving)
    failing = [verdict.group.label for verdict in judged if verdict.state == FAIL]
    reasons = [reason for verdict in judged if verdict.state == MISSING for reason in verdict.reasons]
    reason = max(sorted(set(reasons)), key=reasons.count) if reasons else ""
    following = _next(reason, results, study.thresholds(done[0])[0])
    if passing:
        also = [f"Also passing: {_listed([verdict.group.label for verdict in passing[1:]])}."] if passing[1:] else []
        text = f"{passing[0].group.label} passes: {_beside(passing[0])}."
        return Headline(PASS, text, (*also, *_against(passing[0], study)))
    if not judged:
        best = max(done, key=lambda group: (group.stat("macro_f1").mean or 0.0, group.label))
        score = best.stat("macro_f1").text
        text = f"No mechanism with a claim was run beside {first}. Best: {best.label}, macro-F1 {score}."
        return Headline(MISSING, text, next=SWEEP)
    if failing:
        verb = "fails" if len(failing) == 1 else "fail"
        notes = (f"No verdict on the others: {reason}.",) if reason else ()
        return Headline(FAIL, f"Nothing passes against {first}: {_listed(failing)} {verb}.", notes, following)
    return Headline(MISSING, f"No verdict yet: {reason or 'something was not measured'}.", (), following)


def _saving(verdict: Verdict) -> tuple[Any, ...]:
    """Sort key: time ratio, then memory ratio (whole percent), then higher macro-F1 first."""
    shares = [verdict.numbers[name].value for name in (TIME, MEMORY)]
    costs = [float("inf") if share is None else round(100 * share) for share in shares]
    return (*costs, -(verdict.group.stat("macro_f1").mean or 0.0), verdict.group.label)


def _beside(verdict: Verdict) -> str:
    """`30 % less time, 8 % more memory, macro-F1 −0.60 pp against sdpa (n = 3)`; open costs are left out."""
    group, other, texts = verdict.group, verdict.reference_group, []
    for name in (TIME, MEMORY):
        number = verdict.numbers[name]
        if number.value is not None and number.state != UNDECIDED:
            percent, more = round(100 * abs(1 - number.value)), "less" if number.value < 1 else "more"
            texts.append(f"{percent} % {more} {CLAIMED[name]}")
    gap = None if other is None else difference_pp(group, other, "validation")
    texts += [] if gap is None else [f"macro-F1 {signed(gap)} pp"]
    return f"{', '.join(texts)} against {verdict.reference} (n = {len(group.runs)})"


def _against(best: Verdict, study: Study) -> list[str]:
    """The verdict on the best group against the other references, which a practitioner would use instead."""
    texts = []
    for reference in study.references[1:]:
        verdict = study.verdict(best.group, reference)
        if verdict.reference_group is None:
            texts.append(f"There are no runs of {reference} to compare with.")
        elif verdict.state != PASS:
            texts.append(f"Against {reference} it does not pass: {_beside(verdict)}.")
    return texts


def _next(reason: str, results: DatasetResults, claims: Claims) -> str:
    """What to run to get a verdict. `reason`: why there is none, as text; parts of it select the remedy."""
    dataset, seeds = results.groups[0].record.choices.get("dataset"), ",".join(map(str, range(claims.min_seeds)))
    remedies = {
        "repeat": "Remove the folder of the run that the open claim names and give the sweep's command again.",
        "learned nothing": MORE_TRAINING,
        "claims are made at": f"Add seq_len={claims.seq_len} to the sweep: the claims are made at that length.",
        "no completed": SWEEP,
        "run alike": "Run it with the same settings, in one sweep.",
        "runs alike": "Run both on one device with the same hardware settings.",
        "baseline": f"Fit the baseline: python run.py mode=baseline dataset={dataset}",
        "seeds": f"Run more seeds: seed={seeds} in the same sweep; what is done is skipped.",
    }
    return next((remedy for words, remedy in remedies.items() if words in reason), "")


def matrix(results: DatasetResults, study: Study) -> Matrix:
    """The claims about the groups of a data set: groups with a verdict first, then by rank."""
    notes: list[str] = []
    reference = study.references[0]
    verdicts = [study.verdict(group, reference) for group in results.groups if group.runs]
    verdicts.sort(key=lambda verdict: (not verdict.claims, verdict.state == MISSING))
    rows = []
    for verdict in verdicts[:MOST]:
        cells = [_cell(name, verdict, notes) for name in CLAIMED]
        test = study.verdict(verdict.group, reference, "test").state
        rows.append((verdict.group.label, len(verdict.group.runs), cells, verdict.state, test))
    if len(verdicts) > MOST:
        notes.append(f"{len(verdicts) - MOST} more groups are in the table below.")
    return Matrix([title.format(reference) for title in CLAIMED.values()], rows, notes)


def _cell(name: str, verdict: Verdict, notes: list[str]) -> Cell:
    """One cell. Adds its footnotes to `notes`, each text once."""
    number = verdict.numbers[name]
    about = [claim for claim in verdict.claims if number in claim.measured]
    if not about:
        return Cell(_shown(number))
    claim = min(about, key=lambda claim: claim.not_applicable)
    state = MISSING if claim.not_applicable else FAIL if claim.state == FAIL and claim.reason else number.state
    texts = [claim.reason if claim.not_applicable or state == FAIL else number.reason]
    doubtful = number.interval_says == OPEN and not number.undecided and state in (PASS, FAIL)
    if doubtful and number.interval:
        texts.append(f"The interval of the {name.replace(' (pp)', '')} spans the limit: {number.interval.text} pp.")
    if name in (TIME, MEMORY):
        texts.append(claim.remark and f"Measured differently: {claim.remark}.")
        if number.bench_says.startswith("no"):
            texts.append(f"mode=bench measured {number.bench:.2f}× ({number.bench_says}).")
    own = [text[:1].upper() + text[1:] if text.split(" ")[0].isalpha() else text for text in texts if text]
    notes += [text for text in own if text not in notes]
    places = tuple(notes.index(text) + 1 for text in own)
    return Cell(_shown(number), bound(number), state, places, doubtful)


def _shown(number: Measured) -> str:
    if number.value is None:
        return NONE
    return f"{number.value + 0.0:.2f}{'×' if number.name in (TIME, MEMORY) else ''}".replace("-", "−")


def bound(number: Measured) -> str:
    """`≤ 0.8×`: the limit of a number."""
    return (
        f"{'≤' if number.relation == '<=' else '≥'} {number.threshold:g}{'×' if number.name in (TIME, MEMORY) else ''}"
    )


def _listed(names: Sequence[str]) -> str:
    """`a, b and c`; the first few of many."""
    if len(names) > SHOWN:
        return f"{', '.join(names[:SHOWN])} and {len(names) - SHOWN} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))

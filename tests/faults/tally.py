"""What came of a kind of fault."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Tally:
    """How often a kind of fault was tried, on how many runs, what was lost, and what should not have been. `steps`: the
    most steps of work that were lost at once, where that was counted."""

    what: str
    tried: int = 0
    runs: int = 0
    lost: str = ""
    steps: int | None = None
    problems: list[str] = field(default_factory=list)


def joined(tallies: list[Tally]) -> list[Tally]:
    """Those of one kind as one."""
    found: dict[str, Tally] = {}
    for tally in tallies:
        known = found.setdefault(tally.what, Tally(tally.what, lost=tally.lost, steps=tally.steps))
        known.tried, known.runs = known.tried + tally.tried, known.runs + tally.runs
        known.problems += tally.problems
        if tally.steps is not None:
            known.steps = max(known.steps or 0, tally.steps)
    return list(found.values())

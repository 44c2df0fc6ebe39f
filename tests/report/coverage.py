"""How often the intervals hold the truth: python -m tests.report.coverage 2000 prints the table of docs/intervals.md.

A study in small: rows of some classes, and what the runs of two mechanisms name them. What is drawn anew in each study
are the rows of every class and the seeds; the truth is the mean difference over many studies. Known only here: how hard
each class is for each mechanism, how hard each row is for all runs, what a seed adds to all rows, what it adds to one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from xcls.report.intervals import Sample, half_width
from xcls.report.predictions import Predictions

SKILL = (1.0, 1.15)  # of the two mechanisms, where 1 is how much the rows differ
SIZES = {  # rows of each class
    "2 x 200": (200,) * 2,
    "2, 380 and 20": (380, 20),
    "8, 200 … 4": (200, 100, 60, 40, 20, 10, 6, 4),
    "40 x 2": (2,) * 40,
    "40 x 10": (10,) * 40,
    "1000 x 1": (1,) * 1000,
}
SEEDS = ((2, 2), (3, 3), (5, 5), (3, 1))  # the last: three runs against a baseline, which has no seed
SCATTER = {"examples": 0.0, "both": 2.0, "seeds": 5.0}  # what a seed adds to the skill, over the root of the rows


@dataclass(frozen=True)
class World:
    """What stays the same in all studies. `sizes`: rows of each class; `any_class`: rows are drawn from all classes
    together, so that their numbers vary."""

    sizes: tuple[int, ...]
    seeds: tuple[int, int] = (3, 3)
    scatter: float = 0.0
    own: float = 0.3
    any_class: bool = False

    def study(self, draw: np.random.Generator) -> list[list[Predictions]]:
        """The predictions of the runs of each mechanism, all on the same rows."""
        classes, rows = len(self.sizes), sum(self.sizes)
        labels = np.repeat(np.arange(classes), self.sizes)
        if self.any_class:
            labels = draw.choice(labels, rows)
        fixed = np.random.default_rng(7)
        ease, liking = fixed.normal(0, 0.5, classes), fixed.normal(0, 0.15, (2, classes))
        common, wrong = draw.normal(0, 1, rows), self._other(labels, draw)
        groups = []
        for place, runs in enumerate(self.seeds):
            shift = draw.normal(0, self.scatter / rows**0.5, (runs, 1)) if runs > 1 else 0.0
            level = SKILL[place] + (ease + liking[place])[labels] + common + shift
            right = level + draw.normal(0, self.own, (runs, rows)) > 0
            groups.append([self._run(labels, row, wrong, draw) for row in right])
        return groups

    def _other(self, labels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Another class for every row."""
        return (labels + draw.integers(1, len(self.sizes), len(labels))) % len(self.sizes)

    def _run(self, labels: np.ndarray, right: np.ndarray, wrong: np.ndarray, draw: np.random.Generator) -> Predictions:
        """Half of the errors are those of all runs."""
        wrong = np.where(draw.random(len(labels)) < 0.5, wrong, self._other(labels, draw))
        return Predictions("", len(self.sizes), labels, np.where(right, labels, wrong))


@dataclass(frozen=True)
class Covered:
    """The share of intervals that hold the truth, their median width in points, and the truth in points; of the
    variance of the differences the share that the seeds made."""

    share: float
    width: float
    truth: float
    by_seeds: float


def covered(world: World, *, studies: int, seed: int = 0, level: float = 0.95) -> Covered:
    """Counts over `studies` studies; the truth is the mean over as many others."""
    means = lambda groups: [np.mean([run.macro_f1 for run in runs]) for runs in groups]  # noqa: E731
    others = [means(world.study(np.random.default_rng([1, seed, study]))) for study in range(studies)]
    truth = float(np.mean([theirs - mine for mine, theirs in others]))
    held, widths, seeds = 0, [], []
    for study in range(studies):
        mine, theirs = (Sample.of(runs) for runs in world.study(np.random.default_rng([2, seed, study])))
        half = half_width(theirs, mine, level=level)
        held += abs(theirs.scores.mean() - mine.scores.mean() - truth) <= half
        widths.append(min(200.0, 200 * half))
        several = [one for one in (mine, theirs) if len(one.scores) > 1]
        seeds.append(sum((one.scores.var(ddof=1) - one.own) / len(one.scores) for one in several))
    whole = float(np.var([theirs - mine for mine, theirs in others]))
    return Covered(held / studies, float(np.median(widths)), 100 * truth, max(0.0, float(np.mean(seeds)) / whole))


def main() -> None:
    """Prints the table, a line per data and number of seeds: what is held, and the median width in points."""
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print(f"| classes x rows | seeds | {' | '.join(SCATTER)} |\n|{'---|' * (2 + len(SCATTER))}")
    lines = [(name, seeds, False, list(SCATTER)) for name in SIZES for seeds in SEEDS]
    lines += [(f"{name}, any class", (3, 3), True, ["both"]) for name in SIZES]
    for name, seeds, any_class, kinds in lines:
        cells = dict.fromkeys(SCATTER, "")
        for kind in kinds:
            world = World(SIZES[name.removesuffix(", any class")], seeds, SCATTER[kind], any_class=any_class)
            found = covered(world, studies=studies)
            cells[kind] = f"{100 * found.share:.1f} % ({found.width:.1f}; {100 * found.by_seeds:.0f} %)"
        print(f"| {name} | {seeds[0]}, {seeds[1]} | {' | '.join(cells.values())} |", flush=True)


if __name__ == "__main__":
    main()

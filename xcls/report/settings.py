"""The settings of `conf/report.yaml`: folders, ranking, claim thresholds; and the overrides that give them again."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from xcls.config.schema import UserError, flatten, nearest
from xcls.report.load import shown
from xcls.report.measures import MEASURES
from xcls.runs.paths import at, quoted


@dataclass
class FamilyClaims:
    """The thresholds for one family of mechanisms; None: no such claim."""

    max_time_ratio: Optional[float] = None  # time_per_epoch / that of the reference
    max_memory_ratio: Optional[float] = None  # peak memory / that of the reference
    max_loss_pp: Optional[float] = None  # macro-F1 of the reference minus its own, percentage points
    min_gain_pp: Optional[float] = None  # macro-F1 minus that of the baseline, percentage points
    max_spread_pp: Optional[float] = None  # macro-F1 of the best seed minus the worst, percentage points


@dataclass
class Claims:
    """The claims of WNF-1 and WNF-2: thresholds, sequence length, number of seeds."""

    seq_len: int = 512
    min_seeds: int = 3
    max_cost_factor: float = 1.5  # run cost / median of the group's other runs; beyond it the claim is open
    references: List[str] = field(default_factory=lambda: ["sdpa", "sdpa_fused"])  # the first one decides PASS_WNF
    families: Dict[str, FamilyClaims] = field(default_factory=dict)

    def family(self, attention: str) -> FamilyClaims | None:
        """The claims for a mechanism: those of the family with the longest name that its own name begins with."""
        names = [name for name in self.families if attention == name or attention.startswith(name + "_")]
        return self.families[max(names, key=len)] if names else None


@dataclass
class Price:
    """The price of an hour on a machine, and its power under load in watts. None: not known."""

    price_per_hour: Optional[float] = None
    watts: Optional[float] = None


@dataclass
class Cost(Price):
    """The prices of the default machine, and of others by a part of their device name."""

    currency: str = "EUR"
    devices: Dict[str, Price] = field(default_factory=dict)

    def of(self, device: str) -> Price:
        """The price for a device: that of the longest name in `devices` that `device` contains, else the default."""
        names = [name for name in self.devices if name.lower() in device.lower()]
        return self.devices[max(names, key=lambda name: (len(name), name))] if names else self


@dataclass
class Intervals:
    """Intervals of macro-F1 differences; `level` also for cost ratios.

    most_groups: this many best ranked groups of a data set get an interval, and the references.
    """

    level: float = 0.95
    most_groups: int = 24


@dataclass
class Settings:
    """All settings of `conf/report.yaml`."""

    runs: List[str] = field(default_factory=lambda: ["multirun", "pretrain", "finetune"])
    out: str = "multirun/report"
    rank_by: str = "macro_f1"
    claims: Claims = field(default_factory=Claims)
    originals: Dict[str, str] = field(default_factory=dict)
    intervals: Intervals = field(default_factory=Intervals)
    cost: Cost = field(default_factory=Cost)


def check(settings: Settings) -> Claims:
    """Returns the claims. Raises UserError for impossible settings."""
    if not settings.runs:
        raise UserError("runs: at least one folder is needed, e.g. runs=[multirun/quick].")
    if settings.rank_by not in MEASURES:
        near = nearest(settings.rank_by, list(MEASURES))
        raise UserError(f"rank_by={settings.rank_by}: one of {', '.join(MEASURES)} is needed.{near}")
    for key, value in flatten({"intervals": asdict(settings.intervals), "cost": asdict(settings.cost)}).items():
        low, high = (0.5, 0.999999) if key == "intervals.level" else (0, math.inf)
        if isinstance(value, (int, float)) and not (low <= value <= high and math.isfinite(value)):
            raise UserError(
                f"{key}={value}: a number from {low} {'up' if high == math.inf else 'to below 1'} is needed."
            )
    return claims_from(flatten(asdict(settings.claims)))


def claims_from(flat: dict[str, Any]) -> Claims:
    """Claims from flat keys (`seq_len`, `families.performer.max_loss_pp`, …). Raises UserError for a wrong one."""
    claims, thresholds = Claims(), [item.name for item in fields(FamilyClaims)]
    known = ["seq_len", "min_seeds", "max_cost_factor", "references"]
    for key, value in sorted(flat.items()):
        family, name = key.split(".")[1:] if key.startswith("families.") and key.count(".") == 2 else ("", key)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if name not in (thresholds if family else known):
            raise UserError(f"claims.{key}: unknown key.{nearest(name, [*thresholds, *known])}")
        if family:
            good, what = number or value is None, "a number is needed, or null for no claim"
        elif key == "references":
            good = isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, str) for item in value)
            what = "a list of attention names is needed; the first decides"
        elif key == "max_cost_factor":
            good, what = number and value > 1, "a number above 1 is needed, e.g. 1.5"
        else:
            good, what = number and isinstance(value, int) and value >= 1, "a whole number of at least 1 is needed"
        if not good:
            raise UserError(f"claims.{key}={value}: {what}.")
        node = claims.families.setdefault(family, FamilyClaims()) if family else claims
        setattr(node, name, float(value) if family and number else value)
    return claims


def with_relative_paths(settings: Settings, root: Path) -> Settings:
    """The settings with all paths inside the project relative to `root`, so that they hold in another clone."""
    runs = {path if path.startswith("wandb:") else shown(root / at(path), root) for path in settings.runs}
    return replace(settings, runs=sorted(runs), out=shown(root / at(settings.out), root))


def cli_overrides(settings: Settings, typed: Sequence[str] = ()) -> list[str]:
    """Command-line arguments that make the same report again: the paths of `settings`, then the other overrides."""
    others = [word for word in typed if key_of(word) not in ("runs", "out")]
    return [f"runs=[{','.join(map(quoted, settings.runs))}]", f"out={quoted(settings.out)}", *others]


def key_of(override: str) -> str:
    """The key of `key=value`, `+key=value`, `~key`."""
    return override.lstrip("+~").partition("=")[0]

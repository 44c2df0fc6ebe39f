"""What `conf/report.yaml` holds: where the runs lie, how to rank, and the thresholds of the claims."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Dict, List, Optional

from xcls.schema import UserError, nearest

FAMILIES = "families."


@dataclass
class FamilyClaims:
    """The thresholds for one family of mechanisms; None where nothing of the kind is claimed."""

    max_time_ratio: Optional[float] = None  # time_per_epoch / that of the reference
    max_memory_ratio: Optional[float] = None  # peak memory / that of the reference
    max_loss_pp: Optional[float] = None  # macro-F1 of the reference minus its own, percentage points
    min_gain_pp: Optional[float] = None  # macro-F1 minus that of the baseline, percentage points
    max_spread_pp: Optional[float] = None  # macro-F1 of the best seed minus the worst, percentage points


@dataclass
class Claims:
    """What is claimed (WNF-1, WNF-2), at which length and over how many seeds."""

    seq_len: int = 512
    min_seeds: int = 3
    max_cost_factor: float = 1.5  # of a run's cost and the median of its group's others; beyond it the claim is open
    references: List[str] = field(default_factory=lambda: ["sdpa", "sdpa_fused"])  # the first one decides PASS_WNF
    families: Dict[str, FamilyClaims] = field(default_factory=dict)

    def family(self, attention: str) -> FamilyClaims | None:
        """The claims made for a mechanism: those of the longest family name that its own name begins with."""
        names = [name for name in self.families if attention == name or attention.startswith(name + "_")]
        return self.families[max(names, key=len)] if names else None


@dataclass
class Price:
    """What a machine costs: money for an hour, watts under load. None: not known."""

    price_per_hour: Optional[float] = None
    watts: Optional[float] = None


@dataclass
class Cost(Price):
    """The prices of the machines: the usual one's, and others' by a part of their device's name."""

    currency: str = "EUR"
    devices: Dict[str, Price] = field(default_factory=dict)

    def of(self, device: str) -> Price:
        """The price of the machine with this device: that of the longest name that is a part of `device`."""
        names = [name for name in self.devices if name.lower() in device.lower()]
        return self.devices[max(names, key=lambda name: (len(name), name))] if names else self


@dataclass
class Intervals:
    """Of differences of macro-F1, `level` of cost ratios too; `most_groups`: of the best ranked of a data set, and of the
    references."""

    level: float = 0.95
    most_groups: int = 24


@dataclass
class Settings:
    """The whole of `conf/report.yaml`."""

    runs: List[str] = field(default_factory=lambda: ["multirun", "pretrain", "finetune"])
    out: str = "multirun/report"
    rank_by: str = "macro_f1"
    claims: Claims = field(default_factory=Claims)
    originals: Dict[str, str] = field(default_factory=dict)
    intervals: Intervals = field(default_factory=Intervals)
    cost: Cost = field(default_factory=Cost)


def check_numbers(settings: Settings) -> None:
    """Refuses impossible numbers of `intervals` and `cost`. Raises UserError."""
    own = settings.intervals
    if own.most_groups < 0:
        raise UserError(f"intervals.most_groups={own.most_groups}: a whole number of at least 0 is needed.")
    if not 0.5 <= own.level < 1:
        raise UserError(f"intervals.level={own.level}: a share of at least 0.5 and below 1 is needed, e.g. 0.95.")
    prices = {"cost": settings.cost, **{f"cost.devices.{name}": price for name, price in settings.cost.devices.items()}}
    for key, price in prices.items():
        for name, value in (("price_per_hour", price.price_per_hour), ("watts", price.watts)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UserError(f"{key}.{name}={value}: a number of at least 0 is needed, or null.")


def claims_from(flat: dict[str, Any]) -> Claims:
    """Claims from flat keys (`seq_len`, `families.performer.max_loss_pp`, …). Raises UserError for a wrong one."""
    claims = Claims()
    thresholds = [item.name for item in fields(FamilyClaims)]
    for key, value in sorted(flat.items()):
        if key in ("seq_len", "min_seeds"):
            setattr(claims, key, _whole(key, value))
        elif key == "max_cost_factor":
            claims.max_cost_factor = _factor(key, value)
        elif key == "references":
            claims.references = _names(value)
        else:
            parts = key.split(".")
            if len(parts) != 3 or parts[0] != "families" or parts[2] not in thresholds:
                close = nearest(parts[-1], thresholds + ["seq_len", "min_seeds", "max_cost_factor", "references"])
                raise UserError(f"claims.{key}: unknown key.{close}")
            setattr(claims.families.setdefault(parts[1], FamilyClaims()), parts[2], _threshold(key, value))
    return claims


def _whole(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"claims.{key}={value}: a whole number of at least 1 is needed.")
    return value


def _factor(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 1):
        raise UserError(f"claims.{key}={value}: a number above 1 is needed, e.g. 1.5.")
    return float(value)


def _names(value: Any) -> list[str]:
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(name, str) for name in value):
        raise UserError(f"claims.references={value}: a list of attention names is needed; the first decides.")
    return list(value)


def _threshold(key: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"claims.{key}={value}: a number is needed, or null for no claim.")
    return float(value)

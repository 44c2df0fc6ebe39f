"""What `conf/report.yaml` holds: where the runs lie, how to rank, the thresholds of the claims; and as overrides again."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from xcls.paths import at
from xcls.quoting import quoted
from xcls.schema import UserError, flatten, nearest

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


DEFAULTS = Path(__file__).parents[2] / "conf" / "report.yaml"
NAMED = ("claims.families", "originals", "cost.devices")  # nodes that hold names of the user's own
REMOTE = "wandb:"


def inside(settings: Settings, root: Path) -> Settings:
    """The settings with every path that lies in the project relative to `root`, as another clone has it."""
    runs = sorted({_relative(path, root) for path in settings.runs})
    return replace(settings, runs=runs, out=_relative(settings.out, root))


def _relative(path: str, root: Path) -> str:
    if str(path).startswith(REMOTE):
        return str(path)
    path = str(at(path))
    whole = Path(os.path.abspath(root))
    for place, base in (
        (Path(os.path.abspath(whole / path)), whole),
        (Path(os.path.realpath(whole / path)), Path(os.path.realpath(whole))),
    ):
        if place.is_relative_to(base):
            return place.relative_to(base).as_posix()
    return str(path)


def overrides(settings: Settings, typed: Sequence[str] = ()) -> list[str]:
    """Words for the command line. `typed`: keys under `claims.` that were typed, which win over an experiment's own.

    They are given again also where they say what the default says.
    """
    used, default = flatten(asdict(settings)), _defaults()
    words = [f"{name}={quoted(used.pop(name))}" for name in ("runs", "out", "rank_by")]
    gone = {key for key in default if key not in used and key not in ("runs", "out", "rank_by")}
    words += [f"~{node}" for node in sorted({_node(key, used) for key in gone})]
    devices = {name: asdict(price) for name, price in settings.cost.devices.items()}
    for key, value in sorted(used.items()):
        if not key.startswith("cost.devices.") and (value != default.get(key) or _typed(key, typed, default)):
            words.append(f"{'' if key in default else '++'}{key}={quoted(value)}")
    if devices:  # as one dictionary: a device's name may have blanks, which a key cannot
        words.append(f"++cost.devices={quoted(devices)}")
    return words


@lru_cache(maxsize=1)
def _defaults() -> dict[str, Any]:
    """`conf/report.yaml`, flat; of an installation without it what the classes say, so that more is spelt out."""
    if not DEFAULTS.is_file():
        return flatten(asdict(Settings()))
    import yaml  # not at the top: report.py --help reads this module

    stated = flatten(yaml.safe_load(DEFAULTS.read_text(encoding="utf-8")))
    return {key: value for key, value in stated.items() if key.split(".")[0] not in ("defaults", "hydra")}


def _typed(key: str, typed: Sequence[str], default: dict[str, Any]) -> bool:
    """Whether the user typed this key under `claims.`, or a node of it; what no file says and nobody set is left out."""
    node, _, rest = key.partition(".")
    named = node == "claims" and any(rest == word or rest.startswith(f"{word}.") or not word for word in typed)
    return named and (key in default or any(f"claims.{word}" == key for word in typed))


def _node(key: str, used: dict[str, Any]) -> str:
    """What to delete where `key` is gone: the name under one of `NAMED` where nothing else of it is left."""
    for node in NAMED:
        if key.startswith(f"{node}."):
            name = f"{node}.{key.removeprefix(f'{node}.').partition('.')[0]}"
            return key if any(other.startswith(f"{name}.") for other in used) else name
    return key

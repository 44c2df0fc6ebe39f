"""What a group costs its user: time, money and energy to train one model and to classify with it, and when it pays.

To train one model one pretraining and one fine-tuning are needed: a pretraining run counts in full for every group
that starts from it, though the seeds of this report share it; the share of each is given too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import Sequence

from xcls.report.conditions import unlike_groups
from xcls.report.groups import Group
from xcls.report.measures import MEASURES, number
from xcls.report.settings import Cost
from xcls.runs.record import Record

MILLION = 1_000_000
HOUR = 3600.0


@dataclass(frozen=True)
class Bill:
    """The costs of a group, None where something was not measured or has no price. Seconds, money, watt-hours."""

    finetune_s: float | None
    pretrain_s: float | None  # the whole of it; 0 from scratch
    shared_s: float | None  # of pretraining, divided among the runs of the report that start from it
    train_money: float | None
    train_wh: float | None
    document_s: float | None  # one document in batches, tokenisation included
    document_money: float | None
    document_wh: float | None

    @property
    def train_s(self) -> float | None:
        """Seconds to train one model."""
        return _sum([self.pretrain_s, self.finetune_s])


def bill(group: Group, *, parents: dict[str, Record], children: dict[str, int], cost: Cost) -> Bill:
    """The costs of a group: medians over its runs. `children`: how many runs of the report start from each parent."""
    records = [run.record for run in group.runs]
    origins = [_origins(record, parents) for record in records]
    known = all(chain is not None for chain in origins)
    chains = [chain or [] for chain in origins]
    pretraining = [_sum([train_seconds(one) for one in chain]) for chain in chains] if known else []
    shares = [_sum([_share(one, children) for one in chain]) for chain in chains] if known else []
    document = _median([document_seconds(record) for record in records])
    watts = _median([_watts(record, cost) for record in records])
    prices = [cost.of(device_name(record)).price_per_hour for record in records]
    whole = [[record, *chain] for record, chain in zip(records, chains)] if known else []
    return Bill(
        finetune_s=_median([train_seconds(record) for record in records]),
        pretrain_s=_median(pretraining),
        shared_s=_median(shares),
        train_money=_median([_sum([_money(one, cost) for one in chain]) for chain in whole]),
        train_wh=_median([_sum([energy(one, cost) for one in chain]) for chain in whole]),
        document_s=document,
        document_money=times(document, _median(prices), 1 / HOUR),
        document_wh=times(document, watts, 1 / HOUR),
    )


def count_children(records: Sequence[Record]) -> dict[str, int]:
    """Hash of a run to the number of completed runs that start from it."""
    counts: dict[str, int] = {}
    for record in records:
        if record.status == "completed" and record.pretrain is not None:
            digest = str(record.pretrain.get("hash"))
            counts[digest] = counts.get(digest, 0) + 1
    return counts


def train_seconds(record: Record) -> float | None:
    """The time to train a run: of its processes from start to end, evaluations and checkpoints included.

    An old record does not have it: then that of its training steps alone. Of a baseline it is the fit of the one that
    the claims use, for its run also fits the tuned ones.
    """
    if record.mode == "baseline":
        return MEASURES["train_seconds"].of(record)
    wall = MEASURES["wall_seconds"].of(record)
    return wall if wall is not None else times(MEASURES["time_per_step"].of(record), number(record.step))


def tuned_seconds(records: Sequence[Record]) -> float | None:
    """The median time to fit the tuned baseline, every fit that was tried on the way included; None of an encoder."""
    return _median([MEASURES["tuned_train_seconds"].of(record) for record in records])


def document_seconds(record: Record) -> float | None:
    """Seconds to classify a document in batches, from its text. A baseline tokenises within its measured time."""
    rate = MEASURES["inference_examples_per_s"].of(record)
    tokenize = 0.0 if record.mode == "baseline" else MEASURES["tokenize_ms_per_example"].of(record)
    return None if not rate or tokenize is None else 1 / rate + tokenize / 1000


def energy(record: Record, cost: Cost) -> float | None:
    """Watt-hours of training: counted by the GPU itself, else time by the watts of the settings."""
    counted, watts = MEASURES["energy_wh"].of(record), cost.of(device_name(record)).watts
    return counted if counted is not None else times(train_seconds(record), watts, 1 / HOUR)


def _watts(record: Record, cost: Cost) -> float | None:
    """The draw while it works: what the GPU counted in training, else that of the settings."""
    counted, wall = MEASURES["energy_wh"].of(record), MEASURES["wall_seconds"].of(record)
    return counted * HOUR / wall if counted is not None and wall else cost.of(device_name(record)).watts


def _money(record: Record, cost: Cost) -> float | None:
    return times(train_seconds(record), cost.of(device_name(record)).price_per_hour, 1 / HOUR)


def device_name(record: Record) -> str:
    """The device as `cost.devices` may name it: its kind and its own name."""
    return f"{record.device.get('kind')} {record.device.get('name')}"


def _origins(record: Record, parents: dict[str, Record]) -> list[Record] | None:
    """The runs that led to this one, the nearest first; None where one of them is not at hand."""
    chain: list[Record] = []
    while record.pretrain is not None and len(chain) < 8:
        parent = parents.get(str(record.pretrain.get("hash")))
        if parent is None:
            return None
        chain.append(parent)
        record = parent
    return chain


def _share(record: Record, children: dict[str, int]) -> float | None:
    return times(train_seconds(record), 1 / max(1, children.get(record.hash, 1)))


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known and len(known) == len(values) else None


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None


def times(*factors: float | None) -> float | None:
    """The product; None where a factor is missing."""
    known = [factor for factor in factors if factor is not None]
    return math.prod(known) if len(known) == len(factors) else None


def break_even(mine: tuple[float, float], other: tuple[float, float]) -> tuple[float | None, str]:
    """(documents, in words): when a model (cost to train, cost of a document) costs less in all than another.

    The number is where both have cost the same; None where that never comes.
    """
    dearer, saved = mine[0] - other[0], other[1] - mine[1]
    if dearer <= 0 and saved >= 0:
        return 0.0, "equal" if dearer == saved == 0 else "from the first document"
    if saved <= 0 <= dearer:
        return None, "never: it costs no less to train, and no less to run"
    documents = dearer / saved
    words = f"{documents:,.0f} documents" if documents < 1e15 else "more documents than there are"
    return documents, f"after {words}" if dearer > 0 else f"only up to {words}"


def pays(group: Group, other: Group, mine: Bill, theirs: Bill) -> tuple[float | None, str]:
    """`break_even` of two groups: in money where both have prices, else in time where the device is the same."""
    if group is other:
        return None, ""
    lines = [(one.train_money, one.document_money) for one in (mine, theirs)]
    note = ""
    if any(value is None for line in lines for value in line) or lines == [(0.0, 0.0)] * 2:
        unlike = [told for told in unlike_groups(group, other) if told.startswith("device")]
        if unlike:
            return None, f"cannot be compared without prices (cost.price_per_hour, cost.devices): {unlike[0]}"
        lines = [(one.train_s, one.document_s) for one in (mine, theirs)]
        note = ", by time"
    if any(value is None for line in lines for value in line):
        return None, "not measured"
    documents, words = break_even(*lines)  # type: ignore[arg-type]
    return documents, words + note

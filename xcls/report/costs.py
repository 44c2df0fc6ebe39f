"""What a group costs its user: time, money and energy to train one model and to classify with it, and when it pays.

To train one model one pretraining and one fine-tuning are needed: a pretraining run counts in full for every group
that starts from it, though the seeds of this report share it; the share of each is given too.
"""

from __future__ import annotations

from math import nan
from typing import Any, Sequence

import pandas as pd

from xcls.report.groups import Group
from xcls.report.measures import MEASURES
from xcls.report.references import unlike_groups
from xcls.report.settings import Cost, Price
from xcls.runs.record import Record

MILLION, HOUR = 1_000_000, 3600.0


def bill(group: Group, *, parents: dict[str, Record], children: dict[str, int], cost: Cost) -> dict[str, float]:
    """The costs of a group, medians over its runs; NaN where one was not measured or has no price.

    finetune_s, pretrain_s (0 from scratch), shared_s (of pretraining, divided among the `children`: how many runs of
    the report start from each parent), train_s: seconds. train_money, train_wh: of training. document_s,
    document_money, document_wh: of one document in batches, tokenisation included.
    """
    rows = [_bill(run.record, parents, children, cost) for run in group.runs]
    return pd.DataFrame(rows).median(skipna=False).to_dict()


def _bill(record: Record, parents: dict[str, Record], children: dict[str, int], cost: Cost) -> dict[str, float]:
    chain, one = [record], record
    while one.pretrain is not None and len(chain) < 8 and (found := parents.get(str(one.pretrain.get("hash")))):
        chain.append(one := found)
    whole = [*map(train_seconds, chain), *([nan] if one.pretrain is not None and len(chain) < 8 else [])]
    prices, document = [price_of(each, cost) for each in chain], document_seconds(record)
    counted, wall = (_number(MEASURES[name].of(record)) for name in ("energy_wh", "wall_seconds"))
    watts = _number(prices[0].watts) if counted != counted else counted * HOUR / wall
    shares = [seconds / max(1, children.get(each.hash, 1)) for each, seconds in zip(chain[1:], whole[1:])]
    lost = sum(whole[1:]) * 0.0  # NaN where a parent is not at hand
    money = [seconds * _number(price.price_per_hour) * (1 / HOUR) for seconds, price in zip(whole, prices)]
    return {
        "finetune_s": whole[0],
        "pretrain_s": float(sum(whole[1:])),
        "shared_s": sum(shares) + lost,
        "train_s": sum(whole[1:]) + whole[0],
        "train_money": sum(money) + lost,
        "train_wh": sum(_energy(each, price) for each, price in zip(chain, prices)) + lost,
        "document_s": document,
        "document_money": document * _number(prices[0].price_per_hour) * (1 / HOUR),
        "document_wh": document * watts * (1 / HOUR),
    }


def _number(value: float | None) -> float:
    return nan if value is None else value


def count_children(records: Sequence[Record]) -> dict[str, int]:
    """Hash of a run to the number of completed runs that start from it."""
    done = [record.pretrain for record in records if record.status == "completed" and record.pretrain is not None]
    return pd.Series([str(origin.get("hash")) for origin in done], dtype=object).value_counts().to_dict()


def train_seconds(record: Record) -> float:
    """The time to train a run: of its processes from start to end, evaluations and checkpoints included.

    An old record does not have it: then that of its training steps alone. Of a baseline it is the fit of the one that
    the claims use, for its run also fits the tuned ones.
    """
    if record.mode == "baseline":
        return _number(MEASURES["train_seconds"].of(record))
    wall, step = MEASURES["wall_seconds"].of(record), _number(MEASURES["time_per_step"].of(record))
    return wall if wall is not None else step * record.step


def document_seconds(record: Record) -> float:
    """Seconds to classify a document in batches, from its text. A baseline tokenises within its measured time."""
    rate = MEASURES["inference_examples_per_s"].of(record)
    tokenize = 0.0 if record.mode == "baseline" else MEASURES["tokenize_ms_per_example"].of(record)
    return nan if not rate or tokenize is None else 1 / rate + tokenize / 1000


def price_of(record: Record, cost: Cost) -> Price:
    """The price of the machine of a run, by the kind and the name of its device."""
    return cost.of(f"{record.device.get('kind')} {record.device.get('name')}")


def _energy(record: Record, price: Price) -> float:
    """Watt-hours of training: counted by the GPU itself, else time by the watts of the settings."""
    counted = MEASURES["energy_wh"].of(record)
    return counted if counted is not None else train_seconds(record) * _number(price.watts) * (1 / HOUR)


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


def pays(group: Group, other: Group, mine: dict[str, float], theirs: dict[str, float]) -> tuple[float | None, str]:
    """`break_even` of two groups: in money where both have prices, else in time where the device is the same."""
    lines: list[Any] = [(one["train_money"], one["document_money"]) for one in (mine, theirs)]
    note = ""
    if any(value != value for line in lines for value in line) or lines == [(0.0, 0.0)] * 2:
        unlike = [told for told in unlike_groups(group, other) if told.startswith("device")]
        if unlike:
            return None, f"cannot be compared without prices (cost.price_per_hour, cost.devices): {unlike[0]}"
        lines, note = [(one["train_s"], one["document_s"]) for one in (mine, theirs)], ", by time"
    if any(value != value for line in lines for value in line):
        return None, "not measured"
    documents, words = break_even(*lines)
    return documents, words + note

"""What a model costs its user: time, money and energy to train it and to classify with it, and when it pays.

One model needs one pretraining and one fine-tuning. So the pretraining counts in full for each group that starts from
it, although the seeds of this report share it.
"""

from __future__ import annotations

from math import isnan, nan

import pandas as pd

from xcls.report.groups import Group
from xcls.report.measures import MEASURES
from xcls.report.references import unlike_groups
from xcls.report.settings import Cost, Price
from xcls.runs.record import Record

MILLION, HOUR = 1_000_000, 3600.0
LONGEST = 8  # runs in a chain of pretraining


def bill(group: Group, *, parents: dict[str, Record], cost: Cost) -> dict[str, float]:
    """The costs of a group, medians over its runs; NaN if not measured or without a price.

    Training: finetune_hours, pretrain_hours (0 from scratch), train_hours (their sum), train_money, train_kWh.
    Classifying: document_s (seconds per document in batches, tokenisation included); for a million documents
    documents_hours, documents_money, documents_kWh.
    """
    rows = [_bill(run.record, parents, cost) for run in group.runs]
    return pd.DataFrame(rows).median(skipna=False).to_dict()


def _bill(record: Record, parents: dict[str, Record], cost: Cost) -> dict[str, float]:
    chain, one = [record], record
    while one.pretrain is not None and len(chain) < LONGEST and (found := parents.get(str(one.pretrain.get("hash")))):
        chain.append(one := found)
    lost = 0.0 if one.pretrain is None else nan  # the record of the pretraining run was not found
    hours = [train_seconds(each) / HOUR for each in chain]
    prices = [cost.of(f"{each.device.get('kind')} {each.device.get('name')}") for each in chain]
    rates = [_number(price.price_per_hour) for price in prices]
    watts = [_watts(each, price) for each, price in zip(chain, prices)]
    document = document_seconds(record)
    documents = document * MILLION / HOUR
    return {
        "finetune_hours": hours[0],
        "pretrain_hours": sum(hours[1:]) + lost,
        "train_hours": sum(hours) + lost,
        "train_money": sum(time * rate for time, rate in zip(hours, rates)) + lost,
        "train_kWh": sum(time * watt / 1000 for time, watt in zip(hours, watts)) + lost,
        "document_s": document,
        "documents_hours": documents,
        "documents_money": documents * rates[0],
        "documents_kWh": documents * watts[0] / 1000,
    }


def _number(value: float | None) -> float:
    return nan if value is None else value


def train_seconds(record: Record) -> float:
    """Seconds of training, from the start to the end of its processes, with evaluations and checkpoints.

    Old records have only the time of the training steps. For a baseline: the fit of the untuned model, which the claims
    use; the same run also fits the tuned ones.
    """
    if record.mode == "baseline":
        return _number(MEASURES["train_seconds"].of(record))
    wall, step = MEASURES["wall_seconds"].of(record), _number(MEASURES["time_per_step"].of(record))
    return wall if wall is not None else step * record.step


def document_seconds(record: Record) -> float:
    """Seconds to classify one document in batches, from its text. A baseline's measured time includes tokenisation."""
    rate = MEASURES["inference_examples_per_s"].of(record)
    tokenize = 0.0 if record.mode == "baseline" else MEASURES["tokenize_ms_per_example"].of(record)
    return nan if not rate or tokenize is None else 1 / rate + tokenize / 1000


def _watts(record: Record, price: Price) -> float:
    """Power in training, watts: measured by the GPU itself, else taken from the settings."""
    energy, seconds = MEASURES["energy_wh"].of(record), train_seconds(record)
    return energy * HOUR / seconds if energy is not None and seconds > 0 else _number(price.watts)


def break_even(mine: tuple[float, float], other: tuple[float, float]) -> tuple[float | None, str]:
    """(documents, text): from how many documents on a model is cheaper in total than another one.

    A model is (cost of training, cost per document). documents: where both cost the same; None if that never happens.
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
    """`break_even` of two groups: in money if both have prices, else in time if the device is the same."""
    units = ["money", "hours"]
    lines = [[(one[f"train_{unit}"], one[f"documents_{unit}"] / MILLION) for one in (mine, theirs)] for unit in units]
    (money, time), note = lines, ""
    if any(isnan(value) for line in money for value in line) or money == [(0.0, 0.0)] * 2:
        unlike = [condition for condition in unlike_groups(group, other) if condition.startswith("device")]
        if unlike:
            return None, f"cannot be compared without prices (cost.price_per_hour, cost.devices): {unlike[0]}"
        money, note = time, ", by time"
    if any(isnan(value) for line in money for value in line):
        return None, "not measured"
    documents, words = break_even(*money)
    return documents, words + note

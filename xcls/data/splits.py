"""From what a source gives to what a run uses: missing rows, leaks, validation, limits and the text for MLM."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from xcls.data.readers import read_texts
from xcls.data.source import Source, Splits, as_columns, column, is_missing
from xcls.data.stratify import carve, first_alike, sample, text_key
from xcls.schema import Dataset, UserError

if TYPE_CHECKING:
    import datasets


@dataclass
class Prepared:
    """The splits of a run, with the columns `text` (str), `label` (int) and `id` (str), no value missing.

    `mlm_texts`: training text, unlabelled and extra text, none of it in validation or test. `report`: counts, and
    `warnings`, a list of sentences for the log and the record.
    """

    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    mlm_texts: list[str]
    classes: list[str]
    report: dict[str, Any] = field(default_factory=dict)


def prepare(source: Source, settings: Dataset) -> Prepared:
    """Loads a source and prepares its splits by `settings`. Raises UserError for data that cannot be trained on.

    Call it before a run's folder is made: all that can be wrong with the data shows here.
    """
    splits = source.load()
    report: dict[str, Any] = {"warnings": list(splits.notes)}
    names = ["train", *(["validation"] if splits.validation is not None else []), "test"]
    made = {name: _whole_rows(getattr(splits, name), name, settings.missing, report) for name in names}
    for name, rows in made.items():
        if not len(rows):
            raise UserError(
                f"dataset={settings.name}: no row of {name} has both text and label. Look at the columns that "
                "dataset.text and dataset.label name."
            )
    keys = {name: [text_key(text) for text in column(rows, "text")] for name, rows in made.items()}
    _leaks(made, keys, settings.leak, report)
    _repeats(made["train"], keys["train"], report)
    whole = len(made["train"])
    if splits.validation is None:
        chosen = carve(
            np.asarray(column(made["train"], "label")),
            settings.validation,
            seed=settings.split_seed,
            alike=first_alike(keys["train"]),
        )
        for name, side in (("validation", chosen), ("train", ~chosen)):  # train last: both are cut from it
            rows = np.flatnonzero(side)
            made[name], keys[name] = made["train"].select(rows), [keys["train"][row] for row in rows]
        if not len(made["validation"]):
            raise UserError(
                f"dataset={settings.name}: {whole} training rows are too few to set some aside for validation. Give more, or "
                "a validation file (dataset=files)."
            )
    _limit(made, keys, settings, report)
    _check_classes(made, splits.classes, settings.name, report)
    texts = _mlm_texts(made, keys, splits, settings, len(made["train"]) / whole, report)
    return Prepared(
        train=made["train"],
        validation=made["validation"],
        test=made["test"],
        mlm_texts=texts,
        classes=splits.classes,
        report=report,
    )


def _whole_rows(rows: datasets.Dataset, name: str, missing: str, report: dict[str, Any]) -> datasets.Dataset:
    """The rows that have text and label; the others are counted, and refused if `missing` says so."""
    texts, labels, ids = column(rows, "text"), column(rows, "label"), column(rows, "id")
    no_text = [is_missing(text) for text in texts]
    no_label = [label is None for label in labels]
    report[f"{name}_no_text"], report[f"{name}_no_label"] = sum(no_text), sum(no_label)
    bad = [row for row in range(len(rows)) if no_text[row] or no_label[row]]
    if not bad:
        return rows
    found = f"{name}: {sum(no_text)} rows have no text and {sum(no_label)} no label (the first is {ids[bad[0]]})"
    if missing == "refuse":
        raise UserError(f"{found}. Mend them, or set dataset.missing=skip to leave them out.")
    report["warnings"].append(f"{found}; {len(bad)} of {len(rows)} rows are left out.")
    return rows.select(np.setdiff1d(np.arange(len(rows)), bad))


def _leaks(made: dict[str, datasets.Dataset], keys: dict[str, list[bytes]], leak: str, report: dict[str, Any]) -> None:
    """Counts rows whose text stands in a later split too, and drops them from the earlier one if `leak` says so."""
    later = set(keys["test"])
    for name in ("validation", "train"):
        if name not in made:
            continue
        leaking = [key in later for key in keys[name]]
        report[f"{name}_leak"] = sum(leaking)
        if any(leaking):
            first = made[name][leaking.index(True)]["id"]
            where = "test" if name == "validation" or "validation" not in made else "validation or test"
            done = "they are dropped." if leak == "drop" else "dataset.leak=drop leaves them out."
            report["warnings"].append(
                f"{sum(leaking)} rows of {name} stand in {where} too (the first is {first}); {done}"
            )
            if leak == "drop":
                kept = [row for row, leaks in enumerate(leaking) if not leaks]
                if not kept:
                    raise UserError(f"every row of {name} stands in {where} too; dataset.leak=drop leaves nothing.")
                made[name], keys[name] = made[name].select(kept), [keys[name][row] for row in kept]
        later |= set(keys[name])


def _repeats(train: datasets.Dataset, keys: list[bytes], report: dict[str, Any]) -> None:
    """Counts rows of train that repeat an earlier text, and those that do so under another label."""
    alike, labels = first_alike(keys), np.asarray(column(train, "label"))
    repeated = alike != np.arange(len(alike))
    contrary = repeated & (labels != labels[alike])
    report["train_repeated"], report["train_contrary"] = int(repeated.sum()), int(contrary.sum())
    if contrary.any():
        row = int(np.flatnonzero(contrary)[0])
        report["warnings"].append(
            f"{contrary.sum()} rows of train repeat the text of another row under another label (the first is "
            f"{train[row]['id']}, a repetition of {train[int(alike[row])]['id']})."
        )
    if repeated.mean() > 0.01:
        row = int(np.flatnonzero(repeated)[0])
        report["warnings"].append(
            f"{repeated.sum()} of {len(alike)} rows of train repeat the text of an earlier row (the first is {train[row]['id']}, a "
            f"repetition of {train[int(alike[row])]['id']}). They count as often as they stand there; take them out if that is wrong."
        )


def _limit(
    made: dict[str, datasets.Dataset], keys: dict[str, list[bytes]], settings: Dataset, report: dict[str, Any]
) -> None:
    """Cuts train to `limit` rows and validation in proportion, both stratified. Test stays whole: it is the test."""
    if settings.limit is None or settings.limit >= len(made["train"]):
        return
    shrink = settings.limit / len(made["train"])
    for name, count in (("train", settings.limit), ("validation", max(round(shrink * len(made["validation"])), 1))):
        labels = np.asarray(column(made[name], "label"))
        chosen = sample(labels, max(count, min(len(np.unique(labels)), len(labels))), seed=settings.split_seed)
        made[name], keys[name] = made[name].select(chosen), [keys[name][row] for row in chosen]
    report["warnings"].append(f"dataset.limit={settings.limit}: a part of the training data, for a quick look only.")


def _check_classes(made: dict[str, datasets.Dataset], classes: list[str], name: str, report: dict[str, Any]) -> None:
    """Counts rows per split and class; at least two classes must be left in train, and no class should be absent."""
    report["rows"] = {split: len(rows) for split, rows in made.items()}
    counts = {split: Counter(column(rows, "label")) for split, rows in made.items()}
    report["classes"] = {split: {label: counts[split][i] for i, label in enumerate(classes)} for split in made}
    if len(counts["train"]) < 2:
        raise UserError(
            f"dataset={name}: the training rows have {len(counts['train'])} class; a classifier needs two. Add rows of another, or "
            "set dataset.label to the column with the classes."
        )
    for split in ("train", "validation", "test"):
        absent = [label for label, count in report["classes"][split].items() if not count]
        if absent:
            report["warnings"].append(f"{split} has no row of the classes {', '.join(absent[:12])}.")


def _mlm_texts(
    made: dict[str, datasets.Dataset],
    keys: dict[str, list[bytes]],
    splits: Splits,
    settings: Dataset,
    share: float,
    report: dict[str, Any],
) -> list[str]:
    """Text of train, then unlabelled and extra text (under a limit `share` of it); nothing of validation or test."""
    held_out = {*keys["validation"], *keys["test"]}
    texts = [text for text, key in zip(column(made["train"], "text"), keys["train"]) if key not in held_out]
    more = (
        []
        if splits.unlabelled is None
        else [text for text in column(splits.unlabelled, "text") if not is_missing(text)]
    )
    report["rows"]["unlabelled"] = len(more)
    for path in settings.extra:
        found = read_texts(path, as_columns(settings.text))
        report["rows"]["extra"] = report["rows"].get("extra", 0) + len(found)
        more += found
    if settings.limit is not None:
        more = more[: round(share * len(more))]
    kept = [text for text in more if text_key(text) not in held_out]
    report["mlm_held_out"] = len(made["train"]) - len(texts) + len(more) - len(kept)
    report["rows"]["mlm"] = len(texts) + len(kept)
    return texts + kept

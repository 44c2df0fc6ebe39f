"""From the splits of a source to those of a run: missing values, leaks, validation, limits and the text for MLM."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from xcls.config.schema import Dataset, UserError
from xcls.data.cache import build_once, cache_folder, digest
from xcls.data.labels import some
from xcls.data.readers import text_files, text_pieces
from xcls.data.reading import Reading
from xcls.data.rows import Rows, RowWriter, Texts, read_rows
from xcls.data.source import Source, files_digest
from xcls.data.stratify import as_keys, carve, first_alike, sample, stands_in, text_key

FEWEST_HELD_OUT = 1000  # validation rows under a limit: the standard error of a share is then at most 1.6 points
EXTRA_VERSION = 2  # of extra text in the cache folder; raise it when extra text is read in another way


@dataclass
class Prepared:
    """The splits of a run, with the columns `text` (str), `label` (int) and `id` (str), no value missing.

    `mlm_texts`: training, unlabelled and extra text, without texts of validation and test; read when needed. `report`:
    counts, and `warnings`, a list of sentences for the log and the record.
    """

    train: Rows
    validation: Rows
    test: Rows
    mlm_texts: Sequence[str]
    classes: list[str]
    report: dict[str, Any] = field(default_factory=dict)


def prepare(source: Source, settings: Dataset) -> Prepared:
    """Loads a source and prepares its splits by `settings`. Raises UserError for data that cannot be trained on.

    Call it before a run's folder is made, because all problems of the data show here.
    """
    splits = source.load()
    report: dict[str, Any] = {"warnings": list(splits.notes)}
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    made = {name: _whole_rows(rows, name, settings.missing, report) for name, rows in parts.items() if rows is not None}
    for name, rows in made.items():
        if not len(rows):
            raise UserError(
                f"dataset={settings.name}: no row of {name} has both text and label. Look at the columns that "
                "dataset.text and dataset.label name."
            )
    _leaks(made, settings.leak, report)
    train = made["train"]
    alike, whole = first_alike(train.keys()), len(train)
    _repeats(train, alike, report)
    if splits.validation is None:
        chosen = carve(train.labels, settings.validation, seed=settings.split_seed, alike=alike)
        made["validation"], made["train"] = train.select(chosen), train.select(~chosen)
        if not len(made["validation"]):
            place = f" ({settings.path})" if settings.path else ""
            raise UserError(
                f"dataset={settings.name}{place}: {whole} training rows are too few to set some aside for "
                "validation. Give more, or "
                "a validation file (dataset=files): two or more different texts of a class must be left beside test."
            )
    _limit(made, settings, report)
    _check_classes(made, splits.classes, settings.name, report)
    more = [] if splits.unlabelled is None else [splits.unlabelled.select(~_blank(splits.unlabelled.keys()))]
    report["rows"]["unlabelled"] = sum(map(len, more))
    more += [_extra_rows(path, source.reading()) for path in settings.extra]
    if settings.extra:
        report["rows"]["extra"] = sum(map(len, more)) - report["rows"]["unlabelled"]
    share = 1.0 if settings.limit is None else len(made["train"]) / whole
    return Prepared(**made, mlm_texts=_mlm_texts(made, more, share, report), classes=splits.classes, report=report)


def _whole_rows(rows: Rows, name: str, missing: str, report: dict[str, Any]) -> Rows:
    """The rows with text and label; counts the others, or raises UserError with `missing=refuse`."""
    no_text, no_label = _blank(rows.keys()), rows.labels < 0
    bad = no_text | no_label
    report[f"{name}_no_text"], report[f"{name}_no_label"] = int(no_text.sum()), int(no_label.sum())
    if not bad.any():
        return rows
    first = rows["id"][int(np.argmax(bad))]
    found = f"{name}: {no_text.sum()} rows have no text and {no_label.sum()} no label (the first is {first})"
    if missing == "refuse":
        raise UserError(f"{found}. Correct them, or set dataset.missing=skip to leave them out.")
    report["warnings"].append(f"{found}; {bad.sum()} of {len(rows)} rows are left out.")
    return rows.select(~bad)


def _blank(keys: np.ndarray) -> np.ndarray:
    """Which of the keys uint64 [R, 2] belong to a text that is missing or only white space, bool [R]."""
    return (keys == as_keys([text_key("")])).all(axis=1)


def _leaks(made: dict[str, Rows], leak: str, report: dict[str, Any]) -> None:
    """Counts rows whose text is also in a later split; with `leak=drop` removes them from the earlier one."""
    later = made["test"].keys()
    for name in ("validation", "train"):
        if name not in made:
            continue
        leaking = stands_in(made[name].keys(), later)
        report[f"{name}_leak"] = int(leaking.sum())
        if leaking.any():
            first = made[name]["id"][int(np.argmax(leaking))]
            where = "test" if name == "validation" or "validation" not in made else "validation or test"
            done = "they are dropped." if leak == "drop" else "dataset.leak=drop leaves them out."
            report["warnings"].append(
                f"{leaking.sum()} rows of {name} are also in {where} (the first is {first}); {done}"
            )
            if leak == "drop":
                if leaking.all():
                    raise UserError(f"every row of {name} is also in {where}; dataset.leak=drop leaves nothing.")
                made[name] = made[name].select(~leaking)
        later = np.concatenate([later, made[name].keys()])


def _repeats(train: Rows, alike: np.ndarray, report: dict[str, Any]) -> None:
    """Counts rows of train that repeat an earlier text (`alike`), and those of them with another label."""
    ids, labels = train["id"], train.labels
    repeated = alike != np.arange(len(alike))
    contrary = repeated & (labels != labels[alike])
    report["train_repeated"], report["train_contrary"] = int(repeated.sum()), int(contrary.sum())
    if contrary.any():
        row = int(np.flatnonzero(contrary)[0])
        report["warnings"].append(
            f"{contrary.sum()} rows of train repeat the text of another row with another label (the first is "
            f"{ids[row]}, a repetition of {ids[int(alike[row])]})."
        )
    if repeated.mean() > 0.01:
        row = int(np.flatnonzero(repeated)[0])
        report["warnings"].append(
            f"{repeated.sum()} of {len(alike)} rows of train repeat the text of an earlier row (the first is "
            f"{ids[row]}, a repetition of {ids[int(alike[row])]}). Each of them counts in training; remove them "
            "if that is wrong."
        )


def _limit(made: dict[str, Rows], settings: Dataset, report: dict[str, Any]) -> None:
    """Cuts train to `limit` rows, and validation in proportion but not below FEWEST_HELD_OUT; both stratified.

    Test stays whole.
    """
    if settings.limit is None or settings.limit >= len(made["train"]):
        return
    held_out = round(settings.limit / len(made["train"]) * len(made["validation"]))
    for name, count in (("train", settings.limit), ("validation", max(held_out, FEWEST_HELD_OUT))):
        labels = made[name].labels
        count = min(count, len(labels))
        chosen = sample(labels, max(count, min(len(np.unique(labels)), len(labels))), seed=settings.split_seed)
        made[name] = made[name].select(chosen)
    report["warnings"].append(f"dataset.limit={settings.limit}: a part of the training data, for a quick look only.")


def _check_classes(made: dict[str, Rows], classes: list[str], name: str, report: dict[str, Any]) -> None:
    """Counts rows per split and class. Raises UserError for fewer than two classes in train, warns of absent ones."""
    report["rows"] = {split: len(rows) for split, rows in made.items()}
    counts = {split: np.bincount(rows.labels, minlength=len(classes)).tolist() for split, rows in made.items()}
    report["classes"] = {split: dict(zip(classes, counts[split])) for split in made}
    if np.count_nonzero(counts["train"]) < 2:
        raise UserError(
            f"dataset={name}: the training rows have {np.count_nonzero(counts['train'])} class; a classifier needs "
            "two. Add rows of another, or set dataset.label to the column with the classes."
        )
    for split in ("train", "validation", "test"):
        absent = [label for label, count in report["classes"][split].items() if not count]
        if absent:
            report["warnings"].append(f"{split} has no row of the classes {some(absent)}.")


def _mlm_texts(made: dict[str, Rows], more: list[Rows], share: float, report: dict[str, Any]) -> Texts:
    """The texts of train, then the first `share` of those of `more`, without texts of validation and test."""
    held_out = np.concatenate([made["validation"].keys(), made["test"].keys()])
    count = left = round(share * sum(map(len, more)))
    parts = [made["train"]]
    for rows in more:
        parts.append(rows.select(np.arange(min(left, len(rows)))))
        left -= len(parts[-1])
    texts = Texts([rows.select(~stands_in(rows.keys(), held_out))["text"] for rows in parts])
    report["mlm_held_out"] = len(made["train"]) + count - len(texts)
    report["rows"]["mlm"] = len(texts)
    return texts


def _extra_rows(path: str, reading: Reading) -> Rows:
    """The documents at `path`, from a cache that is read piece by piece. Raises UserError."""
    files = text_files(path)
    name = digest([EXTRA_VERSION, files_digest(files), [file.name for file in files], reading.identity])[:24]

    def build(folder: Path) -> None:
        writer = RowWriter(folder)
        for piece in text_pieces(path, reading):
            writer.add(text=piece, label=[None] * len(piece), id=[""] * len(piece))
        writer.rows()

    return read_rows(build_once(cache_folder() / "rows" / name, build, what=f"the text of {path}"))

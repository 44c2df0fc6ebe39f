"""What the runs said about every example: `predictions.parquet`, checked before a number is made of it. No pandas."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xcls.report.load import Run
from xcls.report.measures import number
from xcls.runs.record import Record, sha256

FILE = "predictions.parquet"
COLUMNS = ("split", "id", "label", "prediction")
CLOSE = 1e-9  # between a record's score and the same one made again from the predictions


class Unusable(ValueError):
    """Why nothing can be made of a run's predictions, in a few words."""


@dataclass(frozen=True)
class Predictions:
    """One split of one run, rows in the order of their ids: class numbers `labels` [rows] and `said` [rows].

    `examples` is equal for runs that were scored on the same examples with the same labels and classes.
    """

    examples: str
    classes: int
    labels: np.ndarray
    said: np.ndarray
    names: tuple[str, ...] = ()  # of the classes

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of every class, [classes]: the rows that are of it, that were named it, and that were rightly named it."""
        hits = self.labels[self.labels == self.said]
        there, named, right = (np.bincount(rows, minlength=self.classes) for rows in (self.labels, self.said, hits))
        return there, named, right

    @property
    def macro_f1(self) -> float:
        """F1 averaged over all classes; one that is neither there nor named counts as 0."""
        there, named, hits = self.counts()
        return float((2.0 * hits / np.maximum(there + named, 1)).mean())

    @property
    def accuracy(self) -> float:
        """The share of examples whose class was named."""
        return float((self.labels == self.said).mean())


def read_predictions(run: Run) -> dict[str, Predictions]:
    """Split -> predictions of a run. Raises Unusable: missing, damaged, not the record's, not giving its scores."""
    expected = run.record.files.get(FILE)
    file = Path(run.folder) / FILE
    if not expected:
        raise Unusable("its record names no predictions")
    try:
        if sha256(file) != expected:
            raise Unusable(f"{FILE} is not the one of its record (checksum)")
        found = _read(file)
    except OSError as error:
        raise Unusable(f"{FILE}: {error.strerror or error}") from error
    for split, predictions in found.items():
        _check(split, predictions, run.record)
    return found


def _read(file: Path) -> dict[str, Predictions]:
    """The parquet file by its columns; classes are those of its columns p_<class>."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:  # pq.read_table, pa.array and to_numpy would import pandas
            names = opened.schema_arrow.names
            classes = sorted(name[2:] for name in names if name.startswith("p_"))
            missing = [name for name in COLUMNS if name not in names]
            if missing or not classes:
                raise Unusable(f"{FILE} has no column {', '.join(missing) or 'p_<class>'}")
            table = opened.read(columns=list(COLUMNS)).sort_by("id")
        ids = np.array(table["id"].to_pylist(), dtype=object)
        labels, said = (_codes(table[name], classes) for name in ("label", "prediction"))
        splits = sorted(set(table["split"].to_pylist()))
        of_row = _codes(table["split"], splits)
    except (pa.ArrowException, TypeError) as error:
        raise Unusable(f"{FILE} cannot be read: {' '.join(str(error).split())[:120]}") from error
    if (labels < 0).any() or (said < 0).any():
        raise Unusable(f"{FILE} names classes that it has no probabilities for")
    rows_of = {name: np.flatnonzero(of_row == place) for place, name in enumerate(splits)}
    return {name: _split(ids[rows].tolist(), labels[rows], said[rows], classes) for name, rows in rows_of.items()}


def _codes(column: Any, names: list[str]) -> np.ndarray:
    """The place in `names` of every text of an Arrow column, int64 [rows]; -1 for one that is not among them."""
    encoded = column.combine_chunks().dictionary_encode()
    place = {name: number for number, name in enumerate(names)}
    known = np.array([place.get(str(name), -1) for name in encoded.dictionary.to_pylist()] or [-1], np.int64)
    return known[np.array(encoded.indices.to_pylist(), np.int64)]


def _split(ids: list[str], labels: np.ndarray, said: np.ndarray, classes: list[str]) -> Predictions:
    if len(set(ids)) < len(ids):
        raise Unusable(f"{FILE} has an example twice")
    digest = hashlib.sha256(repr((classes, ids)).encode())
    digest.update(np.ascontiguousarray(labels, np.int32).tobytes())
    return Predictions(digest.hexdigest(), len(classes), labels, said, tuple(classes))


def _check(split: str, predictions: Predictions, record: Record) -> None:
    """Raises Unusable where the record's macro-F1 or accuracy is not what its predictions give."""
    for name in ("macro_f1", "accuracy"):
        told = number((record.metrics.get(split) or {}).get(name))
        again = getattr(predictions, name)
        if told is not None and abs(told - again) > CLOSE:
            raise Unusable(f"they give a {split} {name} of {again:.6f}, its record says {told:.6f}")

"""The predictions of a run for every example (`predictions.parquet`), checked before they are used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from xcls.report.load import Run
from xcls.report.measures import number
from xcls.runs.record import sha256

FILE = "predictions.parquet"
CLOSE = 1e-9  # tolerance between a recorded score and the same score computed from the predictions


class Unusable(ValueError):
    """Why the predictions of a run cannot be used, in a few words."""


@dataclass(frozen=True)
class Predictions:
    """One split of one run, rows sorted by id: true classes `labels` [rows] and predicted classes `said` [rows].

    `examples` is equal for runs that were scored on the same examples with the same labels and classes.
    """

    examples: str
    classes: int
    labels: np.ndarray
    said: np.ndarray

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per class, [classes] each: rows with this label, rows predicted as it, and correct predictions."""
        hits = self.labels[self.labels == self.said]
        support, predicted, right = (
            np.bincount(rows, minlength=self.classes) for rows in (self.labels, self.said, hits)
        )
        return support, predicted, right

    @property
    def macro_f1(self) -> float:
        """F1 averaged over all classes; a class with no rows and no predictions counts as 0."""
        support, predicted, hits = self.counts()
        return float((2.0 * hits / np.maximum(support + predicted, 1)).mean())

    @property
    def accuracy(self) -> float:
        """The share of correct predictions."""
        return float((self.labels == self.said).mean())


def read_predictions(run: Run) -> dict[str, Predictions]:
    """Split -> predictions of a run. Raises Unusable: missing, damaged, other checksum or scores than in the record."""
    expected, file = run.record.files.get(FILE), Path(run.folder) / FILE
    if not expected:
        raise Unusable("its record names no predictions")
    try:
        if sha256(file) != expected:
            raise Unusable(f"{FILE} is not the one of its record (checksum)")
        frame = pd.read_parquet(file).sort_values("id", kind="stable")
        classes = sorted(name[2:] for name in frame.columns if name.startswith("p_"))
        codes = {name: pd.Categorical(frame[name].astype(str), classes).codes for name in ("label", "prediction")}
        frame = frame.assign(**codes)[["split", "id", *codes]]
    except Unusable:
        raise
    except OSError as error:
        raise Unusable(f"{FILE}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError) as error:  # Arrow raises ValueErrors
        raise Unusable(f"{FILE} cannot be read: {str(error)[:120]}") from error
    if (frame[["label", "prediction"]] < 0).any(axis=None):
        raise Unusable(f"{FILE} names classes that it has no probabilities for")
    found = {str(split): _split(rows, classes) for split, rows in frame.groupby("split")}
    for split, predictions in found.items():
        for name in ("macro_f1", "accuracy"):
            recorded, again = number((run.record.metrics.get(split) or {}).get(name)), getattr(predictions, name)
            if recorded is not None and abs(recorded - again) > CLOSE:
                raise Unusable(f"they give a {split} {name} of {again:.6f}, its record says {recorded:.6f}")
    return found


def _split(rows: pd.DataFrame, classes: list[str]) -> Predictions:
    if rows["id"].duplicated().any():
        raise Unusable(f"{FILE} has an example twice")
    labels, said = (rows[name].to_numpy(np.int64) for name in ("label", "prediction"))
    digest = hashlib.sha256(repr((classes, rows["id"].tolist())).encode())
    digest.update(np.ascontiguousarray(labels, np.int32).tobytes())
    return Predictions(digest.hexdigest(), len(classes), labels, said)

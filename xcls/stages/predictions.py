"""predictions.parquet: what a run said about every example of validation and test."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

from xcls.stages.texts import Labelled
from xcls.train.checkpoint import write_bytes

if TYPE_CHECKING:
    import pyarrow as pa

PIECE = 20_000  # rows that are made at once


def probability_columns(probabilities: np.ndarray, classes: list[str]) -> dict[str, np.ndarray]:
    """One column `p_<class>` per class, of probabilities [rows, C]."""
    return {f"p_{name}": probabilities[:, number] for number, name in enumerate(classes)}


@dataclass(frozen=True)
class Predicted:
    """What was said about the rows of one split: probabilities [rows, C] of the classes."""

    split: str
    rows: Labelled
    probabilities: np.ndarray
    classes: list[str]

    def table(self, start: int, end: int) -> pa.Table:
        """Columns split, id, label, prediction (names of classes) and p_<class>, of the rows `start` … `end`-1."""
        import pyarrow as pa

        probabilities = self.probabilities[start:end]
        names = pa.array(self.classes, pa.string())
        columns: dict[str, Any] = {
            "split": pa.array([self.split] * len(probabilities), pa.string()),
            "id": pa.array(list(self.rows.ids[start:end]), pa.string()),
            "label": names.take(pa.array(self.rows.labels[start:end])),
            "prediction": names.take(pa.array(probabilities.argmax(axis=1))),
        }
        return pa.table({**columns, **probability_columns(probabilities, self.classes)})


def write_predictions(path: Path, parts: Sequence[Predicted]) -> None:
    """Writes all of them as one parquet file, whole or not at all."""
    import pyarrow.parquet as parquet

    buffer = io.BytesIO()
    with parquet.ParquetWriter(buffer, parts[0].table(0, 0).schema) as writer:
        for part in parts:
            for start in range(0, len(part.probabilities), PIECE):
                writer.write_table(part.table(start, start + PIECE))
    write_bytes(path, buffer.getvalue())

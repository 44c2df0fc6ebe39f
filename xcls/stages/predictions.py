"""predictions.parquet: what a run said about every example of validation and test."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Sequence

import numpy as np
import pandas as pd

from xcls.train.checkpoint import write_bytes


def probability_columns(probabilities: np.ndarray, classes: list[str]) -> dict[str, np.ndarray]:
    """One column `p_<class>` per class, of probabilities [rows, C]."""
    return {f"p_{name}": probabilities[:, number] for number, name in enumerate(classes)}


def prediction_table(
    split: str, ids: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, classes: list[str]
) -> pd.DataFrame:
    """Columns split, id, label, prediction (names of classes) and p_<class>, of labels [R], probabilities [R, C]."""
    names = np.asarray(classes, dtype=object)
    said = {"label": names[labels], "prediction": names[probabilities.argmax(axis=1)]}
    columns = {"split": split, "id": list(ids), **said, **probability_columns(probabilities, classes)}
    return pd.DataFrame(columns)


def write_predictions(path: Path, tables: list[pd.DataFrame]) -> None:
    """Writes the tables as one parquet file, whole or not at all."""
    buffer = io.BytesIO()
    pd.concat(tables, ignore_index=True).to_parquet(buffer, index=False)
    write_bytes(path, buffer.getvalue())

"""Runs with predictions: what a test says of every example becomes predictions.parquet and the scores of the record."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import accuracy_score, f1_score

from xcls.runs.record import Record, sha256, write_record

CLASSES = ("bad", "fine", "good")
Split = tuple[np.ndarray, np.ndarray]  # class numbers of the labels [rows], and probabilities [rows, classes]


def examples(rows: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels [rows] of three classes, and how hard each example is [rows, classes]."""
    draw = np.random.default_rng(seed)
    return draw.choice(len(CLASSES), rows, p=[0.5, 0.3, 0.2]), draw.normal(0, 1.0, (rows, len(CLASSES)))


def guess(labels: np.ndarray, hard: np.ndarray, *, skill: float, seed: int) -> np.ndarray:
    """Probabilities [rows, classes] of a run of some skill: what is hard for one is hard for all."""
    noise = np.random.default_rng(seed).normal(0, 0.5, hard.shape)
    logits = skill * np.eye(len(CLASSES))[labels] + hard + noise
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def scores(labels: np.ndarray, said: np.ndarray) -> dict[str, float]:
    """The scores by scikit-learn."""
    return {"macro_f1": float(f1_score(labels, said, average="macro")), "accuracy": float(accuracy_score(labels, said))}


def with_predictions(
    record: Record,
    folder: Path,
    splits: dict[str, Split],
    *,
    ids: Sequence[str] | None = None,
    order: int = 0,
    classes: Sequence[str] = CLASSES,
) -> Record:
    """Writes the parquet file and the record with its scores; rows are shuffled by `order`. `ids` name the rows."""
    parts = []
    for split, (labels, probabilities) in splits.items():
        record.metrics[split] = scores(labels, probabilities.argmax(1))
        names = np.asarray(classes, dtype=object)
        columns = {
            "split": [split] * len(labels),
            "id": list(ids) if ids is not None else [f"{split}-{row}" for row in range(len(labels))],
            "label": names[labels],
            "prediction": names[probabilities.argmax(1)],
            **{f"p_{name}": probabilities[:, number] for number, name in enumerate(classes)},
        }
        parts.append(pa.table(columns).take(np.random.default_rng(order).permutation(len(labels))))
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(parts), folder / "predictions.parquet")
    record.files["predictions.parquet"] = sha256(folder / "predictions.parquet")
    write_record(record, folder)
    return record


def sweep(make, root: Path, *, rows: int = 300, skills: dict[str, float], seeds: int = 3) -> Path:
    """SDPA, other mechanisms and a baseline of these skills, all on the same examples; gives the sweep's folder."""
    data = {split: examples(rows, seed=number) for number, split in enumerate(("validation", "test"))}
    for place, (name, skill) in enumerate(skills.items()):
        for seed in range(1 if name == "baseline" else seeds):
            record = make.baseline() if name == "baseline" else make.finetune(name, seed)
            made = {
                split: (labels, guess(labels, hard, skill=skill, seed=100 * place + seed))
                for split, (labels, hard) in data.items()
            }
            make.save([record], root)
            with_predictions(record, root / "multirun" / "demo" / record.run, made, order=seed)
    return root / "multirun" / "demo"

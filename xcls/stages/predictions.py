"""The predictions of a run for validation and test: scores in the record, and predictions.parquet."""

from __future__ import annotations

import io
from typing import Any, NamedTuple, Sequence

import numpy as np
import pandas as pd

from xcls.data.batching import ClassBatches
from xcls.data.encode import Encoded
from xcls.stages.spec import RunSpec
from xcls.train.amp import Amp
from xcls.train.checkpoint import write_bytes
from xcls.train.metrics import guess_message, scores, softmax
from xcls.train.run_logger import RunLogger
from xcls.train.scoring import classify
from xcls.train.stream import width_multiple


class Predicted(NamedTuple):
    """One split: stable ids, labels int64 [R] and probabilities [R, C]."""

    ids: Sequence[str]
    labels: np.ndarray
    probabilities: np.ndarray


def probability_columns(probabilities: np.ndarray, classes: list[str]) -> dict[str, np.ndarray]:
    """One column `p_<class>` per class, of probabilities [rows, C]."""
    return {f"p_{name}": probabilities[:, number] for number, name in enumerate(classes)}


def probabilities_of(spec: RunSpec, checkpoint: dict[str, Any], texts: Encoded, *, vocab_size: int) -> np.ndarray:
    """Probabilities [R, C] of the R texts by the classifier in a checkpoint, as in the run's final evaluation."""
    config = spec.config
    amp = Amp(precision=spec.precision, hardware=config.hardware)
    model = spec.build.make_classifier(config, vocab_size=vocab_size, classes=checkpoint["classes"]).to(amp.device)
    model.load_state_dict(checkpoint["model"])
    multiple = width_multiple(config.seq_len, compiled=config.hardware.compile)
    collator = ClassBatches(encoded=texts, labels=np.zeros(len(texts), np.int64), multiple=multiple)
    return softmax(classify(model, collator, batch_size=config.finetuning.eval_batch_size, amp=amp).logits)


def note_scores(logger: RunLogger, found: dict[str, Predicted], prefix: str = "") -> str:
    """Writes the scores of each split into the record, with `prefix` before the split.

    Returns a message if the validation scores are no better than a guess, else ''.
    """
    for split, part in found.items():
        logger.record.metrics[prefix + split] = scores(part.labels, part.probabilities)
    return guess_message(logger.record.metrics[f"{prefix}validation"], found["validation"].probabilities.shape[1])


def write_predictions(logger: RunLogger, found: dict[str, Predicted], classes: list[str]) -> None:
    """Writes predictions.parquet: split, id, label, prediction (names of classes) and p_<class>."""
    names, tables = np.asarray(classes, dtype=object), []
    for split, (ids, labels, probabilities) in found.items():
        said = {"label": names[labels], "prediction": names[probabilities.argmax(axis=1)]}
        columns = {"split": split, "id": list(ids), **said, **probability_columns(probabilities, classes)}
        tables.append(pd.DataFrame(columns))
    buffer = io.BytesIO()
    pd.concat(tables, ignore_index=True).to_parquet(buffer, index=False)
    write_bytes(logger.folder / "predictions.parquet", buffer.getvalue())

"""Scores of a classification: scikit-learn's, on labels and probabilities."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

from xcls.runs.record import is_guess

Scores = dict[str, "float | None"]


def softmax(logits: np.ndarray) -> np.ndarray:
    """logits [rows, C] -> probabilities [rows, C], in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def auroc(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Area under the ROC curve, for more than two classes one-vs-rest and macro; None when a class has no example."""
    classes = probabilities.shape[1]
    if len(np.unique(labels)) < classes or classes < 2:
        return None
    if classes == 2:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    targets = np.eye(classes)[labels]  # one column per class: no demand that rows sum to one to the last bit
    return float(roc_auc_score(targets, probabilities, average="macro"))


def guess_message(found: Scores, classes: int) -> str:
    """`it predicts 1 of 8 classes, macro-F1 0.077, and a guess gives 0.125` if no better than a guess, else ''."""
    if not is_guess(found["macro_f1"], classes):
        return ""
    named, score = found["predicted_classes"], found["macro_f1"]
    return f"it predicts {named} of {classes} classes, macro-F1 {score:.3f}, and a guess gives {1 / classes:.3f}"


def scores(labels: np.ndarray, probabilities: np.ndarray) -> Scores:
    """Scores of labels [rows] and probabilities [rows, C].

    accuracy, macro_f1, weighted_f1, auroc (shares), loss (nats), predicted_classes (number of classes ever predicted).
    F1 is averaged over all C classes of the data: a class that is never predicted counts as 0. If a probability is not
    finite, every value is None.
    """
    names = ("accuracy", "macro_f1", "weighted_f1", "auroc", "loss", "predicted_classes")
    if not len(labels) or not np.isfinite(probabilities).all():
        return dict.fromkeys(names)
    classes = list(range(probabilities.shape[1]))
    predicted = probabilities.argmax(axis=1)
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, labels=classes, average="macro", zero_division=0.0)),
        "weighted_f1": float(f1_score(labels, predicted, labels=classes, average="weighted", zero_division=0.0)),
        "auroc": auroc(labels, probabilities),
        "loss": float(log_loss(labels, probabilities, labels=classes)),
        "predicted_classes": len(np.unique(predicted)),
    }

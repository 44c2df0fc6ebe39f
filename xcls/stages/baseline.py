"""mode=baseline: TF-IDF + logistic regression on the same rows as the runs, scikit-learn's defaults and a tuned one.

The defaults are what the claims are measured against: `TfidfVectorizer()` and `LogisticRegression(C=1)`. The tuned one
(n-grams, sublinear counts, C) is chosen on validation and stands beside it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from tqdm import tqdm

from xcls.data.source import column
from xcls.data.splits import Prepared
from xcls.schema import Baseline
from xcls.stages.predictions import Predicted, write_predictions
from xcls.stages.texts import Labelled
from xcls.train.journal import Journal
from xcls.train.metrics import scores, guess_told
from xcls.train.versions import commit, describe_device, versions

TUNED_NGRAMS = ((1, 1), (1, 2))
TUNED_C = (1.0, 10.0)


@dataclass(frozen=True)
class Fitted:
    """One fitted pipeline: what it is, its classifier and the seconds it took."""

    settings: dict[str, Any]
    pipeline: Pipeline
    seconds: float

    def probabilities(self, texts: list[str]) -> np.ndarray:
        """Class probabilities [rows, C] of `texts`."""
        return self.pipeline.predict_proba(texts)


def fit_default(texts: list[str], labels: np.ndarray, *, plan: Baseline) -> Fitted:
    """Fits scikit-learn's defaults (only max_iter is raised, so that the fit ends converged)."""
    began = time.perf_counter()
    pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=plan.max_iter))
    pipeline.fit(texts, labels)
    return Fitted({"ngrams": 1, "C": 1.0, "min_df": 1, "sublinear_tf": False}, pipeline, time.perf_counter() - began)


def fit_tuned(
    texts: list[str],
    labels: np.ndarray,
    *,
    validation_texts: list[str],
    score: Callable[[np.ndarray], float],
    plan: Baseline,
    bar: tqdm,
) -> Fitted:
    """Fits every setting of the small grid on train and keeps the one with the best validation `score`.

    `score` maps validation probabilities [rows, C] to a number; the first of equals is kept. `bar` moves with each fit.
    """
    began = time.perf_counter()
    best: Fitted | None = None
    best_score = -np.inf
    for ngrams in TUNED_NGRAMS:
        vectorizer = TfidfVectorizer(ngram_range=ngrams, min_df=2, sublinear_tf=True)
        features = vectorizer.fit_transform(texts)
        held_out = vectorizer.transform(validation_texts)
        for c in TUNED_C:
            classifier = LogisticRegression(C=c, max_iter=plan.max_iter).fit(features, labels)
            value = score(classifier.predict_proba(held_out))
            if value > best_score:
                settings = {"ngrams": ngrams[1], "C": c, "min_df": 2, "sublinear_tf": True}
                best, best_score = Fitted(settings, make_pipeline(vectorizer, classifier), 0.0), value
            bar.update()
    assert best is not None
    return Fitted(best.settings, best.pipeline, time.perf_counter() - began)


def document_latency(model: Fitted, texts: list[str], *, most: int = 100) -> dict[str, float]:
    """Time from text to probabilities of one document at a time, ms: median and 95th percentile, warm."""
    times = []
    for text in texts[:1] + texts[:: max(1, len(texts) // most)][:most]:
        began = time.perf_counter()
        model.probabilities([text])
        times.append(1000 * (time.perf_counter() - began))
    return {"latency_ms": float(np.median(times[1:])), "latency_p95_ms": float(np.quantile(times[1:], 0.95))}


def baseline(*, prepared: Prepared, plan: Baseline, journal: Journal, resume: bool = False) -> None:
    """Fits and evaluates the baselines, once on test. Call it within `with journal:`. It has no checkpoints: on
    `resume` it fits them anew, after the history of its earlier lives.

    The record's metrics: `validation` and `test` of the defaults, `tuned.validation` and `tuned.test` of the tuned one.
    """
    record = journal.record
    record.versions, record.commit = versions(), commit()
    record.device = {**describe_device(torch.device("cpu")), "dtype": "fp64", "shared": False}
    journal.begin(rows=[], wandb_id=None)
    if resume:
        journal.rewind([], step=0)
    texts = {name: column(getattr(prepared, name), "text") for name in ("train", "validation", "test")}
    labels = {name: np.asarray(column(getattr(prepared, name), "label"), np.int64) for name in texts}
    fits = 1 + plan.tuned * len(TUNED_NGRAMS) * len(TUNED_C)
    with tqdm(total=fits, desc="baseline", unit="fit", leave=False, disable=os.environ.get("XCLS_PROGRESS") == "0") as bar:
        fitted = {"": fit_default(texts["train"], labels["train"], plan=plan)}
        bar.update()
        if plan.tuned:
            fitted["tuned."] = fit_tuned(
                texts["train"], labels["train"], validation_texts=texts["validation"], plan=plan, bar=bar,
                score=lambda p: scores(labels["validation"], p)["macro_f1"],
            )
    parts = []
    for prefix, model in fitted.items():
        for split in ("validation", "test"):
            began = time.perf_counter()
            probabilities = model.probabilities(texts[split])
            seconds = time.perf_counter() - began
            record.metrics[prefix + split] = scores(labels[split], probabilities)
            told = guess_told(record.metrics[prefix + split], len(prepared.classes)) if split == "validation" else ""
            if told:
                journal.warn(f"The {'tuned ' if prefix else ''}baseline learned nothing: {told}. More training rows may help.")
            if not prefix:
                rows = Labelled(encoded=None, labels=labels[split], ids=getattr(prepared, split)["id"])
                parts.append(Predicted(split, rows, probabilities, prepared.classes))
            if not prefix and split == "test":
                rate = len(labels[split]) / seconds
                record.costs.update(inference_examples_per_s=rate, inference_ms_per_example=1000 / rate)
                record.costs.update(document_latency(model, texts[split]))
        record.costs[prefix + "train_seconds"] = model.seconds
        journal.event("fitted", {"name": prefix or "default", **model.settings, **record.metrics[prefix + "test"]})
    vocabulary = len(fitted[""].pipeline[0].vocabulary_)
    record.params = {"total": int((vocabulary + 1) * fitted[""].pipeline[1].coef_.shape[0])}
    write_predictions(journal.folder / "predictions.parquet", parts)
    journal.add_row({"step": 0, "epoch": 0.0, **record.metrics["validation"]})

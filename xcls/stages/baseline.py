"""mode=baseline: TF-IDF + logistic regression on the rows of the runs, with scikit-learn's defaults and tuned.

The claims are measured against the defaults: `TfidfVectorizer()` and `LogisticRegression(C=1)`. The tuned one (n-grams,
sublinear counts, C) is chosen on validation and reported too. `TfidfVectorizer()` needs words: two or more letters or
digits between blanks or punctuation. For texts without such words it counts characters: see `analyzer_of`.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from tqdm import tqdm

from xcls.config.schema import Baseline
from xcls.data.splits import Prepared
from xcls.stages.predictions import Predicted, note_scores, write_predictions
from xcls.train.metrics import scores
from xcls.train.provenance import describe_device, versions
from xcls.train.run_logger import RunLogger
from xcls.train.scoring import latency_costs

NGRAMS = {"word": ((1, 1), (1, 2)), "char": ((1, 2), (1, 3))}  # the first one is the default
TUNED_C = (1.0, 10.0)
WORD = re.compile(TfidfVectorizer().token_pattern)
LETTER = re.compile(r"[^\W\d_]")
UNSPACED = re.compile(  # letters of scripts without blanks between words: Thai, Lao, Tibetan, Burmese, Khmer, kana, Han
    r"(?=[^\W\d_])[\u0e01-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af]"
)
SAMPLED, READ = 1000, 2000  # number of texts that are checked, and characters of each


@dataclass(frozen=True)
class Fitted:
    """One fitted pipeline, its settings, and the seconds that the fit took."""

    settings: dict[str, Any]
    pipeline: Pipeline
    seconds: float


def analyzer_of(texts: list[str]) -> tuple[str, str]:
    """("word", "") or ("char", why) for the training texts; checks a sample of them.

    "char" if more than half of the texts have no word, or consist mostly of scripts without blanks between words.
    """
    some = [text[:READ].lower() for text in texts[:: max(1, len(texts) // SAMPLED)]]
    without = [not WORD.search(text) or 2 * len(UNSPACED.findall(text)) > len(LETTER.findall(text)) for text in some]
    share = sum(without) / len(some)
    return ("char", f"{share:.0%} of the texts have no words between blanks") if share > 0.5 else ("word", "")


def fit_default(texts: list[str], labels: np.ndarray, *, plan: Baseline, analyzer: str = "word") -> Fitted:
    """Fits scikit-learn's defaults on words or characters; only max_iter is raised, so that the fit converges."""
    began = time.perf_counter()
    ngrams = NGRAMS[analyzer][0]
    vectorizer = TfidfVectorizer(analyzer=analyzer, ngram_range=ngrams)
    pipeline = make_pipeline(vectorizer, LogisticRegression(max_iter=plan.max_iter)).fit(texts, labels)
    settings = {"analyzer": analyzer, "ngrams": ngrams[1], "C": 1.0, "min_df": 1, "sublinear_tf": False}
    return Fitted(settings, pipeline, time.perf_counter() - began)


def fit_tuned(
    texts: list[str],
    labels: np.ndarray,
    *,
    validation_texts: list[str],
    score: Callable[[np.ndarray], float],
    plan: Baseline,
    bar: tqdm,
    analyzer: str = "word",
) -> Fitted:
    """Fits every setting of the small grid on train and returns the one with the best validation `score`.

    `score` maps validation probabilities [rows, C] to a number; of equal scores the first wins. `bar` counts the fits.
    Terms that occur in one text only are ignored, unless there are no others.
    """
    began = time.perf_counter()
    found: list[tuple[float, dict[str, Any], Pipeline]] = []
    for ngrams in NGRAMS[analyzer]:
        vectorizer = TfidfVectorizer(analyzer=analyzer, ngram_range=ngrams, min_df=2, sublinear_tf=True)
        try:
            features = vectorizer.fit_transform(texts)
        except ValueError:  # no term is left
            features = vectorizer.set_params(min_df=1).fit_transform(texts)
        held_out = vectorizer.transform(validation_texts)
        settings = {"analyzer": analyzer, "ngrams": ngrams[1], "min_df": vectorizer.min_df, "sublinear_tf": True}
        for c in TUNED_C:
            classifier = LogisticRegression(C=c, max_iter=plan.max_iter).fit(features, labels)
            value = score(classifier.predict_proba(held_out))
            found.append((value, {**settings, "C": c}, make_pipeline(vectorizer, classifier)))
            bar.update()
    _, settings, pipeline = max(found, key=lambda one: one[0])
    return Fitted(settings, pipeline, time.perf_counter() - began)


def document_latency(model: Pipeline, texts: list[str], *, most: int = 100) -> dict[str, float | None]:
    """Time from text to probabilities, one document at a time, ms: median and 95th percentile, after a warm-up."""
    times = []
    for text in texts[:1] + texts[:: max(1, len(texts) // most)][:most]:
        began = time.perf_counter()
        model.predict_proba([text])
        times.append(time.perf_counter() - began)
    return latency_costs(times)


def baseline(*, prepared: Prepared, plan: Baseline, logger: RunLogger, resume: bool = False) -> None:
    """Fits and evaluates the baselines, once on test. Call it within `with logger:`.

    There are no checkpoints: on `resume` it fits them again and keeps the earlier events. The
    record's metrics: `validation` and `test` for the defaults, `tuned.validation` and `tuned.test` for the tuned one.
    """
    record = logger.record
    record.versions = versions()
    record.device = {**describe_device(torch.device("cpu")), "dtype": "fp64", "shared": False}
    logger.begin(resume=resume)
    texts = {name: list(getattr(prepared, name)["text"]) for name in ("train", "validation", "test")}
    labels = {name: getattr(prepared, name).labels for name in texts}
    analyzer, why = plan.analyzer, f"baseline.analyzer={plan.analyzer}"
    if analyzer == "auto":
        analyzer, why = analyzer_of(texts["train"])
    record.data["baseline_analyzer"] = analyzer
    if analyzer == "char":
        logger.warn(f"{why}: the baseline counts characters and pairs of characters, not words.")
    fits = 1 + plan.tuned * len(NGRAMS[analyzer]) * len(TUNED_C)
    quiet = os.environ.get("XCLS_PROGRESS") == "0"
    with tqdm(total=fits, desc="baseline", unit="fit", leave=False, disable=quiet) as bar:
        fitted = {"": fit_default(texts["train"], labels["train"], plan=plan, analyzer=analyzer)}
        bar.update()
        if plan.tuned:
            fitted["tuned."] = fit_tuned(
                texts["train"],
                labels["train"],
                validation_texts=texts["validation"],
                score=lambda p: scores(labels["validation"], p)["macro_f1"] or 0.0,
                plan=plan,
                bar=bar,
                analyzer=analyzer,
            )
    for prefix, model in fitted.items():
        _evaluate(prefix, model, prepared, texts, logger)
    classifier = fitted[""].pipeline[1]
    record.params = {"total": int(classifier.coef_.size + classifier.intercept_.size)}
    logger.add_row({"step": 0, "epoch": 0.0, **record.metrics["validation"]})


def _evaluate(prefix: str, model: Fitted, prepared: Prepared, texts: dict[str, list[str]], logger: RunLogger) -> None:
    """Writes the scores of one baseline on validation and test into the record, with `prefix` before the split.

    For the default baseline it also writes predictions and speed.
    """
    record, found = logger.record, {}
    for split in ("validation", "test"):
        rows, began = getattr(prepared, split), time.perf_counter()
        found[split] = Predicted(rows["id"], rows.labels, model.pipeline.predict_proba(texts[split]))
        rate = len(rows) / (time.perf_counter() - began)
    reason = note_scores(logger, found, prefix)
    if reason:
        name = "tuned baseline" if prefix else "baseline"
        logger.warn(f"The {name} learned nothing: {reason}. More training rows may help.")
    if not prefix:
        write_predictions(logger, found, prepared.classes)
        record.costs.update(inference_examples_per_s=rate, inference_ms_per_example=1000 / rate)
        record.costs.update(document_latency(model.pipeline, texts["test"]))
    record.costs[f"{prefix}train_seconds"] = model.seconds
    logger.event("fitted", {"name": prefix or "default", **model.settings, **record.metrics[f"{prefix}test"]})

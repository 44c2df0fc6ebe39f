"""Prepared text in the form for training: token ids with labels and stable ids."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Sequence

import numpy as np

from xcls.data.encode import Encoded, encode, encode_cached
from xcls.data.splits import Prepared
from xcls.data.tokenizer import TextTokenizer


@dataclass
class Labelled:
    """One split: token ids of D documents, labels int64 [D], stable ids (a sequence that may read them on access)."""

    encoded: Encoded
    labels: np.ndarray
    ids: Sequence[str]


@dataclass
class ClassificationData:
    """The splits of a classification; `warnings` and `report` (documents, tokens, shares) are for the record.

    `tokenize_ms`: milliseconds to tokenise one document, measured over many at once.
    """

    train: Labelled
    validation: Labelled
    test: Labelled
    classes: list[str]
    warnings: list[str] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    tokenize_ms: float | None = None

    def split(self, name: str) -> Labelled:
        """train, validation or test."""
        return getattr(self, name)


@dataclass
class LanguageData:
    """Text for masked language modelling: training text, and the validation split's text."""

    train: Encoded
    validation: Encoded
    warnings: list[str] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)


def classification_data(
    prepared: Prepared, tokenizer: TextTokenizer, *, seq_len: int, truncate: str
) -> ClassificationData:
    """Encodes the three splits. Raises UserError if a document is too long and `truncate` is `refuse`."""
    splits: dict[str, Any] = {}
    noted: dict[str, Any] = {"warnings": [], "report": {}}
    for name in ("train", "validation", "test"):
        rows = getattr(prepared, name)
        encoded = encode_cached(rows["text"], tokenizer, seq_len=seq_len, truncate=truncate, what=name)
        splits[name] = Labelled(encoded=encoded, labels=rows.labels, ids=rows["id"])
        noted["warnings"] += encoded.warnings(name, seq_len=seq_len)
        noted["report"][name] = encoded.report()
    speed = _tokenize_ms(prepared.test["text"], tokenizer, seq_len=seq_len)
    return ClassificationData(**splits, classes=list(prepared.classes), tokenize_ms=speed, **noted)


def _tokenize_ms(texts: Sequence[str], tokenizer: TextTokenizer, *, seq_len: int, most: int = 200) -> float:
    """Milliseconds to tokenise one document: the second of two passes over at most `most` of `texts`, evenly spaced."""
    some = [texts[row] for row in range(0, len(texts), max(1, len(texts) // most))][:most]
    for _ in range(2):
        began = time.perf_counter()
        encode(some, tokenizer, seq_len=seq_len)
    return 1000 * (time.perf_counter() - began) / len(some)


def language_data(prepared: Prepared, tokenizer: TextTokenizer, *, seq_len: int, truncate: str) -> LanguageData:
    """Encodes the text for MLM and the validation split. Raises UserError as `classification_data` does."""
    how: dict[str, Any] = {"seq_len": seq_len, "truncate": truncate}
    train = encode_cached(prepared.mlm_texts, tokenizer, what="text for MLM", **how)
    validation = encode_cached(prepared.validation["text"], tokenizer, what="validation", **how)
    warnings = train.warnings("text for MLM", seq_len=seq_len) + validation.warnings("validation", seq_len=seq_len)
    report = {"mlm": train.report(), "validation": validation.report()}
    return LanguageData(train=train, validation=validation, warnings=warnings, report=report)

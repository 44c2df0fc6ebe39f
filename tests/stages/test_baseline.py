"""The baseline works on texts without words too: other scripts, emoji, single letters, words that come once."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from tqdm import tqdm

from xcls.config.schema import Baseline
from xcls.stages.baseline import analyzer_of, fit_default, fit_tuned

TEXTS = {
    "chinese": ("char", ["今天天气很好", "这部电影太差了，浪费时间"]),
    "thai": ("char", ["หนังเรื่องนี้ดีมาก", "หนังแย่มาก"]),
    "mostly chinese": ("char", ["iPhone 很好用，我非常喜欢它", "USB 接口坏了，客服不理"]),
    "emoji": ("char", ["😍😍🎉", "😭💔!"]),
    "single letters": ("char", ["a b b 0", "z x x 1"]),
    "english": ("word", ["a fine film", "an awful film"]),
    "russian": ("word", ["хороший фильм", "плохой фильм"]),
    "korean": ("word", ["정말 좋은 영화", "정말 나쁜 영화"]),
    "hindi": ("word", ["बहुत अच्छी फिल्म", "बुरी फिल्म थी"]),
    "a Chinese name": ("word", ["a film by 李安", "watch it twice"]),
    "numbers": ("word", ["12 345", "67 8"]),
}


@pytest.mark.parametrize("name", TEXTS)
def test_it_works_on_every_text(name: str) -> None:
    analyzer, texts = TEXTS[name][0], TEXTS[name][1] * 2  # so that the tuned one finds each term twice
    assert analyzer_of(texts)[0] == analyzer
    labels = np.array([0, 1, 0, 1])
    default = fit_default(texts, labels, plan=Baseline(), analyzer=analyzer)
    assert default.settings["ngrams"] == (1 if analyzer == "word" else 2)
    with tqdm(disable=True) as bar:
        settings = {"plan": Baseline(), "bar": bar, "analyzer": analyzer, "score": lambda p: p[0, 0]}
        tuned = fit_tuned(texts, labels, validation_texts=texts, **settings)
    for fitted in (default, tuned):
        assert (fitted.pipeline.predict_proba(texts).argmax(1) == labels).all()


def test_words_are_counted_as_scikit_learn_does_by_default() -> None:
    texts = ["A fine film, it is", "an awful film!"] * 2
    ours = fit_default(texts, np.array([0, 1, 0, 1]), plan=Baseline()).pipeline[0]
    assert ours.get_params() == TfidfVectorizer().get_params()


@pytest.mark.parametrize(("texts", "least"), [(["u0 v0", "u1 v1"], 1), (["u0 v0", "u1 v0"], 2)])
def test_terms_of_one_text_stay_only_where_there_are_no_others(texts: list[str], least: int) -> None:
    with tqdm(disable=True) as bar:
        settings = {"plan": Baseline(), "bar": bar, "score": lambda p: 1.0}
        tuned = fit_tuned(texts, np.array([0, 1]), validation_texts=texts, **settings)
    assert tuned.settings["min_df"] == least

"""The baseline stands on texts without words: other scripts, emoji, single letters, words that come once."""

from __future__ import annotations

import numpy as np
import pytest
from tqdm import tqdm

from xcls.config.schema import Baseline
from xcls.stages.baseline import analyzer_of, fit_default, fit_tuned

CHAR = {
    "chinese": ["今天天气很好", "这部电影太差了，浪费时间"],
    "japanese": ["これは素晴らしい映画です", "つまらない映画だった"],
    "thai": ["หนังเรื่องนี้ดีมาก", "หนังแย่มาก"],
    "mostly chinese": ["iPhone 很好用，我非常喜欢它", "USB 接口坏了，客服不理"],
    "khmer": ["ខ្ញុំចូលចិត្តវា", "អាក្រក់ណាស់"],
    "emoji": ["😍😍🎉", "😭💔!"],
    "single letters": ["a b b 0", "z x x 1"],
    "punctuation": ["!!! ?!", "... ,,"],
    "mostly emoji": ["😍", "😭", "fine"],
}
WORD = {
    "english": ["a fine film", "an awful film"],
    "german": ["Ein schöner Film", "Überhaupt nicht"],
    "russian": ["хороший фильм", "плохой фильм"],
    "korean": ["정말 좋은 영화", "정말 나쁜 영화"],
    "hindi": ["बहुत अच्छी फिल्म", "बुरी फिल्म थी"],
    "one word each": ["u0a0 v0b0", "u1a1 v1b1"],
    "some emoji": ["fine 😍😍", "awful 😭", "😭"],
    "a Chinese name": ["a film by 李安", "watch it twice"],
    "numbers": ["12 345", "67 8"],
}


@pytest.mark.parametrize(
    ("analyzer", "texts"),
    [(name, pair) for name, kinds in (("char", CHAR), ("word", WORD)) for pair in kinds.items()],
    ids=str,
)
def test_it_stands_on_every_text(analyzer: str, texts: tuple[str, list[str]]) -> None:
    texts = texts[1] * 2  # so that the tuned one finds each term twice
    assert analyzer_of(texts)[0] == analyzer and bool(analyzer_of(texts)[1]) == (analyzer == "char")
    labels = np.array([number % (len(texts) // 2) % 2 for number in range(len(texts))])
    plan = Baseline()
    default = fit_default(texts, labels, plan=plan, analyzer=analyzer)
    assert default.settings["analyzer"] == analyzer and default.settings["ngrams"] == (1 if analyzer == "word" else 2)
    assert (default.probabilities(texts).argmax(1) == labels).all()
    with tqdm(disable=True) as bar:
        tuned = fit_tuned(
            texts,
            labels,
            validation_texts=texts,
            score=lambda p: float((p.argmax(1) == labels).mean()),
            plan=plan,
            bar=bar,
            analyzer=analyzer,
        )
    assert (tuned.probabilities(texts).argmax(1) == labels).all()


def test_words_are_counted_as_scikit_learn_does_by_default() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = ["A fine film, it is", "an awful film!"] * 2
    ours = fit_default(texts, np.array([0, 1, 0, 1]), plan=Baseline()).pipeline[0]
    assert ours.get_params() == TfidfVectorizer().get_params()


@pytest.mark.parametrize(("texts", "least"), [(["u0 v0", "u1 v1"], 1), (["u0 v0", "u1 v0"], 2)])
def test_terms_of_one_text_stay_only_where_there_are_no_others(texts: list[str], least: int) -> None:
    with tqdm(disable=True) as bar:
        tuned = fit_tuned(
            texts, np.array([0, 1]), validation_texts=texts, score=lambda p: 1.0, plan=Baseline(), bar=bar
        )
    assert tuned.settings["min_df"] == least

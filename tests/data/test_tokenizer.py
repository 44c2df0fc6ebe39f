"""Tokenizers: trained the same every time, loaded, extended by what saves most, safe against text that looks odd."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Sequence

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models

from tests.conftest import ROOT
from xcls.config.schema import Tokenizer, UserError
from xcls.data import tokenizer as module
from xcls.data.tokenizer import (
    SPECIAL_TOKENS,
    UNK,
    ByteTokenizer,
    TextTokenizer,
    check_tokenizer,
    from_json,
    make_tokenizer,
)
from xcls.data.vocabulary import train_wordpiece
from xcls.runs.identity import run_hash

SYLLABLES = ["ka", "ro", "mi", "ten", "sol", "ver", "ba", "lu", "qui", "é", "ß", "¨", "°", "中"]


def corpus(seed: int = 0, documents: int = 300) -> list[str]:
    draw = random.Random(seed)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(400)]
    return [" ".join(draw.choices(words, k=30)) + draw.choice([".", "!", " (x)", "?"]) for _ in range(documents)]


def unk_share(made: TextTokenizer, texts: Sequence[str]) -> float:
    ids, _ = made.encode(texts)
    return float((ids == UNK).mean())


def vocabulary(tokenizer: TextTokenizer) -> list[str]:
    vocab = tokenizer.library.get_vocab()
    return sorted(vocab, key=vocab.get)


def tokens(tokenizer: TextTokenizer, text: str) -> list[str]:
    names = vocabulary(tokenizer)
    return [names[i] for i in tokenizer.encode([text])[0]]


@pytest.mark.parametrize("kind", ["wordpiece", "words", "bytes"])
def test_no_text_becomes_a_special_token_and_odd_characters_do_no_harm(kind: str) -> None:
    odd = ["[MASK] and [PAD] and [CLS][SEP]", "\ud800 half a pair", "nul \0 byte", "\u202e right to left", "", " \n "]
    made = make_tokenizer(Tokenizer(kind=kind, vocab_size=300, min_frequency=1, lowercase=False), corpus() + odd)
    if kind != "bytes":
        assert vocabulary(made)[:5] == list(SPECIAL_TOKENS)
    ids, offsets = made.encode(odd)
    assert not np.isin(ids, [0, 2, 3, 4]).any() and ids.max() < made.vocab_size == len(made.continues)
    assert ids.dtype == np.int32 and offsets[0] == 0 and offsets[-1] == len(ids) > 0
    alone = [made.encode([text])[0].tolist() for text in odd]
    assert [ids[a:b].tolist() for a, b in zip(offsets, offsets[1:])] == alone


@pytest.mark.parametrize("kind", ["wordpiece", "words", "bytes"])
def test_a_tokenizer_is_a_string_in_a_checkpoint(kind: str) -> None:
    made = make_tokenizer(Tokenizer(kind=kind, vocab_size=300), corpus())
    for again in (from_json(made.to_json()), pickle.loads(pickle.dumps(made))):
        for part, same in zip(made.encode(corpus(1)), again.encode(corpus(1))):
            np.testing.assert_array_equal(part, same)
        assert again.digest == made.digest and again.kind == kind


def test_bytes_are_a_tokenizer_of_the_library_too() -> None:
    made, draw = ByteTokenizer(), random.Random(3)
    library = Library.from_str(json.loads(made.to_json())["tokenizer"])
    assert library.get_vocab_size() == made.vocab_size
    for ceiling in (0x80, 0x3000, 0xD800, 0x11000):
        text = "".join(chr(draw.randrange(ceiling)) for _ in range(500)).encode("utf-8", "ignore").decode()
        ids = made.encode([text])[0].tolist()
        assert library.encode(text, add_special_tokens=False).ids == ids
        assert library.decode(ids) == made.decode(ids) == text
    assert from_json(json.dumps({"kind": "bytes"})).digest == made.digest  # as older checkpoints have it


@pytest.mark.parametrize("lowercase", [True, False])
def test_words_that_are_looked_up_are_those_of_the_library(lowercase: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["[MAX 1 [min 2\t3 ]\r\n ] [MASK]", "", " \n ", "a\x0bb\x0cC\x1cd\x7f e", "É a\u2003b"]
    made = make_tokenizer(Tokenizer(kind="words", min_frequency=1, lowercase=lowercase), texts)
    parts = [texts[:3], texts[3:], *([text] for text in texts), ["x" * 70_000 + " 1 zz"]]
    assert made._plain is not None
    found = [made.encode(part) for part in parts]
    monkeypatch.setattr(made, "_plain", None)
    for (ids, offsets), part in zip(found, parts):
        np.testing.assert_array_equal(ids, made.encode(part)[0])
        np.testing.assert_array_equal(offsets, made.encode(part)[1])


def trained() -> str:
    return train_wordpiece(corpus(), vocab_size=400, lowercase=True, min_frequency=2)


def test_training_gives_the_same_vocabulary_in_every_process() -> None:
    """The library's own trainer does not: it numbers characters in the order of a randomly seeded hash table."""
    code = (
        "import sys; sys.path.insert(0, 'tests/data'); import test_tokenizer; "
        "sys.stdout.write(test_tokenizer.trained())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert {done.stdout.decode()} == {trained() for _ in range(3)}


def test_vocab_size_is_kept_and_rare_characters_are_unknown() -> None:
    texts = corpus() + ["".join(map(chr, range(0x4E00, 0x4E00 + 600)))]
    made = make_tokenizer(Tokenizer(vocab_size=200, min_frequency=1), texts)
    assert made.vocab_size == 200
    assert made.encode([chr(0x4E00 + 599)])[0].tolist() == [UNK]
    assert unk_share(made, corpus()) < 0.01 < unk_share(made, texts)


def test_continuing_pieces_are_known() -> None:
    made = make_tokenizer(Tokenizer(vocab_size=300), corpus())
    assert made.continues.tolist() == [name.startswith("##") and len(name) > 2 for name in vocabulary(made)]
    assert ByteTokenizer().continues[[5 + ord(" "), 5 + ord("a")]].tolist() == [False, True]


def test_loading_moves_the_special_tokens_to_the_front(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("[PAD]\n[unused1]\nka\n##ro\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nmi\n")
    made = make_tokenizer(Tokenizer(path=str(file)), [])
    assert vocabulary(made) == [*SPECIAL_TOKENS, "[unused1]", "ka", "##ro", "mi"]
    assert tokens(made, "Karo mi zz") == ["ka", "##ro", "mi", "[UNK]"]


def test_a_tokenizer_json_is_loaded(tmp_path: Path) -> None:
    library = Library(models.WordPiece({"<pad>": 0, "mi": 1, "[UNK]": 2, "ka": 3, "##ro": 4}, unk_token="[UNK]"))
    library.add_special_tokens(["<pad>", "[UNK]"])
    trained = make_tokenizer(Tokenizer(vocab_size=300), corpus()).library
    library.normalizer, library.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    library.save(str(tmp_path / "tokenizer.json"))
    made = make_tokenizer(Tokenizer(path=str(tmp_path / "tokenizer.json")), [])
    assert vocabulary(made) == [*SPECIAL_TOKENS, "<pad>", "mi", "ka", "##ro"]
    assert tokens(made, "karo zz mi") == ["ka", "##ro", "[UNK]", "mi"]


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("vocab.txt", "", "wordpiece", "no tokens"),
        ("tokenizer.json", "{", "wordpiece", "not a tokenizer.json"),
        ("tokenizer.json", json.dumps({"model": {"type": "BPE", "vocab": {}}}), "wordpiece", "holds a BPE model"),
        ("vocab.txt", b"\xff\xfe", "words", "cannot be read as text"),
        ("missing", None, "wordpiece", "no such file"),
        ("vocab.txt", "a", "bytes", "256 bytes"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_refused(
    tmp_path: Path, name: str, content, kind: str, message: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        make_tokenizer(Tokenizer(kind=kind, path=str(file)), ["a"])


def test_extending_saves_tokens_and_keeps_old_ids(tmp_path: Path) -> None:
    general, domain = make_tokenizer(Tokenizer(vocab_size=150), corpus(0)), corpus(9)
    (tmp_path / "general.json").write_text(general.state)
    counts = [len(general.encode(domain)[0])]
    for count in (10, 40):
        made = make_tokenizer(Tokenizer(path=str(tmp_path / "general.json"), extend=count), domain)
        assert vocabulary(made)[:150] == vocabulary(general) and made.vocab_size == 150 + count
        counts.append(len(made.encode(domain)[0]))
    assert counts[2] < counts[1] < counts[0]


def test_words_are_extended_by_the_most_frequent_unknown_ones(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("a\nb\n")
    made = make_tokenizer(Tokenizer(kind="words", path=str(file), extend=1), ["a x x", "y x y", "b"])
    assert vocabulary(made) == [*SPECIAL_TOKENS, "a", "b", "x"]


def test_the_tokenizer_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_tokenizer(Tokenizer(vocab_size=200), corpus())
    monkeypatch.setattr(module, "_state", lambda *_: pytest.fail("made again"))
    assert make_tokenizer(Tokenizer(vocab_size=200), corpus()).digest == first.digest
    with pytest.raises(pytest.fail.Exception):
        make_tokenizer(Tokenizer(vocab_size=201), corpus())


MARKS = [("かぎ", "かき"), ("パンダ", "ハンダ"), ("दिन रात", "दीन रात"), ("कमल", "कमाल"), ("ไม่ไหม", "ไมไหม")]
MARKS += [("мой", "мои"), ("má", "ma"), ("résumé", "resume"), ("كَتَبَ", "كُتِبَ")]


def test_marks_stay_when_capitals_go(tmp_path: Path) -> None:
    texts = [word for pair in MARKS for word in pair] * 20
    made = make_tokenizer(Tokenizer(vocab_size=400), texts)
    for one, other in MARKS:
        ids, *same = (made.encode([form])[0].tolist() for form in (one, one.upper(), unicodedata.normalize("NFD", one)))
        assert same == [ids, ids] and made.encode([other])[0].tolist() != ids, one
    assert unk_share(made, texts) == 0
    stripped = make_tokenizer(Tokenizer(vocab_size=400, strip_accents=True), texts)
    assert stripped.encode(["résumé"])[0].tolist() == stripped.encode(["resume"])[0].tolist()
    (tmp_path / "vocab.txt").write_text("resume\nrésumé\n", "utf-8")  # made elsewhere: as BERT reads it, unless told
    for strip, token in ((None, "resume"), (False, "résumé"), (True, "resume")):
        loaded = make_tokenizer(Tokenizer(path=str(tmp_path / "vocab.txt"), strip_accents=strip), [])
        assert tokens(loaded, "RÉSUMÉ") == [token]


@pytest.mark.parametrize("refused", [{"kind": "words", "strip_accents": True}, {"kind": "bytes", "extend": 5}])
def test_settings_are_checked_before_any_text_is_there(refused: dict) -> None:
    with pytest.raises(UserError, match=f"tokenizer.{list(refused)[1]}"):
        check_tokenizer(Tokenizer(**refused))
    check_tokenizer(Tokenizer())


@pytest.mark.parametrize(("start", "count"), [(0x4E00, 1200), (0xAC00, 400)], ids=["Chinese", "Korean"])
def test_the_share_of_unknown_tokens_falls_with_the_size_of_the_vocabulary(start: int, count: int) -> None:
    draw, signs = random.Random(0), [chr(start + 2 * number) for number in range(count)]
    words = ["".join(draw.choices(signs, weights=range(1, count + 1), k=4)) for _ in range(2000)]
    texts = [" ".join(words[place : place + 20]) for place in range(0, 2000, 20)]
    made = [make_tokenizer(Tokenizer(vocab_size=size), texts) for size in (200, 600, 2500)]
    shares = [unk_share(one, texts) for one in made]
    assert shares[0] > shares[1] > shares[2] == 0 and made[0].vocab_size <= 200 and made[1].vocab_size <= 600


def test_a_sentence_without_blanks_is_not_unknown_for_its_length() -> None:
    for sentence in ("ภาษาไทยไม่มีช่องว่างระหว่างคำ" * 8, "ひらがなだけのぶん" * 20, "ភាសាខ្មែរ" * 30):
        made = make_tokenizer(Tokenizer(vocab_size=300), [sentence] * 5)
        assert unk_share(made, [sentence]) == 0 and len(made.encode([sentence])[0]) > 3


def test_settings_of_accents_are_part_of_the_hash_where_they_matter() -> None:
    config = {"mode": "finetune", "seed": 0, "dataset": {"truncate": "head"}, "seq_len": 1}
    config |= {name: {} for name in ("finetuning", "head", "attention", "position", "size")}
    for kind, count in (("wordpiece", 3), ("words", 1), ("bytes", 1)):
        settings = [{"kind": kind, "strip_accents": strip} for strip in (None, True, False)]
        made = {run_hash({**config, "tokenizer": own}, data="", dtype="fp32", code={}) for own in settings}
        assert len(made) == count

"""Truncation, caching and what is reported about tokens."""

from __future__ import annotations

import numpy as np
import pytest

from xcls.config.schema import Tokenizer, UserError
from xcls.data import encode as module
from xcls.data.encode import encode, encode_cached
from xcls.data.tokenizer import ByteTokenizer, make_tokenizer

BYTES = ByteTokenizer()


def letters(row: np.ndarray) -> str:
    assert row[0] == 2 and row[-1] == 3
    return BYTES.decode(row)


@pytest.mark.parametrize(
    ("truncate", "expected"), [("head", "abcdefgh"), ("tail", "stuvwxyz"), ("head_tail", "abuvwxyz")]
)
def test_long_documents_are_cut_as_told(truncate: str, expected: str) -> None:
    made = encode(["short", "abcdefghijklmnopqrstuvwxyz", "exactly8", ""], BYTES, seq_len=10, truncate=truncate)
    assert [letters(made[row]) for row in range(4)] == ["short", expected, "exactly8", ""]
    assert made.lengths.tolist() == [7, 10, 10, 2] and made.cut == 1
    report = made.report()
    assert report["documents_cut"] == 1 and report["tokens_cut_share"] == pytest.approx(18 / 39)


def test_refuse_names_the_longest_document_and_the_remedy() -> None:
    with pytest.raises(UserError, match=r"1 of 2 documents .* seq_len=10.*row 1, has 14 tokens.*dataset.truncate"):
        encode(["short", "twelve chars"], BYTES, seq_len=10, truncate="refuse")
    assert encode(["short"], BYTES, seq_len=10, truncate="refuse").cut == 0


@pytest.mark.parametrize(("seq_len", "expected"), [(1, [2]), (2, [2, 3]), (3, [2, 102, 3])])
def test_the_shortest_lengths_work(seq_len: int, expected: list[int]) -> None:
    assert encode(["abc", "a"], BYTES, seq_len=seq_len).ids.tolist() == expected * 2


def test_tokens_are_made_once_and_read_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["one text", "another"]
    first = encode_cached(texts, BYTES, seq_len=16)
    different = encode_cached(texts, BYTES, seq_len=5)
    monkeypatch.setattr(module, "encode", lambda *_, **__: pytest.fail("made again"))
    again = encode_cached(texts, BYTES, seq_len=16)
    np.testing.assert_array_equal(first.ids, again.ids)
    assert isinstance(again.ids, np.memmap) and again.report() == first.report()
    assert different.lengths.tolist() == [5, 5]


def test_tokens_take_two_bytes_and_are_written_as_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [chr(97 + row % 26) * (row * 7 % 90) for row in range(300)]
    monkeypatch.setattr(module, "CHARACTERS", 500)
    monkeypatch.setattr(module, "BATCH", 20)
    sizes: list[int] = []
    real = ByteTokenizer.encode
    monkeypatch.setattr(ByteTokenizer, "encode", lambda self, batch: sizes.append(len(batch)) or real(self, batch))
    made = encode_cached(texts, BYTES, seq_len=64)
    assert sum(sizes) == 300 and 20 >= max(sizes) and len(sizes) >= sum(map(len, texts)) / 500
    assert made.ids.dtype == np.uint16 and (made.folder / "ids").stat().st_size == 2 * len(made.ids)
    np.testing.assert_array_equal(made.ids, np.fromfile(made.folder / "ids", np.uint16))
    monkeypatch.undo()
    whole = encode(texts, BYTES, seq_len=64)
    np.testing.assert_array_equal(made.ids, whole.ids)
    assert whole.ids.dtype == np.uint16 and made.report() == whole.report()
    assert [letters(row) for row in (made[5], made[12])] == [texts[5], texts[12][:62]]


def test_much_that_is_cut_off_is_warned_about() -> None:
    texts = ["a" * 100, "b" * 40, "c" * 10]
    made = encode(texts, BYTES, seq_len=42)
    assert made.report()["documents_cut_share"] == pytest.approx(1 / 3) and made.cut_share == pytest.approx(0.4)
    [warning] = made.warnings("train", seq_len=42)
    assert all(part in warning for part in ("1 of 3 documents", "seq_len=42", "40%", "dataset.truncate"))
    assert encode(texts, BYTES, seq_len=90).warnings("train", seq_len=90) == []
    most = encode(["a" * 11, "b" * 11, "c"], BYTES, seq_len=12)  # little of it, but in most documents
    assert most.cut_share < 0.2 and "2 of 3 documents" in most.warnings("train", seq_len=12)[0]


def test_unknown_words_are_measured_and_warned_about() -> None:
    words = make_tokenizer(Tokenizer(kind="words", min_frequency=2), ["a b c", "a b c d"])
    made = encode(["a b x", "a a y"], words, seq_len=8)
    assert made.unk == pytest.approx(2 / 6)
    [warning], [finished] = (made.warnings("train", seq_len=8, finished=done) for done in (False, True))
    assert "33.3%" in warning and "tokenizer.extend" in warning and "tokenizer.extend" not in finished
    assert encode(["a b"], words, seq_len=8).warnings("train", seq_len=8) == []

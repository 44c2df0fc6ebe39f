"""Tokenizers behind one small interface: WordPiece and words through the library `tokenizers`, and plain bytes.

[PAD] [UNK] [CLS] [SEP] [MASK] are the ids 0 to 4 in all of them. Text never becomes one of these: a literal "[MASK]" in
a document is split like any other word, or is unknown.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Iterator, Sequence

import numpy as np

from xcls.config.schema import Tokenizer, UserError
from xcls.data.cache import build_once, cache_folder, digest
from xcls.data.rows import Texts
from xcls.data.source import at, writable

# The library warns when a process that has tokenised in parallel forks (dataloader workers do) unless this is set.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(5)
_NO_SPACE = "\x1c\x1d\x1e\x1f"  # white space to Python, but not to the library
PIECE = 50_000  # characters that are tokenised at once, so that a long document needs little memory
VERSION = 3  # of the vocabularies in the cache folder; raise it when they are made in another way


class TextTokenizer(ABC):
    """Text to ids. `kind`: bytes, words or wordpiece; `continues` bool [V] marks tokens that continue a word."""

    kind: str
    vocab_size: int
    continues: np.ndarray

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [T], offsets int64 [D + 1]) of D texts, with no special token except [UNK]."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, as far as it can be recovered."""

    @abstractmethod
    def to_json(self) -> str:
        """The complete tokenizer as a string for a checkpoint; `from_json` reads it."""

    @property
    def digest(self) -> str:
        """A hash of everything that determines the ids."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


class ByteTokenizer(TextTokenizer):
    """UTF-8 bytes: byte b is the id 5 + b, so nothing is unknown. Bytes other than white space continue a word."""

    kind = "bytes"

    def __init__(self) -> None:
        self.vocab_size = len(SPECIAL_TOKENS) + 256
        self.continues = np.array(
            [False] * len(SPECIAL_TOKENS) + [not chr(byte).isspace() for byte in range(128)] + [True] * 128
        )

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [T], offsets int64 [D + 1])."""
        data = [text.encode("utf-8", "replace") for text in texts]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in data])]).astype(np.int64)
        return np.frombuffer(b"".join(data), np.uint8).astype(np.int32) + len(SPECIAL_TOKENS), offsets

    def decode(self, ids: Sequence[int]) -> str:
        """The text; bytes that are not valid UTF-8 become the replacement character."""
        return bytes(i - len(SPECIAL_TOKENS) for i in ids if i >= len(SPECIAL_TOKENS)).decode("utf-8", "replace")

    def to_json(self) -> str:
        """The kind, and the same vocabulary in the format of the library `tokenizers`."""
        from xcls.data.vocabulary import bytes_state

        return json.dumps({"kind": self.kind, "tokenizer": bytes_state()})


class LibraryTokenizer(TextTokenizer):
    """A WordPiece or word-level tokenizer of the library `tokenizers`, given as its JSON."""

    def __init__(self, *, kind: str, state: str) -> None:
        import tokenizers

        self.kind, self.state = kind, state
        self.library = tokenizers.Tokenizer.from_str(state)
        self.vocab_size = self.library.get_vocab_size()
        tokens = sorted(self.library.get_vocab().items(), key=lambda item: item[1])
        prefix = "##" if kind == "wordpiece" else None
        self.continues = np.array(
            [prefix is not None and token.startswith(prefix) and len(token) > 2 for token, _ in tokens]
        )
        self._plain = _plain_words(json.loads(state)) if kind == "words" else None

    def __reduce__(self) -> tuple[Any, ...]:
        return from_json, (self.to_json(),)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [T], offsets int64 [D + 1]). Plain ASCII words use a dictionary: ten times as fast."""
        if self._plain is not None and all(
            text.isascii() and not any(sign in text for sign in _NO_SPACE) for text in texts
        ):
            return self._look_up(texts)
        pieces = [list(_pieces(text)) for text in texts]
        flat = self.library.encode_batch_fast([piece for part in pieces for piece in part], add_special_tokens=False)
        found = [encoding.ids for encoding in flat]
        sizes, start = [0], 0
        for part in pieces:
            sizes.append(sum(map(len, found[start : start + len(part)])))
            start += len(part)
        ids = np.fromiter((i for part in found for i in part), np.int32, sum(sizes))
        ids[ids < len(SPECIAL_TOKENS)] = UNK  # a word such as "[MASK]" is not a special token
        return ids, np.cumsum(sizes, dtype=np.int64)

    def _look_up(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """`encode` for words separated by white space, with the same result as the library."""
        assert self._plain is not None
        vocab, lowercase = self._plain
        words = [(text.lower() if lowercase else text).split() for text in texts]
        offsets = np.cumsum([0, *map(len, words)], dtype=np.int64)
        ids = np.fromiter((vocab.get(word, UNK) for part in words for word in part), np.int32, int(offsets[-1]))
        ids[ids < len(SPECIAL_TOKENS)] = UNK
        return ids, offsets

    def decode(self, ids: Sequence[int]) -> str:
        """The words, separated by spaces."""
        return self.library.decode([int(i) for i in ids], skip_special_tokens=False)

    def to_json(self) -> str:
        """The kind and the library's own JSON."""
        return json.dumps({"kind": self.kind, "tokenizer": self.state})


def _plain_words(state: dict[str, Any]) -> tuple[dict[str, int], bool] | None:
    """(vocabulary, lower case or not) of a word-level tokenizer that splits only at white space; else None."""
    split, normal = state.get("pre_tokenizer") or {}, state.get("normalizer")
    if split.get("type") != "WhitespaceSplit" or (normal and normal.get("type") != "Lowercase"):
        return None
    return state["model"]["vocab"], normal is not None


def _pieces(text: str) -> Iterator[str]:
    """Cuts a long text at white space, where no token is cut; a text without white space stays whole."""
    text = writable(text)
    while len(text) > PIECE:
        cut = next((i for i in range(PIECE, len(text)) if text[i] in " \n\t"), len(text))
        yield text[:cut]
        text = text[cut:]
    yield text


def from_json(text: str) -> TextTokenizer:
    """The tokenizer that `to_json` wrote."""
    state = json.loads(text)
    if state["kind"] == "bytes":
        return ByteTokenizer()
    return LibraryTokenizer(kind=state["kind"], state=state["tokenizer"])


def check_tokenizer(settings: Tokenizer) -> None:
    """Checks the settings before any work. Raises UserError for those that do not fit together."""
    if settings.kind == "bytes" and (settings.path is not None or settings.extend):
        raise UserError(
            "tokenizer.kind=bytes: its vocabulary is the 256 bytes, so tokenizer.path and tokenizer.extend have no use."
        )
    if settings.kind != "wordpiece" and settings.strip_accents:
        raise UserError(
            f"tokenizer.strip_accents=true: tokenizer.kind={settings.kind} keeps all accents; it is for wordpiece."
        )
    if settings.path is not None and not at(settings.path).is_file():
        raise UserError(f"tokenizer.path={settings.path}: no such file. Give a tokenizer.json or a vocab.txt.")


def given_vocabulary(settings: Tokenizer) -> str | None:
    """sha256 of the file at `tokenizer.path`, which tells vocabularies apart; None without a path."""
    return None if settings.path is None else hashlib.sha256(at(settings.path).read_bytes()).hexdigest()


def make_tokenizer(settings: Tokenizer, texts: Sequence[str]) -> TextTokenizer:
    """The tokenizer of `settings`: trained on `texts` or loaded, then extended by words of `texts` if set.

    Made once and kept in the cache folder under a hash of the settings, the vocabulary file and the texts; the same
    settings and texts give the same ids on every machine. Raises UserError.
    """
    check_tokenizer(settings)
    if settings.kind == "bytes":
        return ByteTokenizer()
    content = hashlib.blake2b(digest_size=20)
    if settings.path is None or settings.extend:
        for text in texts:
            content.update(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())
    given = given_vocabulary(settings)
    name = digest(
        [
            VERSION,
            settings.kind,
            settings.vocab_size if given is None else None,
            settings.lowercase,
            settings.strip_accents,
            settings.min_frequency,
            settings.extend,
            given,
            content.hexdigest(),
        ]
    )[:24]

    def build(file: Path) -> None:
        state = _state(settings, texts if isinstance(texts, Texts) else [writable(text) for text in texts])
        file.write_text(LibraryTokenizer(kind=settings.kind, state=state).to_json(), "utf-8")

    file = build_once(cache_folder() / "tokenizers" / f"{name}.json", build, what="the tokenizer")
    return from_json(file.read_text("utf-8"))


def _state(settings: Tokenizer, texts: Sequence[str]) -> str:
    """The library's JSON for `settings`."""
    from xcls.data import vocabulary

    how: dict[str, Any] = {"lowercase": settings.lowercase}
    trained: dict[str, Any] = {"vocab_size": settings.vocab_size, "min_frequency": settings.min_frequency}
    if settings.path is not None:
        how["strip_accents"] = settings.strip_accents
        state = vocabulary.load(at(settings.path), kind=settings.kind, **how)
    elif settings.kind == "wordpiece":
        state = vocabulary.train_wordpiece(texts, **trained, **how, strip_accents=bool(settings.strip_accents))
    else:
        state = vocabulary.train_words(texts, **trained, **how)
    if settings.extend:
        more = {"count": settings.extend, "min_frequency": settings.min_frequency}
        state = vocabulary.extend(state, texts, kind=settings.kind, **more)
    return state

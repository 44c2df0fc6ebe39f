"""Vocabularies: trained on a corpus or loaded from a file, as the JSON of the library `tokenizers`.

The special tokens are only entries of the vocabulary, not "added tokens" of the library, which it would find in text.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import Any, Sequence

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm

from xcls.config.schema import UserError
from xcls.data.tokenizer import SPECIAL_TOKENS

# The share of the vocabulary for single characters; words with rarer characters become [UNK].
CHARACTER_SHARE = 0.5
# Thai, Lao, Tibetan, Burmese, Khmer, kana: sentences without spaces, but WordPiece reads only words of up to 100
# characters.
WITHOUT_BLANKS = "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff]"
LONGEST_RUN = 50  # characters of these scripts that are read as one word
LONGEST_WORD = 100  # characters; WordPiece reads longer words as unknown
MODELS = {"wordpiece": "WordPiece", "words": "WordLevel"}


def train_wordpiece(
    texts: Sequence[str], *, vocab_size: int, lowercase: bool, min_frequency: int, strip_accents: bool = False
) -> str:
    """A WordPiece vocabulary by the library's trainer (merging pairs by frequency), with BERT's normaliser and split.

    Accents stay unless `strip_accents`: BERT removes them with the capitals, but in Japanese, Hindi, Thai, … such marks
    distinguish words. The trainer numbers "##x" characters in the order of a hash table, which differs from run to run,
    and breaks ties by these numbers. Here it gets them in a fixed order, as special tokens; so the result is the same
    every time. Rare characters are removed before, for the same reason.
    """
    blank = _library(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"), lowercase, strip_accents)
    groups, sources = _characters(texts, blank)
    sizes = accumulate(map(len, groups))
    kept = sum(size - len(group) < vocab_size * CHARACTER_SHARE for size, group in zip(sizes, groups))
    alphabet = sorted(group[0] for group in groups[:kept])
    inner = sorted(token for group in groups[:kept] for token in group[1:])
    known = set(alphabet)
    rare = {point: None for point, made in sources.items() if not known.issuperset(made)}
    if re.search(WITHOUT_BLANKS, "".join(alphabet)):
        split = pre_tokenizers.Split(Regex(f"{WITHOUT_BLANKS}{{{LONGEST_RUN}}}"), "isolated")
        blank.pre_tokenizer = pre_tokenizers.Sequence([blank.pre_tokenizer, split])
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size, len(SPECIAL_TOKENS) + len(inner) + len(alphabet)),
        min_frequency=min_frequency,
        special_tokens=[*SPECIAL_TOKENS, *inner],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    shown = tqdm(texts, desc="training the vocabulary", unit="text", mininterval=1.0, disable=len(texts) < 5000)
    plain = (unicodedata.normalize("NFC", text).translate(rare) if rare else text for text in shown)
    blank.train_from_iterator(plain, trainer, length=len(texts))
    tokens = ordered(blank.get_vocab())
    for group in groups[kept:]:  # scripts without words to merge leave room for rarer characters
        tokens += group if len(tokens) + len(group) <= vocab_size else []
    return _with_tokens(blank, tokens)


def train_words(texts: Sequence[str], *, vocab_size: int, lowercase: bool, min_frequency: int) -> str:
    """The most frequent words, split only at white space; ties in alphabetical order."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update((text.lower() if lowercase else text).split())
    frequent = [word for word, count in counts.items() if count >= min_frequency and word not in SPECIAL_TOKENS]
    frequent.sort(key=lambda word: (-counts[word], word))
    return words_state([*SPECIAL_TOKENS, *frequent[: vocab_size - len(SPECIAL_TOKENS)]], lowercase)


def wordpiece_state(tokens: Sequence[str], lowercase: bool, strip_accents: bool | None = None) -> str:
    """The JSON of a WordPiece tokenizer (Devlin et al. 2019: greedy, longest first); ids are positions in `tokens`.

    `strip_accents=None`: as in BERT, accents are removed if `lowercase` is set.
    """
    return _with_tokens(_library(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"), lowercase, strip_accents), tokens)


def _with_tokens(library: Tokenizer, tokens: Sequence[str]) -> str:
    library.model = models.WordPiece(_numbered(tokens), unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD)
    library.decoder = decoders.WordPiece(prefix="##")
    return library.to_str()


def words_state(tokens: Sequence[str], lowercase: bool) -> str:
    """The JSON of a word-level tokenizer with these tokens, ids by position."""
    library = Tokenizer(models.WordLevel(_numbered(tokens), unk_token="[UNK]"))
    if lowercase:
        library.normalizer = normalizers.Lowercase()
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return library.to_str()


def bytes_state() -> str:
    """The JSON of a tokenizer whose tokens are the 256 bytes (byte b is the id 5 + b), as `ByteTokenizer` has them."""
    letters = bytes_to_letters()
    vocab = _numbered([*SPECIAL_TOKENS, *(letters[byte] for byte in range(256))])
    library = Tokenizer(models.BPE(vocab, [], unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    return library.to_str()


def bytes_to_letters() -> list[str]:
    """The visible character that the library's ByteLevel uses for each byte (Radford et al. 2019, GPT-2).

    The byte's own character where Latin-1 has a visible one, else the next free one from 256 on.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(256, 512))
    return [chr(byte if byte in visible else next(hidden)) for byte in range(256)]


def load(path: Path, *, kind: str, lowercase: bool, strip_accents: bool | None = None) -> str:
    """A vocabulary from `vocab.txt` (one token per line, as in BERT) or `tokenizer.json` of the library, as JSON.

    The five special tokens move to the ids 0 to 4, the others keep their order. `lowercase` and `strip_accents` apply
    to a vocab.txt (see `wordpiece_state`); a tokenizer.json has its own settings. Raises UserError for other kinds.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"tokenizer.path={path}: cannot be read as text ({error}).") from error
    if path.suffix == ".json":
        return _load_json(path, text, kind)
    tokens = list(dict.fromkeys(line.rstrip("\r") for line in text.split("\n") if line.strip()))
    tokens = _specials_first(path, tokens)
    return wordpiece_state(tokens, lowercase, strip_accents) if kind == "wordpiece" else words_state(tokens, lowercase)


def _load_json(path: Path, text: str, kind: str) -> str:
    try:
        state: dict[str, Any] = json.loads(text)
        model, vocab = state["model"], state["model"]["vocab"]
        found = model.get("type") or "WordPiece"
        if found != MODELS[kind]:
            raise UserError(
                f"tokenizer.path={path}: holds a {found} model, where tokenizer.kind={kind} needs {MODELS[kind]}."
            )
        tokens = ordered(vocab)
        added = [entry["content"] for entry in state.get("added_tokens", []) if entry["content"] not in vocab]
        model.update(vocab=_numbered(_specials_first(path, tokens + added)), unk_token="[UNK]")
        state.update(model=model, added_tokens=[], post_processor=None, truncation=None, padding=None)
        return Tokenizer.from_str(json.dumps(state)).to_str()
    except UserError:
        raise
    except Exception as error:  # the library raises plain Exception for files it cannot read
        raise UserError(
            f"tokenizer.path={path}: not a tokenizer.json of the library 'tokenizers' ({error})."
        ) from error


def _specials_first(path: Path, tokens: Sequence[str]) -> list[str]:
    ordinary = [token for token in tokens if token not in SPECIAL_TOKENS]
    if not ordinary:
        raise UserError(f"tokenizer.path={path}: no tokens there.")
    return [*SPECIAL_TOKENS, *ordinary]


def _library(model: models.Model, lowercase: bool, strip_accents: bool | None) -> Tokenizer:
    """A tokenizer with BERT's normaliser and split at space and punctuation. Kept accents are in one form (NFC)."""
    library = Tokenizer(model)
    bert = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    library.normalizer = normalizers.Sequence([normalizers.NFC(), bert]) if strip_accents is False else bert
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return library


def extend(state: str, texts: Sequence[str], *, kind: str, count: int, min_frequency: int) -> str:
    """The tokenizer's JSON with up to `count` new words of `texts` at the end of the vocabulary; old ids stay.

    It adds the words that save the most tokens: (pieces of the word now - 1) x occurrences. An unknown word counts as
    one piece per character, at least two; in a word-level tokenizer a word is one piece or unknown.
    """
    library = Tokenizer.from_str(state)
    counts = {word: times for word, times in count_words(library, texts).items() if times >= min_frequency}
    words = sorted(word for word in counts if len(word) <= LONGEST_WORD)
    unknown = library.token_to_id("[UNK]")
    saved = {}
    for word, encoding in zip(words, library.encode_batch(words, add_special_tokens=False)):
        if kind == "words":
            pieces = 1 + (unknown in encoding.ids)
        else:
            pieces = max(len(word), 2) if unknown in encoding.ids else len(encoding.ids)
        saved[word] = (pieces - 1) * counts[word]
    chosen = sorted((word for word in words if saved[word]), key=lambda word: (-saved[word], word))[:count]
    changed = json.loads(state)
    changed["model"]["vocab"] = _numbered([*ordered(library.get_vocab()), *chosen])
    return Tokenizer.from_str(json.dumps(changed)).to_str()


def words_of(library: Tokenizer, text: str) -> list[str]:
    """The words into which the library splits `text` before it uses the vocabulary."""
    normal = library.normalizer.normalize_str(text) if library.normalizer else text
    return [word for word, _ in library.pre_tokenizer.pre_tokenize_str(normal)] if library.pre_tokenizer else [normal]


def count_words(library: Tokenizer, texts: Sequence[str]) -> Counter[str]:
    """How often each word occurs. Counts strings between white space first, then splits each distinct one once."""
    stretches: Counter[str] = Counter()
    for text in texts:
        stretches.update(text.split())
    words: Counter[str] = Counter()
    for stretch, count in stretches.items():
        for word in words_of(library, stretch):
            words[word] += count
    return words


def _characters(texts: Sequence[str], library: Tokenizer) -> tuple[list[list[str]], dict[int, list[str]]]:
    """(tokens of each normalised character, most frequent first; the characters that each NFC code point becomes).

    The tokens of a character are "x" and, if it can continue a word, "##x".
    """
    raw = np.zeros(0x110000, np.int64)
    for start in range(0, len(texts), 2000):
        joined = unicodedata.normalize("NFC", "".join(texts[start : start + 2000]))
        counts = np.bincount(np.frombuffer(joined.encode("utf-32-le", "replace"), np.uint32))
        raw[: len(counts)] += counts
    counts_of: Counter[str] = Counter()
    sources: dict[int, list[str]] = {}
    for point in np.flatnonzero(raw).tolist():
        words = [] if 0xD800 <= point < 0xE000 else words_of(library, chr(point))
        sources[point] = [character for word in words for character in word]
        for character in sources[point]:
            counts_of[character] += int(raw[point])
    ranked = sorted(counts_of, key=lambda item: (-counts_of[item], item))
    return [[sign, f"##{sign}"] if len(words_of(library, f"a{sign}")) == 1 else [sign] for sign in ranked], sources


def _numbered(tokens: Sequence[str]) -> dict[str, int]:
    return {token: position for position, token in enumerate(tokens)}


def ordered(vocab: dict[str, int]) -> list[str]:
    """The tokens by id."""
    return sorted(vocab, key=lambda token: vocab[token])

"""Subwords of a domain for a vocabulary that was made elsewhere: those that save the most tokens on the user's text.

Greedy: the subword that shortens the corpus most is added, the words it occurs in are split anew, and so on. An unknown
word counts as if it were spelt out, a token a character, so words that the vocabulary cannot write at all come first.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from typing import Sequence

from tokenizers import Tokenizer

from xcls.data.vocabulary import count_words, ordered

LONGEST = 100  # characters; the library reads longer words as unknown


def extend(state: str, texts: Sequence[str], *, kind: str, count: int, min_frequency: int) -> str:
    """The tokenizer's JSON with up to `count` tokens more, at the end of the vocabulary, so that old ids stay."""
    library = Tokenizer.from_str(state)
    words = {word: times for word, times in count_words(library, texts).items() if len(word) <= LONGEST}
    tokens = ordered(library.get_vocab())
    chosen = (choose_subwords if kind == "wordpiece" else choose_words)(
        words, tokens, count=count, min_frequency=min_frequency
    )
    changed = json.loads(state)
    changed["model"]["vocab"] = {token: position for position, token in enumerate([*tokens, *chosen])}
    return Tokenizer.from_str(json.dumps(changed)).to_str()


def choose_words(words: dict[str, int], tokens: Sequence[str], *, count: int, min_frequency: int) -> list[str]:
    """The most frequent words that are not among `tokens`."""
    known = set(tokens)
    unknown = [word for word, times in words.items() if word not in known and times >= min_frequency]
    return sorted(unknown, key=lambda word: (-words[word], word))[:count]


def choose_subwords(words: dict[str, int], tokens: Sequence[str], *, count: int, min_frequency: int) -> list[str]:
    """The subwords that save the most tokens on `words` (with their frequencies), one after the other.

    Candidates are runs of neighbouring pieces within a word. A heap holds their savings as last seen; the top one is
    counted again by splitting its words with and without it, and taken if it is still the best.
    """
    vocabulary = set(tokens)
    frequent = {word: times for word, times in words.items() if times >= min_frequency}
    pieces = {word: split_word(word, vocabulary) for word in frequent}
    places: dict[str, list[str]] = {}
    saves: Counter[str] = Counter()
    for word, split in pieces.items():
        for candidate, saved in _candidates(word, split):
            saves[candidate] += saved * frequent[word]
            places.setdefault(candidate, []).append(word)
    heap = [(-saved, candidate) for candidate, saved in saves.items()]
    heapq.heapify(heap)
    chosen: list[str] = []
    while heap and len(chosen) < count:
        _, candidate = heapq.heappop(heap)
        vocabulary.add(candidate)
        anew = {word: split_word(word, vocabulary) for word in dict.fromkeys(places[candidate])}
        saved = sum((_cost(word, pieces[word]) - _cost(word, split)) * frequent[word] for word, split in anew.items())
        if saved <= 0 or (heap and (-saved, candidate) > heap[0]):
            vocabulary.discard(candidate)
            if saved > 0:
                heapq.heappush(heap, (-saved, candidate))
            continue
        pieces.update(anew)
        chosen.append(candidate)
    return chosen


def split_word(word: str, vocabulary: set[str]) -> list[str] | None:
    """WordPiece's split: the longest known start, again and again; None for a word that cannot be written."""
    found, start = [], 0
    while start < len(word):
        prefix = "##" if start else ""
        end = next((end for end in range(len(word), start, -1) if prefix + word[start:end] in vocabulary), None)
        if end is None:
            return None
        found.append(prefix + word[start:end])
        start = end
    return found


def _candidates(word: str, split: list[str] | None) -> list[tuple[str, int]]:
    """(subword, tokens it would save in this word); the whole word alone where it cannot be written."""
    if split is None:
        return [(word, len(word) - 1)] if len(word) > 1 else [(word, 1)]
    bare = [piece.removeprefix("##") if position else piece for position, piece in enumerate(split)]
    return [
        (("##" if first else "") + "".join(bare[first:last]), last - first - 1)
        for first in range(len(split))
        for last in range(first + 2, len(split) + 1)
    ]


def _cost(word: str, split: list[str] | None) -> int:
    """Tokens of a word; an unknown one counts as its characters, and one of a single character as two."""
    return max(len(word), 2) if split is None else len(split)

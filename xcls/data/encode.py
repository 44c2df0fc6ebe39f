"""Texts to token ids, once: flat arrays that are memory-mapped from the cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from xcls.data.cache import build_once, cache_folder, digest
from xcls.data.tokenizer import CLS, SEP, UNK, TextTokenizer
from xcls.schema import UserError

UNK_WARNING = 0.01  # a larger share of unknown tokens is warned about
BATCH = 1000  # texts that are tokenised at once
VERSION = 1


@dataclass
class Encoded:
    """Token ids of D documents, special tokens included: `ids` int32 [T], `offsets` int64 [D + 1].

    `cut` documents were longer than seq_len; `tokens` were there before the cut; `unk` is the share of [UNK] in them.
    """

    ids: np.ndarray
    offsets: np.ndarray
    cut: int = 0
    tokens: int = 0
    unk: float = 0.0
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """int32 [N]: [CLS], the tokens, [SEP]."""
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64 [D]."""
        return np.diff(self.offsets)

    def report(self) -> dict[str, Any]:
        """What a record keeps: documents, tokens, and the shares cut off and unknown."""
        kept = int(self.offsets[-1]) - min(2 * len(self), int(self.offsets[-1]))
        return {
            "documents": len(self),
            "tokens": int(self.offsets[-1]),
            "documents_cut": self.cut,
            "tokens_cut_share": 1.0 - kept / self.tokens if self.tokens else 0.0,
            "unk_share": self.unk,
        }

    def warnings(self, name: str) -> list[str]:
        """Sentences about [UNK] for the log and the record."""
        if self.unk <= UNK_WARNING:
            return []
        return [
            f"{name}: {self.unk:.1%} of the tokens are [UNK], so the vocabulary does not fit this text. Train one on "
            "it (tokenizer.path=null), or add subwords of this domain (tokenizer.extend=1000)."
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the folder and not the arrays, so that workers map the same memory."""
        if self.folder is not None:
            return read_encoded, (self.folder,)
        return Encoded, (self.ids, self.offsets, self.cut, self.tokens, self.unk)


def encode(
    texts: Sequence[str],
    tokenizer: TextTokenizer,
    *,
    seq_len: int,
    truncate: str = "head",
    what: str = "text",
    progress: bool = False,
) -> Encoded:
    """Tokenises documents as [CLS] … [SEP] of at most `seq_len` tokens.

    `truncate` of a longer one keeps its `head`, its `tail`, or `head_tail`: a quarter from the start and the rest from
    the end (Sun et al. 2019, 128 + 382); `refuse` raises UserError. A seq_len of 1 leaves [CLS] alone.
    """
    from tqdm import tqdm

    parts, counts = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    steps = range(0, len(texts), BATCH)
    for start in tqdm(
        steps, desc=f"tokenising {what}", unit_scale=BATCH, unit="text", disable=not progress, mininterval=1.0
    ):
        ids, offsets = tokenizer.encode(texts[start : start + BATCH])
        parts.append(ids)
        counts.append(np.diff(offsets))
    ids, lengths = np.concatenate(parts), np.concatenate(counts)
    room = max(seq_len - 2, 0)
    cut = lengths > room
    if truncate == "refuse" and cut.any():
        row = int(np.argmax(lengths))
        raise UserError(
            f"{what}: {cut.sum()} of {len(lengths)} documents are longer than seq_len={seq_len}; the longest, "
            f"row {row}, has {lengths[row] + 2} tokens with [CLS] and [SEP]. Raise seq_len, or set "
            "dataset.truncate=head, tail or head_tail."
        )
    heads = {"head": room, "tail": 0, "head_tail": room // 4, "refuse": room}[truncate]
    flat, offsets = _framed(ids, lengths, room=room, head=heads, ends=min(seq_len, 2))
    unknown = float((ids == UNK).mean()) if len(ids) else 0.0
    return Encoded(flat, offsets, int(cut.sum()), len(ids), unknown)


def _framed(ids: np.ndarray, lengths: np.ndarray, *, room: int, head: int, ends: int) -> tuple[np.ndarray, np.ndarray]:
    """(flat ids int32, offsets int64): of each document up to `room` tokens, `head` of them from its start and the rest
    from its end where it is longer, behind [CLS] and, if there is room for both `ends`, before [SEP]."""
    kept = np.minimum(lengths, room)
    offsets = np.concatenate([[0], np.cumsum(kept + ends)]).astype(np.int64)
    flat = np.empty(offsets[-1], np.int32)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], kept + ends) - 1  # of a token within its kept ones
    first = np.repeat(np.cumsum(lengths) - lengths, kept + ends)
    gap = np.repeat(lengths - kept, kept + ends)  # tokens left out in the middle
    long = gap > 0
    source = first + place + np.where(long & (place >= head), gap, 0)
    inside = (place >= 0) & (place < np.repeat(kept, kept + ends))
    flat[inside] = ids[source[inside]]
    flat[offsets[:-1]] = CLS
    if ends == 2:
        flat[offsets[1:] - 1] = SEP
    return flat, offsets


def encode_cached(
    texts: Sequence[str], tokenizer: TextTokenizer, *, seq_len: int, truncate: str = "head", what: str = "text"
) -> Encoded:
    """`encode`, kept in the cache folder under a hash of the texts, the tokenizer and the settings."""
    content = hashlib.blake2b(digest_size=20)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        content.update(len(data).to_bytes(8, "little") + data)
    name = digest([VERSION, content.hexdigest(), tokenizer.digest, seq_len, truncate])[:24]

    def build(folder: Path) -> None:
        made = encode(texts, tokenizer, seq_len=seq_len, truncate=truncate, what=what, progress=len(texts) > 5000)
        folder.mkdir()
        np.save(folder / "ids.npy", made.ids)
        np.save(folder / "offsets.npy", made.offsets)
        info = {"cut": made.cut, "tokens": made.tokens, "unk": made.unk}
        (folder / "info.json").write_text(json.dumps(info), "utf-8")

    return read_encoded(build_once(cache_folder() / "encoded" / name, build, what=f"the tokens of {what}"))


def read_encoded(folder: Path) -> Encoded:
    """Maps what `encode_cached` wrote."""
    info = json.loads((folder / "info.json").read_text("utf-8"))
    return Encoded(np.load(folder / "ids.npy", mmap_mode="r"), np.load(folder / "offsets.npy"), folder=folder, **info)

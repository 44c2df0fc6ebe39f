"""Texts to token ids, computed once: flat arrays that are memory-mapped from the cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Sequence

import numpy as np

from xcls.config.schema import UserError
from xcls.data.cache import build_once, cache_folder, digest
from xcls.data.tokenizer import CLS, SEP, UNK, TextTokenizer

# A larger share of these causes a warning:
UNK_WARNING = 0.01  # unknown tokens
CUT_WARNING = 0.2  # tokens that truncation leaves out
CUT_DOCUMENTS_WARNING = 0.5  # truncated documents
BATCH = 1000  # texts that are tokenised at once, at most
CHARACTERS = 2_000_000  # their characters, at most: the library needs about a hundred bytes per token
VERSION = 3


@dataclass
class Encoded:
    """Token ids of D documents, special tokens included: `ids` uint16 or int32 [T], `offsets` int64 [D + 1].

    `cut`: documents longer than seq_len; `tokens`: all tokens before truncation; `unk`: the share of [UNK] in them.
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
        """uint16 or int32 [N]: [CLS], the tokens, [SEP]."""
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64 [D]."""
        return np.diff(self.offsets)

    @property
    def cut_share(self) -> float:
        """The share of all tokens that truncation left out."""
        kept = int(self.offsets[-1]) - min(2 * len(self), int(self.offsets[-1]))
        return 1.0 - kept / self.tokens if self.tokens else 0.0

    def report(self) -> dict[str, Any]:
        """Counts for the record: documents, tokens, and the shares that were cut off and unknown."""
        return {
            "documents": len(self),
            "tokens": int(self.offsets[-1]),
            "documents_cut": self.cut,
            "documents_cut_share": self.cut / max(len(self), 1),
            "tokens_cut_share": self.cut_share,
            "unk_share": self.unk,
        }

    def warnings(self, name: str, *, seq_len: int, finished: bool = False) -> list[str]:
        """Warnings about truncation and [UNK], for the log and the record.

        `finished`: for a run whose training has ended, so that seq_len and vocabulary cannot be changed.
        """
        found = []
        if self.cut_share > CUT_WARNING or self.cut > CUT_DOCUMENTS_WARNING * len(self):
            raised = "Train with a larger seq_len" if finished else "Raise seq_len"
            found.append(
                f"{name}: {self.cut} of {len(self)} documents are longer than seq_len={seq_len}, and "
                f"{self.cut_share:.0%} of all tokens are left out. {raised}, or choose which part is kept: "
                "dataset.truncate=head, tail or head_tail."
            )
        if self.unk > UNK_WARNING:
            remedy = (
                "Train on text like this."
                if finished
                else "Raise tokenizer.vocab_size, train one on this text (tokenizer.path=null) "
                "where it was loaded, add words (tokenizer.extend=1000), or use tokenizer=bytes, which has no unknown "
                "tokens."
            )
            found.append(
                f"{name}: {self.unk:.1%} of the tokens are [UNK], so the vocabulary does not fit this text. {remedy}"
            )
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the folder instead of the arrays, so that workers map the same memory."""
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
    places: Sequence[str] | None = None,
    keep: Callable[[np.ndarray], Any] | None = None,
) -> Encoded:
    """Tokenises documents as [CLS] … [SEP] of at most `seq_len` tokens.

    `truncate` keeps of a longer document its `head`, its `tail`, or `head_tail`: a quarter from the start and the rest
    from the end (Sun et al. 2019, 128 + 382); `refuse` raises UserError. With seq_len = 1 only [CLS] is left. `places`:
    names of the documents for the message, given when a trained run reads them. `keep` receives the flat ids batch by
    batch, so that they are not held in memory; then the result has no ids, and progress is shown.
    """
    from tqdm import tqdm

    room = max(seq_len - 2, 0)
    head = {"head": room, "tail": 0, "head_tail": room // 4, "refuse": room}[truncate]
    counts, kind, unknown = [np.empty(0, np.int64)], smallest_dtype(tokenizer.vocab_size), 0
    parts, shown = [np.empty(0, kind)], keep is not None and len(texts) > 5000
    keep = keep or parts.append
    with tqdm(desc=f"tokenising {what}", total=len(texts), unit="text", disable=not shown, mininterval=1.0) as bar:
        for batch in _batches(texts):
            ids, offsets = tokenizer.encode(batch)
            keep(_framed(ids.astype(kind), offsets, room=room, head=head, ends=min(seq_len, 2)))
            counts.append(np.diff(offsets))
            unknown += int((ids == UNK).sum())
            bar.update(len(batch))
    lengths = np.concatenate(counts)
    cut, total = int((lengths > room).sum()), int(lengths.sum())
    if truncate == "refuse" and cut:
        row = int(np.argmax(lengths))
        raise UserError(
            f"{what}: {cut} of {len(lengths)} documents are longer than seq_len={seq_len}; the longest, "
            f"{f'row {row}' if places is None else places[row]}, has {lengths[row] + 2} tokens with [CLS] and [SEP]. "
            f"{'Raise seq_len, or set' if places is None else 'Set'} dataset.truncate=head, tail or head_tail."
        )
    offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, room) + min(seq_len, 2))]).astype(np.int64)
    return Encoded(np.concatenate(parts), offsets, cut, total, unknown / max(total, 1))


def smallest_dtype(vocab_size: int) -> type[np.integer]:
    """The integer type of stored token ids: two bytes suffice for all but very large vocabularies."""
    return np.uint16 if vocab_size <= 2**16 else np.int32


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Batches of at most `BATCH` texts and about `CHARACTERS` characters."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and (len(batch) == BATCH or size + len(text) > CHARACTERS):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def _framed(ids: np.ndarray, offsets: np.ndarray, *, room: int, head: int, ends: int) -> np.ndarray:
    """Flat ids of documents as [CLS] … [SEP], with up to `room` tokens each; `ends` = 1: without [SEP].

    A longer document keeps `head` tokens from its start and the rest from its end.
    """
    flat = np.empty(int(np.minimum(np.diff(offsets), room).sum()) + ends * (len(offsets) - 1), ids.dtype)
    place = 0
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist()):
        flat[place] = CLS
        kept = min(end - start, room)
        first = kept if kept == end - start else head
        flat[place + 1 : place + 1 + first] = ids[start : start + first]
        flat[place + 1 + first : place + 1 + kept] = ids[end - kept + first : end]
        place += kept + ends
        if ends == 2:
            flat[place - 1] = SEP
    return flat


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
        folder.mkdir()
        with open(folder / "ids", "wb") as file:  # batch by batch: the ids of a large corpus need not fit into memory
            how: dict[str, Any] = {"seq_len": seq_len, "truncate": truncate, "what": what}
            made = encode(texts, tokenizer, **how, keep=lambda ids: file.write(ids.tobytes()))
        np.save(folder / "offsets.npy", made.offsets)
        info = {"cut": made.cut, "tokens": made.tokens, "unk": made.unk, "dtype": made.ids.dtype.name}
        (folder / "info.json").write_text(json.dumps(info), "utf-8")

    return read_encoded(build_once(cache_folder() / "encoded" / name, build, what=f"the tokens of {what}"))


def read_encoded(folder: Path) -> Encoded:
    """Maps what `encode_cached` wrote."""
    info = json.loads((folder / "info.json").read_text("utf-8"))
    offsets, dtype = np.load(folder / "offsets.npy"), np.dtype(info.pop("dtype"))
    ids = np.memmap(folder / "ids", dtype, "r") if offsets[-1] else np.empty(0, dtype)
    return Encoded(ids, offsets, folder=folder, **info)

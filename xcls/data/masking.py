"""Masked language modelling: which tokens are chosen, and what stands in their place.

Devlin et al. 2019 (BERT, 3.1): of the chosen tokens 80 % become [MASK], 10 % a random token, 10 % stay. Liu et al. 2019
(RoBERTa, 4.1): fresh choices at every pass. Each draw is a hash of (seed, pass, example, position), so the masks of an
example depend neither on its batch mates nor on workers, batch size or padding.
"""

from __future__ import annotations

import numpy as np

from xcls.config.schema import Masking
from xcls.data.draws import draw, key, uniform

SPECIAL = 5  # ids below are [PAD] [UNK] [CLS] [SEP] [MASK]
MASK_ID = 4
IGNORED = -100  # the label of a token that was not chosen


def mask_tokens(
    ids: np.ndarray,
    *,
    index: np.ndarray,
    seed: int,
    epoch: int,
    masking: Masking,
    vocab_size: int,
    continues: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(input ids, labels), int64 [B, N], for token ids [B, N] of the examples `index` [B].

    Special tokens (padding among them) are never chosen, and random tokens are never special ones. With
    `masking.fresh=False` the epoch plays no part. With `masking.whole_word`, `continues` bool [V] (True for a token
    that goes on with the word before it) makes words be chosen as wholes; what replaces a token is still its own draw.
    """
    ids = np.asarray(ids, np.int64)
    keys = key([seed, epoch if masking.fresh else 0, np.asarray(index)])[:, None]  # [B, 1]
    position = np.arange(ids.shape[1])[None]  # [1, N]
    ordinary = ids >= SPECIAL
    deciding = position
    if masking.whole_word:
        if continues is None:
            raise ValueError("whole-word masking needs `continues`, the tokens that go on with a word")
        deciding = word_starts(ids, ordinary, continues)
    chosen = ordinary & (uniform(draw(keys, 3 * deciding)) < masking.probability)
    kind = uniform(draw(keys, 3 * position + 1))
    masked = chosen & (kind < masking.mask_share)
    randomised = chosen & ~masked & (kind < masking.mask_share + masking.random_share)
    inputs = np.where(masked, MASK_ID, ids)
    if vocab_size > SPECIAL:
        random_ids = SPECIAL + (draw(keys, 3 * position + 2) % np.uint64(vocab_size - SPECIAL)).astype(np.int64)
        inputs = np.where(randomised, random_ids, inputs)
    return inputs, np.where(chosen, ids, IGNORED)


def word_starts(ids: np.ndarray, ordinary: np.ndarray, continues: np.ndarray) -> np.ndarray:
    """For each token the position at which its word starts, int64 [B, N]; a word never goes on over a special token."""
    position = np.arange(ids.shape[1])[None]
    after_special = np.ones_like(ordinary)
    after_special[:, 1:] = ~ordinary[:, :-1]
    starts = ~continues[ids] | ~ordinary | after_special
    return np.maximum.accumulate(np.where(starts, position, 0), axis=1)

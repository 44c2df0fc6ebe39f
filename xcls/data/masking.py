"""Masked language modelling: the choice of tokens, and what replaces them.

Devlin et al. 2019 (BERT, 3.1): of the chosen tokens 80 % become [MASK], 10 % a random token, 10 % stay. Liu et al. 2019
(RoBERTa, 4.1): new choices in every epoch. Each draw is a hash of (seed, epoch, example, position), so that the masks
of an example do not depend on the rest of the batch, the workers, the batch size or padding.
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

    Special tokens (including padding) are never chosen, and a random token is never a special one. With
    `masking.fresh=False` the masks are the same in every epoch. With `masking.whole_word`, all tokens of a word are
    chosen together (`continues` bool [V]: True for a token that continues a word); each is replaced by its own draw.
    """
    ids = np.asarray(ids, np.int64)
    keys = key([seed, epoch if masking.fresh else 0, np.asarray(index)])[:, None]  # [B, 1]
    position = np.arange(ids.shape[1])[None]  # [1, N]
    ordinary = ids >= SPECIAL
    deciding = position
    if masking.whole_word:
        if continues is None:
            raise ValueError("whole-word masking needs `continues`, the tokens that continue a word")
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
    """The position at which the word of each token starts, int64 [B, N]; a special token ends a word."""
    position = np.arange(ids.shape[1])[None]
    after_special = np.ones_like(ordinary)
    after_special[:, 1:] = ~ordinary[:, :-1]
    starts = ~continues[ids] | ~ordinary | after_special
    return np.maximum.accumulate(np.where(starts, position, 0), axis=1)

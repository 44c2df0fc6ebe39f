"""Batches: every example once, functions of (seed, epoch), little padding."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from xcls.config.schema import Masking
from xcls.data.batching import ROWS, ClassBatches, MaskedBatches, Pass, batches, evaluation_batches, micro_batches, pad
from xcls.data.encode import Encoded, encode, encode_cached
from xcls.data.masking import IGNORED
from xcls.data.tokenizer import ByteTokenizer

LENGTHS = np.random.default_rng(1).geometric(0.02, 2000).clip(3, 512)


def documents(lengths: np.ndarray) -> Encoded:
    """Random tokens in documents of these lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Encoded(np.random.default_rng(2).integers(5, 261, offsets[-1]).astype(np.int32), offsets)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 70), st.integers(1, 9), st.booleans(), st.integers(0, 3))
def test_every_example_comes_once_in_every_epoch(count: int, size: int, grouped: bool, epoch: int) -> None:
    made = batches(LENGTHS[:count], batch_size=size, seed=1, epoch=epoch, group_by_length=grouped)
    assert sorted(np.concatenate(made).tolist() if made else []) == list(range(count))
    assert sorted(map(len, made), reverse=True)[:-1] == [size] * (len(made) - 1)
    assert len(made) == -(-count // size)


@pytest.mark.parametrize("grouped", [True, False])
def test_the_order_is_a_function_of_seed_and_epoch(grouped: bool) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(batches(LENGTHS, batch_size=32, seed=seed, epoch=epoch, group_by_length=grouped)).tolist()

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_grouping_by_length_saves_padding_and_leaves_the_order_random() -> None:
    plans = [batches(LENGTHS, batch_size=32, seed=0, epoch=0, group_by_length=grouped) for grouped in (True, False)]
    padded = [sum(int(LENGTHS[rows].max()) * len(rows) for rows in plan) for plan in plans]
    assert padded[0] < 1.2 * LENGTHS.sum() and padded[1] > 2 * LENGTHS.sum()
    longest = np.array([LENGTHS[rows].max() for rows in plans[0]])
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.5


def test_padding_is_zero_and_marked_and_evaluation_starts_with_the_longest() -> None:
    ids, real = pad([np.array([2, 9, 3]), np.array([2, 3])])
    assert ids.tolist() == [[2, 9, 3], [2, 3, 0]] and real.tolist() == [[True] * 3, [True, True, False]]
    assert pad([np.array([2, 9, 3])], multiple=8)[0].shape == (1, 8)
    assert pad([np.array([2, 9, 3])], length=5)[1].tolist() == [[True] * 3 + [False] * 2]
    order = np.concatenate(evaluation_batches(LENGTHS, batch_size=64))
    assert LENGTHS[order].tolist() == sorted(LENGTHS.tolist(), reverse=True)


def test_dynamic_padding_takes_less_memory_than_static() -> None:
    encoded, labels = documents(LENGTHS), np.zeros(len(LENGTHS), np.int64)
    plan = batches(LENGTHS, batch_size=32, seed=0, epoch=0)
    sizes = {}
    for name, static in (("dynamic", None), ("static", 512)):
        made = [ClassBatches(encoded, labels, static=static).build(rows, 0) for rows in plan]
        tensors = [tensor for batch in made for key, tensor in batch.items() if key in ("input_ids", "attention_mask")]
        sizes[name] = np.array([[t.numel(), t.untyped_storage().nbytes()] for t in tensors]).sum(0)
        real = sum(int(batch["attention_mask"].sum()) for batch in made)
        assert real == LENGTHS.sum(), "no token is lost either way"
    assert (sizes["dynamic"] < 0.25 * sizes["static"]).all(), "elements and bytes, summed over a pass"


def test_micro_batches_hold_the_rows_trimmed_to_their_longest() -> None:
    encoded = documents(np.array([9, 7, 7, 4, 3]))
    batch = MaskedBatches(encoded, Masking(), seed=0, vocab_size=261).build(np.arange(5), 0)
    parts = micro_batches(batch, 2)
    assert [tuple(part["input_ids"].shape) for part in parts] == [(2, 9), (2, 7), (1, 3)]
    for start, part in zip((0, 2, 4), parts):
        rows, width = part["input_ids"].shape
        here = (slice(start, start + rows), slice(width))
        torch.testing.assert_close(part["input_ids"], batch["input_ids"][here])
        mask = batch["attention_mask"][here]
        torch.testing.assert_close(part["attention_mask"], None if mask.all() else mask)
        labels = torch.full((rows * width,), IGNORED)
        chosen = part["targets"] != IGNORED
        labels[part["rows"][chosen]] = part["targets"][chosen]
        torch.testing.assert_close(labels.unflatten(0, (rows, width)), batch["labels"][here])
        assert "labels" not in part and len(part["rows"]) == len(part["targets"]) == ROWS
    assert torch.cat([part["index"] for part in parts]).tolist() == [0, 1, 2, 3, 4]
    assert len(micro_batches(batch, None)) == 1 and micro_batches(batch, 4, multiple=8)[1]["input_ids"].shape == (1, 8)


def test_class_batches_carry_labels_of_their_rows() -> None:
    batch = ClassBatches(documents(np.array([3, 4, 5])), np.array([7, 8, 9])).build(np.array([2, 0]))
    assert batch["labels"].tolist() == [9, 7] and batch["index"].tolist() == [2, 0]
    assert batch["input_ids"].dtype == torch.int64 and batch["attention_mask"].dtype == torch.bool


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_resuming_change_nothing(workers: int) -> None:
    texts = [f"document number {row} " * (row % 7 + 1) for row in range(60)]
    encoded = encode_cached(texts, ByteTokenizer(), seq_len=64)
    collator = MaskedBatches(encoded, Masking(), seed=3, vocab_size=261)
    plan = batches(encoded.lengths, batch_size=8, seed=3, epoch=1)
    whole = [collator.build(rows, 1) for rows in plan]
    resumed = list(
        DataLoader(Pass(collator=collator, plan=plan, epoch=1, start=3), batch_size=None, num_workers=workers)
    )
    assert len(resumed) == len(whole) - 3
    for expected, found in zip(whole[3:], resumed):
        torch.testing.assert_close(found, expected)
    assert any((batch["labels"] != IGNORED).any() for batch in resumed)


def test_batches_travel_to_workers_as_a_path_and_not_as_arrays() -> None:
    encoded = encode_cached(["some text " * 200] * 50, ByteTokenizer(), seq_len=2048)
    collator = MaskedBatches(encoded, Masking(), seed=0, vocab_size=261)
    packed = pickle.dumps(collator)
    assert len(packed) < 2000 < encoded.ids.nbytes
    torch.testing.assert_close(pickle.loads(packed).build(np.arange(3), 0), collator.build(np.arange(3), 0))
    assert pickle.loads(pickle.dumps(encode(["abc"], ByteTokenizer(), seq_len=9)))[0].tolist() == [2, 102, 103, 104, 3]

"""Batches on their way to the device: order, widths, counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.samples import make_amp, make_encoded
from xcls.data.batching import ClassBatches
from xcls.train.stream import MULTIPLE, Stream, batches_from, on_device, real_and_padded, rows_at_once, width_multiple


def make_stream(rows: int = 21, multiple: int = MULTIPLE) -> Stream:
    encoded, labels = make_encoded(rows, seed=0)
    maker = ClassBatches(encoded=encoded, labels=labels, multiple=multiple)
    return Stream(maker=maker, lengths=encoded.lengths, batch_size=4, seed=3, group_by_length=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_at_a_step_gives_the_rest_of_the_whole(workers: int) -> None:
    stream = make_stream()
    whole = list(batches_from(stream, step=0, total=14, workers=workers))
    rest = list(batches_from(stream, step=8, total=14, workers=0))
    assert len(whole) == 14 and stream.steps_per_epoch == 6
    for one, other in zip(whole[8:], rest, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    for epoch in (0, 1):
        seen = np.sort(np.concatenate([batch["index"].numpy() for batch in whole[6 * epoch : 6 * epoch + 6]]))
        assert seen.tolist() == list(range(21))
    assert not all(torch.equal(a["index"], b["index"]) for a, b in zip(whole[:6], whole[6:12]))


@pytest.mark.parametrize("size", [None, 1, 3])
def test_widths_are_rounded_and_counted(size: int | None) -> None:
    stream, amp = make_stream(), make_amp()
    for batch in batches_from(stream, step=0, total=6, workers=0):
        parts = list(on_device(batch, size, amp))
        assert all(part["input_ids"].shape[1] % MULTIPLE == 0 for part in parts)
        masks = [part["attention_mask"] for part in parts]
        real = sum(part["input_ids"].numel() if mask is None else int(mask.sum()) for part, mask in zip(parts, masks))
        assert real_and_padded(batch, size) == (real, sum(part["input_ids"].numel() for part in parts))
        assert all(mask is None or not mask.all() for mask in masks)


def test_rounding_never_passes_the_limit() -> None:
    assert [width_multiple(seq_len) for seq_len in (8, 512, 100, 1)] == [8, 8, 1, 1]
    stream = make_stream(multiple=width_multiple(23))
    batch = next(batches_from(stream, step=0, total=1, workers=0))
    assert next(on_device(batch, None, make_amp()))["input_ids"].shape[1] == int(batch["attention_mask"].sum(1).max())


@pytest.mark.parametrize(
    ("limits", "tokens", "rows"), [((), None, None), ((3, None), None, 3), ((), 64, 4), ((), 5, 1), ((3,), 64, 3), ((8, 2), 64, 2)]
)
def test_rows_and_positions_at_once_are_both_kept(limits: tuple[int | None, ...], tokens: int | None, rows: int | None) -> None:
    batch = {"input_ids": torch.zeros(9, 16, dtype=torch.int64)}
    assert rows_at_once(batch, *limits, tokens=tokens) == rows

"""Batches on their way to the device: order, widths, counts."""

from __future__ import annotations

import threading
import time
from typing import Iterator

import numpy as np
import pytest
import torch

from tests.samples import make_amp, make_encoded
from xcls.data.batching import ClassBatches
from xcls.train.stream import MULTIPLE, Stream, ahead, batches_from, on_device, real_and_padded, width_multiple


def make_stream(rows: int = 21, multiple: int = MULTIPLE) -> Stream:
    encoded, labels = make_encoded(rows, seed=0)
    collator = ClassBatches(encoded=encoded, labels=labels, multiple=multiple)
    return Stream(collator=collator, batch_size=4, seed=3, group_by_length=True)


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
    assert [width_multiple(seq_len, compiled=True) for seq_len in (8, 512, 100, 509, 1)] == [2, 128, 25, 509, 1]
    stream = make_stream(multiple=width_multiple(23))
    batch = next(batches_from(stream, step=0, total=1, workers=0))
    assert next(on_device(batch, None, make_amp()))["input_ids"].shape[1] == int(batch["attention_mask"].sum(1).max())


def test_a_thread_builds_ahead_and_ends_with_who_asks() -> None:
    built: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            built.append(number)
            yield number

    before = threading.active_count()
    batches = ahead(numbers(), depth=2)
    assert [next(batches) for _ in range(3)] == [0, 1, 2] and threading.active_count() == before + 1
    while len(built) < 5:  # three taken, two waiting
        time.sleep(0.001)
    batches.close()
    assert threading.active_count() == before and len(built) == 5
    assert list(ahead(iter(range(5)))) == [0, 1, 2, 3, 4]
    with pytest.raises(ZeroDivisionError):
        list(ahead(1 // number for number in (1, 0)))


def test_batches_for_a_gpu_are_the_same_and_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[tuple[int, ...]] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *given: pinned.append(self.shape) or self)
    stream, settings = make_stream(), {"step": 2, "total": 8, "workers": 0}
    found = list(batches_from(stream, device="cuda", **settings))
    assert len(pinned) == 4 * 6
    for one, other in zip(found, batches_from(stream, **settings), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)

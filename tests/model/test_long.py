"""Long documents: no tensor of any attention with any position grows with the square of the tokens, padding or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.allocations import KeptTensors, LargestTensor
from tests.pairwise import spread
from tests.samples import ATTENTIONS, POSITIONS, from_yaml, make_classifier, make_encoder
from xcls.attention import base
from xcls.config.schema import MAX_SEQ_LEN, UserError
from xcls.train.cost import MemoryGauge

SHORT, LONG = 256, 512
# Or what is constant would hide what grows.
SMALL = {"window": 16, "bucket_size": 16, "chunk_size": 16, "num_features": 16, "max_buckets": 8}
MODES = ("inference", "training", "recomputed")


def make_long(attention: str, position: str, length: int, **changes: Any) -> torch.nn.Module:
    """A classifier with small chunks, windows and blocks."""
    for group, name in (("attention", attention), ("position", position)):
        changes[f"{group}_changes"] = {key: SMALL[key] for key in from_yaml(group, name)[1] if key in SMALL}
    return make_classifier(attention, position, seq_len=length, num_layers=1, **changes)


def grown(model: torch.nn.Module, length: int, mode: str, padded: bool) -> dict[str, int]:
    """Entries of the largest tensor that a pass makes, and of all that it keeps for the backward pass."""
    ids = torch.randint(5, 40, (1, length), generator=torch.Generator().manual_seed(0))
    real = torch.arange(length)[None] < (length - length // 8 if padded else length)
    model.train(mode != "inference")
    model.encoder.gradient_checkpointing = mode == "recomputed"
    with LargestTensor() as largest, KeptTensors() as kept, torch.set_grad_enabled(mode != "inference"):
        out = model(ids, real)
        if mode != "inference":
            out.sum().backward()
    return {"largest": largest.entries, "kept": kept.entries}


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No N x N matrix fits."""
    monkeypatch.setattr(base, "memory_of", lambda device: 0)
    monkeypatch.setattr(base, "BLOCK_ROWS", 32)


@pytest.mark.parametrize(("attention", "position"), spread(ATTENTIONS, POSITIONS, times=1))
def test_nothing_grows_with_the_square_of_the_tokens(attention: str, position: str, no_memory: None) -> None:
    models = {length: make_long(attention, position, length) for length in (SHORT, LONG)}
    for mode in MODES:
        for padded in (False, True):
            short, long = (grown(model, length, mode, padded) for length, model in models.items())
            assert long["largest"] < LONG * LONG / 4, (mode, padded)  # less than one matrix of flags
            assert all(long[what] <= 2.5 * short[what] for what in short), (mode, padded, short, long)


@pytest.mark.parametrize(("attention", "position"), [("sdpa", "rope"), ("sdpa_fused", "relative")])
def test_a_score_matrix_that_is_kept_whole_is_seen(attention: str, position: str) -> None:
    short, long = (grown(make_long(attention, position, length), length, "training", False) for length in (SHORT, LONG))
    assert long["largest"] >= LONG * LONG and all(long[what] > 2.5 * short[what] for what in short)


@pytest.mark.slow
@pytest.mark.parametrize("position", ["rope", "relative"])
@pytest.mark.parametrize("attention", ["sdpa", "sdpa_fused", "performer", "reformer"])
def test_the_longest_document_trains_and_infers_in_little_memory(
    attention: str, position: str, no_memory: None
) -> None:
    length, width = MAX_SEQ_LEN, {"width": 256, "heads": 4, "feed_forward": 1024}
    shape = {"seq_len": length, "vocab_size": 300, "sharpness": 1.0, **width}
    encoder = make_encoder(attention, position, dropout=0.1, gradient_checkpointing=True, **shape)
    ids, real = torch.randint(5, 300, (1, length)), torch.arange(length)[None] < length - 1000
    gauge = MemoryGauge(torch.device("cpu"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoder(ids, real).float().square().mean().backward()
        with torch.no_grad():
            hidden = encoder.eval()(ids, real)
    gauge.pause()
    assert hidden.isfinite().all() and all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert gauge.peaks["rss_growth_MiB"] < 2048  # one [4, N, N] of bf16 alone is as much
    with pytest.raises(UserError, match="A sequence of 16385 tokens is longer than the limit of 16384"):
        encoder(torch.ones(1, length + 1, dtype=torch.int64))

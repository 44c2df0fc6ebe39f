"""What a training step may cost on cards, held by the cost model (tests/gpu/cost.py): kernels, bytes, waits, memory,
time.

size=small, 32 x 512 tokens, padded; forward and backward pass of the classifier, eager. All of it is estimated, so only
ratios of times are held. A budget that a change breaks is a reason to look at `python -m tests.gpu.cost --where`.
Where a budget is not what we aim for (docs/gpu.md), it is what is reached, so that it gets no worse.
"""

from __future__ import annotations

import pytest

from tests.gpu.cost import CARDS, NEW, OLD, Case, trace

KERNELS = {"sdpa": 330, "sdpa_fused": 300, "performer": 360, "reformer": 450}
ROTATION = 1.5e9  # bytes that RoPE moves in all layers
SOFTMAX = {"A100": 21e9, "T4": 22e9}  # bytes that sdpa moves, in bf16 and in fp16
# Of those of sdpa; OLD: cards without tensor cores for Triton
TIME = {("performer", NEW): 0.75, ("reformer", NEW): 0.72, ("performer", OLD): 0.97, ("reformer", OLD): 0.80}
MEMORY = {("performer", NEW): 0.77, ("reformer", NEW): 0.76, ("performer", OLD): 0.90, ("reformer", OLD): 0.76}
LONG = {"performer": 0.155, "reformer": 0.20}  # of the time of sdpa_fused at 16,384 tokens, on an H100


@pytest.mark.parametrize("attention", KERNELS)
def test_a_step_stays_within_its_budget(attention: str) -> None:
    step = trace(Case(attention), "A100")
    masked = trace(Case(attention, mlm=True, words=("size=small", "size.num_layers=1")), "A100")
    assert step.waits.total() == masked.waits.total() == 0
    assert step.kernels <= KERNELS[attention] and step.moved("xcls/position/") <= ROTATION


@pytest.mark.parametrize("card", SOFTMAX)
def test_softmax_written_out_moves_its_scores_no_more_than_it_must(card: str) -> None:
    assert trace(Case("sdpa"), card).moved() <= SOFTMAX[card]


@pytest.mark.parametrize("attention", LONG)
def test_quicker_and_smaller_than_softmax(attention: str) -> None:
    for name, card in CARDS.items():
        ours, softmax = trace(Case(attention), name), trace(Case("sdpa"), name)
        assert ours.seconds(card) / softmax.seconds(card) <= TIME[attention, card.kind], name
        assert ours.peak / softmax.peak <= MEMORY[attention, card.kind], name
    ours, fused = (trace(Case(name, batch=1, length=16384), "H100") for name in (attention, "sdpa_fused"))
    assert ours.seconds(CARDS["H100"]) / fused.seconds(CARDS["H100"]) <= LONG[attention]
    assert ours.peak <= fused.peak

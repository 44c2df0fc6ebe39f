"""What a training step may cost on cards, held by the cost model (tests/gpu/cost.py): kernels, bytes, waits, memory,
time.

size=small, 32 x 512 tokens, padded; forward and backward pass of the classifier, eager. All of it is estimated, so only
ratios of times are held. A budget that a change breaks is a reason to look at `python -m tests.gpu.cost --where`.
Where a budget is not what we aim for (docs/gpu.md), it is what is reached, so that it gets no worse.
"""

from __future__ import annotations

import pytest

from tests.gpu.cost import CARDS, Case, trace

KERNELS = {"sdpa": 330, "sdpa_fused": 300, "performer": 360, "reformer": 450}
ROTATION = 1.5e9  # bytes that RoPE moves in all layers
SOFTMAX = {"A100": 21e9, "T4": 22e9}  # bytes that sdpa moves, in bf16 and in fp16
NEW, OLD = ("A100", "H100"), ("T4", "V100")  # OLD: no tensor cores for Triton
TIME = {
    ("performer", NEW): 0.75,
    ("reformer", NEW): 0.72,
    ("performer", OLD): 0.97,
    ("reformer", OLD): 0.80,
}  # of that of sdpa
MEMORY = {("performer", NEW): 0.77, ("reformer", NEW): 0.76, ("performer", OLD): 0.90, ("reformer", OLD): 0.76}
LONG = {"performer": 0.155, "reformer": 0.20}  # of the time of sdpa_fused at 16,384 tokens, on an H100


@pytest.mark.parametrize("attention", KERNELS)
def test_a_step_stays_within_its_budget(attention: str) -> None:
    step = trace(Case(attention), "A100")
    found = {"kernels": step.kernels, "waits": step.waits.total(), "RoPE, bytes": step.moved("xcls/position/")}
    most = {"kernels": KERNELS[attention], "waits": 0, "RoPE, bytes": ROTATION}
    masked = trace(Case(attention, mlm=True, words=("size=small", "size.num_layers=1")), "A100")
    found["waits of masked language modelling"], most["waits of masked language modelling"] = masked.waits.total(), 0
    for card, limit in SOFTMAX.items() if attention == "sdpa" else ():
        key = f"bytes, {CARDS[card].dtype}"
        found[key], most[key] = trace(Case("sdpa"), card).moved(), limit
    wrong = over(found, most)
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize("attention", LONG)
def test_quicker_and_smaller_than_softmax(attention: str) -> None:
    found, most = {}, {}
    for name, card in CARDS.items():
        ours, softmax = trace(Case(attention), name), trace(Case("sdpa"), name)
        key = attention, NEW if name in NEW else OLD
        found[f"time, {name}"], most[f"time, {name}"] = ours.seconds(card) / softmax.seconds(card), TIME[key]
        found[f"memory, {name}"], most[f"memory, {name}"] = ours.peak / softmax.peak, MEMORY[key]
    ours, fused = (trace(Case(name, batch=1, length=16384), "H100") for name in (attention, "sdpa_fused"))
    found["time, 16,384"] = ours.seconds(CARDS["H100"]) / fused.seconds(CARDS["H100"])
    found["memory, 16,384"] = ours.peak / fused.peak
    wrong = over(found, most | {"time, 16,384": LONG[attention], "memory, 16,384": 1.0})
    assert not wrong, "; ".join(wrong)


def over(found: dict[str, float], most: dict[str, float]) -> list[str]:
    """What is above its budget."""
    return [f"{name}: {value:,.4g}, budget {most[name]:,.4g}" for name, value in found.items() if value > most[name]]

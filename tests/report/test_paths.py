"""Costs of different algorithms, and memory that is counted differently, make no claim between them."""

from __future__ import annotations

import pytest

from tests.report.test_cost_ratio import board_of
from tests.report.test_verdict import reason, state
from xcls.report.circumstances import unlike_groups
from xcls.report.compare import MEANING, comparison, footnotes
from xcls.report.verdict import MISSING, PASS, Judge
from xcls.report.write import claims_for

GPU = {"kind": "cuda", "name": "a test GPU", "micro_batch": None}


def way(path: str | None) -> dict[str, str]:
    """The device's entry of a run that computed attention in this way; none in an older record."""
    return {} if path is None else {"attention_path": path}


def study(make, mine: list[str | None], theirs: list[str | None]):
    """Performer cheaper than SDPA in three seeds each, with the ways in which they computed attention."""
    found = [make.finetune("performer", seed, time=7.0, memory=60.0, device=way(path)) for seed, path in enumerate(mine)]
    return [*found, *(make.finetune("sdpa", seed, device=way(path)) for seed, path in enumerate(theirs)), make.baseline(0.80)]


@pytest.mark.parametrize(
    ("mine", "theirs", "words"),
    [
        ([None] * 3, [None] * 3, ""),
        (["fused"] * 3, ["whole"] * 3, ""),
        (["whole"] * 3, ["whole"] * 3, ""),
        ([None] * 3, ["blocks,whole"] * 3, ""),
        ([None] * 3, ["whole", None, "whole"], ""),  # one record is older
        (["whole"] * 3, ["blocks"] * 3, "softmax was computed in different ways: whole in performer, blocks in sdpa"),
        (["whole"] * 3, ["blocks,whole"] * 3, "blocks and whole in sdpa"),
        (["fused"] * 3, ["blocks", "whole", "whole"], "the runs of sdpa computed attention in different ways: blocks and whole"),
        (["fused", "plain", "fused"], ["whole"] * 3, "the runs of performer computed attention in different ways: fused and plain"),
    ],
)
def test_different_ways_make_no_cost_claim(make, judged, mine, theirs, words):
    verdict = judged(study(make, mine, theirs), "performer")
    assert state(verdict, "WNF-1 cost") == (MISSING if words else PASS)
    assert words in reason(verdict, "WNF-1 cost") and state(verdict, "WNF-2 quality") == PASS


def test_a_reference_in_blocks_is_told_beside_its_ratios(make, tmp_path):
    board, groups = board_of(make, study(make, ["fused"] * 3, ["blocks"] * 3), tmp_path)
    (told,) = unlike_groups(groups["performer"], groups["sdpa"])
    assert "softmax of sdpa in blocks" in told
    assert any(note.startswith("†: performer") and told in note for note in footnotes(board, "sdpa"))


def test_memory_of_a_cpu_and_of_a_gpu_are_not_compared(make, judged):
    ours = [make.finetune("performer", seed, time=7.0, memory=60.0, device=GPU) for seed in range(3)]
    for record in ours:
        record.costs["max_gpu_mem_MiB"] = 60.0
    verdict = judged([*ours, *make.seeds("sdpa"), make.baseline(0.80)], "performer")
    assert state(verdict, "WNF-1 cost") == MISSING and "another kind of device" in reason(verdict, "WNF-1 cost")
    assert all(number.value is None for number in verdict.claims[0].measured if "ratio" in number.name)


@pytest.mark.parametrize(("device", "words"), [(GPU, "allocator"), ({}, "growth of peak RSS")])
def test_what_memory_counts_is_said_beside_it(make, tmp_path, device, words):
    records = [*make.seeds("sdpa", device=device), *make.seeds("performer", device=device)]
    board, _ = board_of(make, records, tmp_path)
    (told,) = [note for note in footnotes(board, "sdpa") if note.startswith("Memory on a")]
    assert words in told and "AdamW" in told and words.split()[0] in MEANING
    assert comparison(board, Judge(claims_for({}, ())), "sdpa")[0][-1] == "memory, MiB"

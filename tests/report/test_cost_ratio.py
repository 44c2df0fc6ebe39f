"""Cost claims over seeds: medians, intervals, disturbed runs; numbers computed by hand or by scipy's tests."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tests.report.examples import board_of, study_of
from tests.report.test_bench import bench_of
from tests.report.test_verdict import SDPA, reason, state
from xcls.config.schema import UserError
from xcls.report.claims import FAIL, MISSING, PASS, UNDECIDED
from xcls.report.conditions import unlike_groups
from xcls.report.cost_ratio import cost_interval, in_turns
from xcls.report.load import collect
from xcls.report.settings import claims_from
from xcls.report.tables import OF_CLAIM, claim_rows, group_rows
from xcls.report.text import footnotes

DISTURBED = {"sdpa": (48.3, 3.9, 3.8), "performer": (4.0, 4.8, 5.5)}  # the first run of sdpa shared its machine


def timed(make, attention, values, *, measure="time_per_epoch", started=None, device=None, **options):
    """A run per value of `measure`; `started`: when each began."""
    made = make.seeds(attention, SDPA[:1] * len(values), device=device, **options)
    for place, (record, value) in enumerate(zip(made, values)):
        record.costs[measure] = value
        record.started = float(started[place]) if started else 0.0
    return made


def pair(make, times, **options):
    """sdpa and performer with these times per epoch, and a baseline that both beat."""
    groups = [timed(make, attention, values, **options) for attention, values in times.items()]
    return [*groups[0], *groups[1], make.baseline(0.80)]


def ratio_of(verdict, title="time ratio"):
    return next(number for number in verdict.claims[0].measured if number.name == title)


def groups_of(make, root, records):
    return board_of(study_of(make, root, records))[1]


def test_one_disturbed_run_decides_nothing(make, judged):
    """By the means performer took 14.3 s to 56 s, 74 % less; it was slower in every seed that nothing disturbed."""
    verdict = judged(pair(make, DISTURBED), "performer")
    number = ratio_of(verdict)
    assert number.value == pytest.approx(4.8 / 3.9) and (number.state, number.margin < 0) == (UNDECIDED, True)
    assert (state(verdict, "WNF-1 cost"), state(verdict, "WNF-2 quality"), verdict.state) == (UNDECIDED, PASS, MISSING)
    assert reason(verdict, "WNF-1 cost").endswith("repeat multirun/demo/demo/finetune-sdpa-rope-tiny-n512-s0")
    assert "12.5×" in reason(verdict, "WNF-1 cost")  # 48.3 over the median of 3.9 and 3.8
    assert verdict.reasons == [reason(verdict, "WNF-1 cost")]


def test_the_same_runs_undisturbed_fail(make, judged):
    verdict = judged(pair(make, {**DISTURBED, "sdpa": (3.9, 3.9, 3.8)}), "performer")
    assert ratio_of(verdict).value == pytest.approx(4.8 / 3.9)
    assert (state(verdict, "WNF-1 cost"), verdict.state) == (FAIL, FAIL)
    assert ratio_of(verdict).interval.low > 0.8


def test_a_disturbed_run_of_the_mechanism_is_named_too(make, judged):
    verdict = judged(pair(make, {"sdpa": (10.0, 10.0, 10.0), "performer": (5.0, 5.1, 50.0)}), "performer")
    assert state(verdict, "WNF-1 cost") == UNDECIDED and ratio_of(verdict).value == 0.51
    assert reason(verdict, "WNF-1 cost").endswith("finetune-performer-rope-tiny-n512-s2")


@pytest.mark.parametrize(("factor", "expected"), [(1.51, PASS), (1.5, PASS), (1.49, UNDECIDED)])
def test_how_far_is_far(make, judged, factor, expected):
    """15 s beside two of 10 s: 1.5 times their median. Against it performer's time is low enough whatever the seed."""
    times = {"sdpa": (10.0, 10.0, 15.0), "performer": (2.0, 2.0, 2.0)}
    verdict = judged(pair(make, times), "performer", changed={"max_cost_factor": factor})
    assert state(verdict, "WNF-1 cost") == expected and ratio_of(verdict).value == 0.2


@pytest.mark.parametrize("value", [1.0, 0.5, float("nan"), float("inf"), "x", True])
def test_an_impossible_factor_is_refused(value):
    with pytest.raises(UserError, match="max_cost_factor"):
        claims_from({"max_cost_factor": value})


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [((7.5, 8.0, 8.6), (10.0, 10.1, 9.9)), ((5.0, 6.0, 7.0), (10.0, 11.0, 12.0)), ((1.0, 1.1), (3.0, 3.5, 3.1, 3.2))],
)
def test_the_interval_is_that_of_welch(make, tmp_path, mine, theirs):
    groups = groups_of(make, tmp_path, pair(make, {"sdpa": theirs, "performer": mine}))
    found = cost_interval(groups["performer"], groups["sdpa"], "time_per_epoch", 0.95)
    expected = stats.ttest_ind(np.log(mine), np.log(theirs), equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(np.exp(expected)), rel=1e-6) and found.over == "seeds"
    assert found.value == pytest.approx(np.median(mine) / np.median(theirs)) and found.low <= found.value <= found.high


TURNS = [[0, 3, 4], [1, 2, 5]], [[0, 2, 4], [1, 3, 5]]  # A B B A A B, and A B A B A B


@pytest.mark.parametrize("turns", TURNS)
def test_in_turns_the_seeds_are_compared_in_pairs(make, tmp_path, judged, turns):
    """The machine slows down by a third and recovers: of every seed performer takes 0.7 of the time."""
    times = {"sdpa": (10.0, 13.0, 12.0), "performer": (7.0, 9.2, 8.3)}
    groups = [timed(make, name, values, started=began) for (name, values), began in zip(times.items(), turns)]
    records = [*groups[0], *groups[1], make.baseline(0.80)]
    verdict = judged(records, "performer")
    found = ratio_of(verdict).interval
    expected = stats.ttest_rel(np.log(times["performer"]), np.log(times["sdpa"])).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(
        tuple(np.exp(expected)), rel=1e-6
    ) and found.over == "seeds in pairs"
    assert state(verdict, "WNF-1 cost") == PASS


@pytest.mark.parametrize("began", [([0, 1, 2], [3, 4, 5]), ([0, 0, 0], [0, 0, 0]), ([0, 2, 4], [5, 3, 1])])
def test_otherwise_drift_leaves_the_claim_open(make, judged, began):
    """One mechanism after the other, at unknown times, or paired with other seeds."""
    times = {"sdpa": (10.0, 13.0, 12.0), "performer": (7.0, 9.2, 8.3)}
    groups = [timed(make, name, values, started=at) for (name, values), at in zip(times.items(), began)]
    verdict = judged([*groups[0], *groups[1], make.baseline(0.80)], "performer")
    assert ratio_of(verdict).interval.over == "seeds" and state(verdict, "WNF-1 cost") == UNDECIDED
    assert reason(verdict, "WNF-1 cost").endswith(
        "finetune-performer-rope-tiny-n512-s1"
    )  # 9.2 over the others' 7.65: the dearest


def test_turns_need_the_same_seeds(make, tmp_path):
    groups = [
        timed(make, "sdpa", (1.0, 1.0), started=[0, 2]),
        timed(make, "performer", (1.0, 1.0, 1.0), started=[1, 3, 4]),
    ]
    found = groups_of(make, tmp_path, [*groups[0], *groups[1]])
    assert not in_turns(found["sdpa"], found["performer"]) and not in_turns(found["sdpa"], found["sdpa"])


@pytest.mark.parametrize(
    ("memory", "score", "expected"),
    [(100.0, 0.90, UNDECIDED), (70.0, 0.90, PASS), (100.0, 0.88, FAIL), (None, 0.90, UNDECIDED)],
)
def test_an_open_time_beside_the_rest_of_the_claim(make, judged, memory, score, expected):
    """Low memory is enough; a loss of two points fails whatever the time; without memory the time alone is open."""
    records = [*timed(make, "sdpa", DISTURBED["sdpa"]), make.baseline(0.80)]
    records += [make.finetune("performer", seed, macro_f1=score, time=5.0, memory=memory) for seed in range(3)]
    verdict = judged(records, "performer")
    assert ratio_of(verdict).state == UNDECIDED and state(verdict, "WNF-1 cost") == expected
    assert verdict.state == {UNDECIDED: MISSING}.get(expected, expected)


def test_memory_is_judged_alike(make, judged):
    device, measure = {"kind": "cuda", "name": "a test GPU"}, "max_gpu_mem_MiB"
    records = [*timed(make, "sdpa", (9000.0, 1000.0, 1010.0), measure=measure, device=device), make.baseline(0.80)]
    records += timed(make, "performer", (900.0, 905.0, 910.0), measure=measure, device=device)
    verdict = judged(records, "performer")
    number = ratio_of(verdict, "memory ratio")
    assert (number.value, number.state) == (pytest.approx(905 / 1010), UNDECIDED)
    assert state(verdict, "WNF-1 cost") == UNDECIDED and "max_gpu_mem_MiB" in number.reason


def test_a_single_seed_has_no_interval(make, judged):
    records = [make.finetune("sdpa", time=10.0), make.finetune("performer", time=7.0), make.baseline(0.80)]
    verdict = judged(records, "performer", changed={"min_seeds": 1})
    assert (ratio_of(verdict).interval.low, ratio_of(verdict).state, state(verdict, "WNF-1 cost")) == (None, PASS, PASS)


def test_tables_show_the_open_claim_and_the_bench_beside_it(make, tmp_path):
    bench_of(tmp_path, training=(100.0, 130.0))
    times = {"sdpa": (10.0, 10.0, 10.2), "performer": (7.0, 7.1, 9.9)}
    benches = collect([tmp_path / "multirun" / "bench"], tmp_path).benches
    study = study_of(make, tmp_path, pair(make, times), benches=benches)
    (row,) = [
        row for row in claim_rows(study, references=["sdpa"], splits=["validation"]) if row["measured"] == "time ratio"
    ]
    assert (row["value"], row["state"], row["claim_state"], row["PASS_WNF"]) == (0.71, UNDECIDED, UNDECIDED, MISSING)
    assert row["interval_low"] < 0.71 < 0.8 < row["interval_high"] and row["interval_says"] == "cannot tell"
    assert row["bench"] == 1.3 and row["bench_agrees"].startswith("no: ") and "multirun/bench/b" in row["bench_agrees"]
    assert set(row) <= set(OF_CLAIM) and "-s2" in row["reason"]
    (own,) = [row for row in group_rows(study, {})[0] if row["label"] == "performer"]
    assert (own["time_per_epoch_median"], own["time_per_epoch_mean"]) == (7.1, pytest.approx(8.0))


def test_much_time_in_disturbed_steps_is_told(make, tmp_path):
    """Ten steps of 0.1 s: 0.06 s left out are more than a twentieth, 0.04 s are not."""
    records = timed(make, "sdpa", (10.0, 10.0))
    for record, seconds in zip(records, (0.06, 0.04)):
        record.step, record.costs["excluded_s"], record.costs["excluded_steps"] = 10, seconds, 3
    board, _ = board_of(study_of(make, tmp_path, records))
    (told,) = [note for note in footnotes(board, "sdpa") if "0.06 s" in note]
    assert "seed 0: 3 steps" in told and "seed 1" not in told


def way(path: str | None) -> dict[str, str]:
    """The device's entry of a run that computed attention in this way; none in an older record."""
    return {} if path is None else {"attention_path": path}


def both_ways(make, mine: list[str | None], theirs: list[str | None]):
    """Performer cheaper than SDPA in three seeds each, with the ways in which they computed attention."""
    found = [
        make.finetune("performer", seed, time=7.0, memory=60.0, device=way(path)) for seed, path in enumerate(mine)
    ]
    return [
        *found,
        *(make.finetune("sdpa", seed, device=way(path)) for seed, path in enumerate(theirs)),
        make.baseline(0.80),
    ]


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
        (
            ["fused"] * 3,
            ["blocks", "whole", "whole"],
            "the runs of sdpa computed attention in different ways: blocks and whole",
        ),
        (
            ["fused", "plain", "fused"],
            ["whole"] * 3,
            "the runs of performer computed attention in different ways: fused and plain",
        ),
    ],
)
def test_different_ways_make_no_cost_claim(make, judged, mine, theirs, words):
    verdict = judged(both_ways(make, mine, theirs), "performer")
    assert state(verdict, "WNF-1 cost") == (MISSING if words else PASS)
    assert words in reason(verdict, "WNF-1 cost") and state(verdict, "WNF-2 quality") == PASS


def test_a_reference_in_blocks_is_told_beside_its_ratios(make, tmp_path):
    board, groups = board_of(study_of(make, tmp_path, both_ways(make, ["fused"] * 3, ["blocks"] * 3)))
    (told,) = unlike_groups(groups["performer"], groups["sdpa"])
    assert "softmax of sdpa in blocks" in told
    assert any(note.startswith("†: performer") and told in note for note in footnotes(board, "sdpa"))


def test_memory_of_a_cpu_and_of_a_gpu_are_not_compared(make, judged):
    ours = [
        make.finetune(
            "performer", seed, time=7.0, memory=60.0, device={"kind": "cuda", "name": "a test GPU", "micro_batch": None}
        )
        for seed in range(3)
    ]
    for record in ours:
        record.costs["max_gpu_mem_MiB"] = 60.0
    verdict = judged([*ours, *make.seeds("sdpa"), make.baseline(0.80)], "performer")
    assert state(verdict, "WNF-1 cost") == MISSING and "another kind of device" in reason(verdict, "WNF-1 cost")
    assert all(number.value is None for number in verdict.claims[0].measured if "ratio" in number.name)

"""The claims as written, at, just below and just above every threshold; numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.report.predicted import CLASSES
from xcls.config.schema import UserError
from xcls.report.claims import FAIL, MISSING, PASS, UNDECIDED
from xcls.report.settings import claims_from

SDPA = (0.90, 0.90, 0.90)
COST, QUALITY, STABLE = "WNF-1 cost", "WNF-2 quality", "WNF-2 stability"


def states(verdict):
    """{code: state} of the claims, and the verdict's own under ''."""
    return {**{claim.code: claim.state for claim in verdict.claims}, "": verdict.state}


def reason(verdict, code):
    return next(claim.reason for claim in verdict.claims if claim.code == code)


def sweep(make, attention, *, score=0.90, time=10.0, memory=100.0, base=0.80, **options):
    """SDPA at 0.90, 10 s, 100 MiB; a mechanism; a baseline."""
    made = make.seeds(attention, (score,) * 3, time=time, memory=memory, **options)
    return [*make.seeds("sdpa", SDPA), *made, make.baseline(base)]


# Performer: 0.80 x 10 s = 8 s, 0.70 x 100 MiB = 70 MiB. Reformer: 0.85 x 10 s = 8.5 s, 0.75 x 100 MiB = 75 MiB. At
# most one point below SDPA's 0.90; SDPA 5 points, the others 3 above the baseline; at most one between the seeds.
@pytest.mark.parametrize(
    ("attention", "options", "failing"),
    [
        ("performer", {"time": 8.0}, []),
        ("performer", {"time": 8.001}, [COST]),
        ("performer", {"memory": 70.0}, []),
        ("performer", {"memory": 70.01}, [COST]),
        ("performer", {"time": 99.0, "memory": 10.0}, []),  # either of the two is enough
        ("reformer", {"time": 8.5}, []),
        ("reformer", {"time": 8.501}, [COST]),
        ("reformer", {"memory": 75.0}, []),
        ("reformer", {"memory": 75.01}, [COST]),
        ("performer", {"time": 1.0, "score": 0.89}, []),
        ("performer", {"time": 1.0, "score": 0.8899}, [COST, QUALITY]),
        ("reformer", {"time": 1.0, "score": 0.8899}, [COST, QUALITY]),
        ("sdpa", {"base": 0.85}, []),
        ("sdpa", {"base": 0.8501}, [QUALITY]),
        ("performer", {"time": 1.0, "base": 0.87}, []),
        ("performer", {"time": 1.0, "base": 0.8701}, [QUALITY]),
        ("reformer", {"time": 1.0, "base": 0.8701}, [QUALITY]),
    ],
    ids=str,
)
def test_thresholds(make, judged, attention, options, failing):
    other = "performer" if attention == "sdpa" else attention
    found = states(judged(sweep(make, other, **options), attention))
    assert [code for code, state in found.items() if state == FAIL and code] == failing
    assert found[""] == (FAIL if failing else PASS) and MISSING not in found.values()


@pytest.mark.parametrize(("scores", "expected"), [((0.90, 0.905, 0.91), PASS), ((0.90, 0.905, 0.9101), FAIL)])
def test_spread_over_seeds(make, judged, scores, expected):
    assert states(judged([*make.seeds("sdpa", scores), make.baseline(0.80)], "sdpa"))[STABLE] == expected


def test_value_threshold_and_margin(make, judged):
    verdict = judged(sweep(make, "performer", score=0.895, time=7.0, memory=90.0, base=0.85), "performer")
    told = {(c.code, m.name): (m.value, m.relation, m.threshold, m.margin) for c in verdict.claims for m in c.measured}
    assert told == {
        (COST, "time ratio"): (0.7, "<=", 0.8, 0.1),
        (COST, "memory ratio"): (0.9, "<=", 0.7, -0.2),
        (COST, "macro-F1 loss (pp)"): (0.5, "<=", 1.0, 0.5),
        (QUALITY, "macro-F1 gain (pp)"): (4.5, ">=", 3.0, 1.5),
        (QUALITY, "macro-F1 loss (pp)"): (0.5, "<=", 1.0, 0.5),
        (STABLE, "macro-F1 spread (pp)"): (0.0, "<=", 1.0, 1.0),
    }


def test_test_split_has_a_verdict_of_its_own(make, judged):
    records = sweep(make, "performer", time=1.0, base=0.80, test=0.80)  # SDPA has 0.89 on test
    assert judged(records, "performer").state == PASS
    assert states(judged(records, "performer", split="test"))[COST] == FAIL


@pytest.mark.parametrize(
    ("left_out", "missing", "word"),
    [
        (("performer", 2), [COST, QUALITY, STABLE], "2 of 3 seeds"),
        (("sdpa", 2), [COST, QUALITY], "2 of 3 seeds of sdpa"),
        (("baseline", 0), [QUALITY], "baseline"),
    ],
)
def test_what_is_missing_makes_no_verdict(make, judged, left_out, missing, word):
    records = sweep(make, "performer", time=1.0)
    names = [(r.choices["attention"] if r.mode == "finetune" else "baseline", r.seed) for r in records]
    verdict = judged([record for record, name in zip(records, names) if name != left_out], "performer")
    assert [code for code, state in states(verdict).items() if state == MISSING and code] == missing
    assert verdict.state == MISSING and word in reason(verdict, missing[0])


def test_of_several_baselines_of_the_same_rows_the_strictest_decides(make, judged):
    other = make.baseline(0.99, run="demo/o", data={"fingerprint": "f" * 64, "train_rows_hash": "other"})
    weak = make.baseline(0.50, run="demo/weak", config={"baseline.max_iter": 10})
    records = [*make.seeds("sdpa", SDPA), other, weak]
    assert states(judged(records, "sdpa"))[QUALITY] == PASS
    assert states(judged([*records, make.baseline(0.86)], "sdpa"))[QUALITY] == FAIL


@pytest.mark.parametrize(
    ("device", "config", "word"),
    [
        ({"name": "another CPU"}, {}, "name"),
        ({"dtype": "bf16"}, {}, "dtype"),
        ({"compile": True}, {}, "compile"),
        ({"micro_batch": 8}, {}, "micro_batch"),
        ({"kind": "cuda", "name": "a GPU"}, {}, "kind"),
        ({}, {"finetuning.lr": 1e-3}, "finetuning.lr"),
    ],
    ids=str,
)
def test_a_reference_that_was_run_otherwise_does_not_count(make, judged, device, config, word):
    records = [*make.seeds("sdpa", SDPA, device=device, config=config), *make.seeds("performer", SDPA, time=1.0)]
    verdict = judged([*records, make.baseline(0.80)], "performer")
    assert states(verdict)[COST] == MISSING and word in reason(verdict, COST)
    assert all(number.value is None for number in verdict.claims[0].measured)


def test_another_length_is_no_claim(make, judged):
    verdict = judged([*make.seeds("sdpa", SDPA, seq_len=1024), make.baseline(0.80)], "sdpa", seq_len=1024)
    assert set(states(verdict).values()) == {MISSING} and "1024" in reason(verdict, QUALITY)


def test_a_shared_device_makes_only_the_cost_missing(make, judged):
    found = states(judged(sweep(make, "performer", time=1.0, device={"shared": True}), "performer"))
    assert found == {COST: MISSING, QUALITY: PASS, STABLE: PASS, "": MISSING}


@pytest.mark.parametrize(
    ("status", "cause", "expected"),
    [
        ("failed", "NaN: the loss at step 12", FAIL),
        ("failed", "OOM: CUDA out of memory", FAIL),
        ("failed", "torch.OutOfMemoryError: tried to allocate", FAIL),
        ("interrupted", "SIGTERM", PASS),
    ],
)
def test_nan_and_oom_fail_stability_however_many_completed(make, judged, status, cause, expected):
    unknown = {"device": {"micro_batch": None}, "data": {"name": "demo"}}  # it ended before these were known
    broken = make.finetune("sdpa", 3, status=status, cause=cause, metrics={}, costs={}, **unknown)
    verdict = judged([*make.seeds("sdpa", SDPA), broken, make.baseline(0.80)], "sdpa")
    assert (states(verdict)[STABLE], verdict.state) == (expected, expected)
    assert (cause in reason(verdict, STABLE)) is (expected == FAIL)


def test_what_a_run_survived_fails_its_stability(make, judged):
    records = [*make.seeds("sdpa"), make.baseline(0.8)]
    records[1].faults = [{"kind": "restart", "step": 7, "cause": "NaN: the loss"}]
    verdict = judged(records, "sdpa")
    assert states(verdict)[STABLE] == FAIL and "NaN: the loss" in reason(verdict, STABLE)


def test_against_the_fused_kernel(make, judged):
    records = [*sweep(make, "performer", time=8.0), *make.seeds("sdpa_fused", SDPA, time=6.0, memory=50.0)]
    assert judged(records, "performer").state == PASS
    assert states(judged(records, "performer", reference="sdpa_fused"))[COST] == FAIL
    assert judged(records, "sdpa_fused").state == PASS  # of the family sdpa


def test_thresholds_come_from_the_settings_and_from_the_experiment(make, judged):
    records = sweep(make, "performer", time=9.0)
    assert judged(records, "performer").state == FAIL
    assert judged(records, "performer", changed={"families.performer.max_time_ratio": 0.95}).state == PASS
    own = {"claims.families.sdpa.min_gain_pp": 12.0}
    assert states(judged([*make.seeds("sdpa", SDPA, config=own), make.baseline(0.80)], "sdpa"))[QUALITY] == FAIL


def test_an_experiment_with_a_misspelt_claim_has_no_verdict(make, judged):
    own = {"claims.families.sdpa.min_gian_pp": 0.0}
    verdict = judged([*make.seeds("sdpa", SDPA, config=own), make.baseline(0.80)], "sdpa")
    assert verdict.state == MISSING and "min_gain_pp" in verdict.no_claim


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("min_sedes", 3, "min_seeds"),
        ("families.performer.max_los_pp", 1, "max_loss_pp"),
        ("seq_len", 0, "seq_len"),
        ("families.performer.max_loss_pp", float("nan"), "max_loss_pp"),
        ("references", [], "references"),
        *(("max_cost_factor", value, "max_cost_factor") for value in (1.0, float("inf"), "x", True)),
    ],
)
def test_impossible_claims_are_refused(key, value, said):
    with pytest.raises(UserError, match=said):
        claims_from({key: value})


def timed(make, attention, values, *, measure="time_per_epoch", started=(0, 0, 0), **options):
    """A run per value of `measure`; `started`: when each began."""
    made = make.seeds(attention, SDPA[:1] * len(values), **options)
    for record, value, began in zip(made, values, started):
        record.costs[measure], record.started = value, float(began)
    return made


DISTURBED = (48.3, 3.9, 3.8)  # the first run of sdpa shared its machine


@pytest.mark.parametrize(
    ("sdpa", "performer", "value", "expected", "repeat"),
    [
        (DISTURBED, (4.0, 4.8, 5.5), 4.8 / 3.9, UNDECIDED, "sdpa-rope-tiny-n512-s0"),
        ((3.9, 3.9, 3.8), (4.0, 4.8, 5.5), 4.8 / 3.9, FAIL, ""),
        ((10.0, 10.0, 10.0), (5.0, 5.1, 50.0), 0.51, UNDECIDED, "performer-rope-tiny-n512-s2"),
        ((10.0, 10.0, 14.9), (2.0, 2.0, 2.0), 0.2, PASS, ""),  # max_cost_factor is 1.5
        ((10.0, 10.0, 15.1), (2.0, 2.0, 2.0), 0.2, UNDECIDED, "sdpa-rope-tiny-n512-s2"),
        ((10.0, 13.0, 12.0), (7.0, 9.2, 8.3), 8.3 / 12, UNDECIDED, "s1"),  # drift: the interval spans 0.8
    ],
)
def test_one_disturbed_run_decides_nothing(make, judged, sdpa, performer, value, expected, repeat):
    records = [*timed(make, "sdpa", sdpa), *timed(make, "performer", performer), make.baseline(0.80)]
    verdict = judged(records, "performer")
    assert verdict.claims[0].measured[0].value == pytest.approx(value)
    assert states(verdict)[COST] == expected and reason(verdict, COST).endswith(repeat)
    assert verdict.state == {UNDECIDED: MISSING}.get(expected, expected)


@pytest.mark.parametrize("turns", [([0, 3, 4], [1, 2, 5]), ([0, 2, 4], [1, 3, 5])])
def test_in_turns_the_seeds_are_compared_in_pairs(make, judged, turns):
    """The machine slows down by a third and recovers: of every seed performer takes 0.7 of the time."""
    times = {"sdpa": (10.0, 13.0, 12.0), "performer": (7.0, 9.2, 8.3)}
    groups = [timed(make, name, values, started=began) for (name, values), began in zip(times.items(), turns)]
    verdict = judged([*groups[0], *groups[1], make.baseline(0.80)], "performer")
    from scipy import stats

    expected = stats.ttest_rel(np.log(times["performer"]), np.log(times["sdpa"])).confidence_interval(0.95)
    interval = verdict.claims[0].measured[0].interval
    assert (interval.low, interval.high) == pytest.approx(tuple(np.exp(expected)), rel=1e-6)
    assert states(verdict)[COST] == PASS


@pytest.mark.parametrize(("mine", "theirs"), [((7.5, 8.0, 8.6), (10.0, 10.1, 9.9)), ((1.0, 1.1), (3.0, 3.5, 3.1, 3.2))])
def test_otherwise_the_interval_is_that_of_welch(make, judged, mine, theirs):
    records = [*timed(make, "sdpa", theirs, started=range(9)), *timed(make, "performer", mine), make.baseline(0.8)]
    from scipy import stats

    interval = judged(records, "performer").claims[0].measured[0].interval
    expected = stats.ttest_ind(np.log(mine), np.log(theirs), equal_var=False).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.exp(expected)), rel=1e-6)
    assert interval.value == pytest.approx(np.median(mine) / np.median(theirs))


@pytest.mark.parametrize(
    ("mine", "theirs", "word"),
    [
        ([None] * 3, ["whole", None, "whole"], ""),  # one record is older
        (["fused"] * 3, ["whole"] * 3, ""),
        (["whole"] * 3, ["blocks,whole"] * 3, "blocks and whole in sdpa"),
        (["fused"] * 3, ["blocks", "whole", "whole"], "sdpa computed attention in different ways"),
    ],
)
def test_different_ways_of_attention_make_no_cost_claim(make, judged, mine, theirs, word):
    ways = {"performer": mine, "sdpa": theirs}
    records = [
        make.finetune(name, seed, time=10.0 if name == "sdpa" else 7.0, device={"attention_path": path} if path else {})
        for name, paths in ways.items()
        for seed, path in enumerate(paths)
    ]
    verdict = judged([*records, make.baseline(0.80)], "performer")
    assert states(verdict)[COST] == (MISSING if word else PASS) and word in reason(verdict, COST)


@pytest.mark.parametrize(
    ("lazy", "expected"),
    [
        ("performer", {COST: MISSING, QUALITY: MISSING, STABLE: MISSING}),
        ("sdpa", {COST: MISSING, QUALITY: MISSING, STABLE: PASS}),
        ("baseline", {COST: PASS, QUALITY: MISSING, STABLE: PASS}),
    ],
)
def test_a_run_that_learned_nothing_carries_no_quality_claim(make, judged, lazy, expected):
    records = sweep(make, "performer", time=7.0)
    names = [record.choices["attention"] if record.mode == "finetune" else "baseline" for record in records]
    for record in records:
        record.data["classes"] = {"validation": dict.fromkeys(CLASSES, 30)}
    records[names.index(lazy)].metrics["validation"]["macro_f1"] = 0.33
    verdict = judged(records, "performer")
    assert states(verdict) == {**expected, "": MISSING} and "learned nothing" in reason(verdict, QUALITY)

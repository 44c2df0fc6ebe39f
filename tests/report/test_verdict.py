"""The claims as written, at, just below and just above every threshold; numbers computed by hand."""

from __future__ import annotations

import pytest

from xcls.config.schema import UserError
from xcls.report.claims import FAIL, MISSING, PASS, UNDECIDED, every, some
from xcls.report.settings import Claims, FamilyClaims, claims_from

SDPA = (0.90, 0.90, 0.90)


def state(verdict, code):
    return next(claim.state for claim in verdict.claims if claim.code == code)


def reason(verdict, code):
    return next(claim.reason for claim in verdict.claims if claim.code == code)


def sweep(make, attention, *, score=0.90, time=10.0, memory=100.0, base=0.80, reference="sdpa", test=None):
    """SDPA at 0.90, 10 s, 100 MiB; a mechanism; a baseline."""
    return [
        *make.seeds(reference, SDPA),
        *make.seeds(attention, (score,) * 3, time=time, memory=memory, test=test),
        make.baseline(base),
    ]


# Performer: 0.80 x 10 s = 8 s, 0.70 x 100 MiB = 70 MiB. Reformer: 0.85 x 10 s = 8.5 s, 0.75 x 100 MiB = 75 MiB.
@pytest.mark.parametrize(
    ("attention", "time", "memory", "expected"),
    [
        ("performer", 8.0, 100.0, PASS),
        ("performer", 7.999, 100.0, PASS),
        ("performer", 8.001, 100.0, FAIL),
        ("performer", 10.0, 70.0, PASS),
        ("performer", 10.0, 69.99, PASS),
        ("performer", 10.0, 70.01, FAIL),
        ("performer", 99.0, 10.0, PASS),  # either of the two is enough
        ("reformer", 8.5, 100.0, PASS),
        ("reformer", 8.499, 100.0, PASS),
        ("reformer", 8.501, 100.0, FAIL),
        ("reformer", 10.0, 75.0, PASS),
        ("reformer", 10.0, 74.99, PASS),
        ("reformer", 10.0, 75.01, FAIL),
    ],
)
def test_cost_thresholds(make, judged, attention, time, memory, expected):
    verdict = judged(sweep(make, attention, time=time, memory=memory), attention)
    assert state(verdict, "WNF-1 cost") == expected
    assert verdict.state == expected  # quality and stability hold in all of these


@pytest.mark.parametrize(("score", "expected"), [(0.89, PASS), (0.8901, PASS), (0.8899, FAIL)])
@pytest.mark.parametrize("attention", ["performer", "reformer"])
def test_loss_of_one_point_against_the_reference(make, judged, attention, score, expected):
    verdict = judged(sweep(make, attention, score=score, time=1.0), attention)
    assert (state(verdict, "WNF-1 cost"), state(verdict, "WNF-2 quality")) == (expected, expected)


@pytest.mark.parametrize(
    ("attention", "base", "expected"),
    [
        ("sdpa", 0.85, PASS),  # 0.90 - 0.85 is 5 pp
        ("sdpa", 0.8499, PASS),
        ("sdpa", 0.8501, FAIL),
        ("performer", 0.87, PASS),  # 0.90 - 0.87 is 3 pp
        ("performer", 0.8699, PASS),
        ("performer", 0.8701, FAIL),
        ("reformer", 0.87, PASS),
        ("reformer", 0.8701, FAIL),
    ],
)
def test_gain_over_the_baseline(make, judged, attention, base, expected):
    other = "performer" if attention == "sdpa" else attention
    verdict = judged(sweep(make, other, base=base), attention)
    assert state(verdict, "WNF-2 quality") == expected


@pytest.mark.parametrize(
    ("scores", "expected"), [((0.90, 0.905, 0.91), PASS), ((0.90, 0.905, 0.9099), PASS), ((0.90, 0.905, 0.9101), FAIL)]
)
def test_spread_over_seeds(make, judged, scores, expected):
    verdict = judged([*make.seeds("sdpa", scores), make.baseline(0.80)], "sdpa")
    assert state(verdict, "WNF-2 stability") == expected
    assert verdict.state == expected


def test_value_threshold_and_margin(make, judged):
    verdict = judged(sweep(make, "performer", score=0.895, time=7.0, memory=90.0, base=0.85), "performer")
    told = {(c.code, m.name): (m.value, m.relation, m.threshold, m.margin) for c in verdict.claims for m in c.measured}
    assert told == {
        ("WNF-1 cost", "time ratio"): (0.7, "<=", 0.8, 0.1),
        ("WNF-1 cost", "memory ratio"): (0.9, "<=", 0.7, -0.2),
        ("WNF-1 cost", "macro-F1 loss (pp)"): (0.5, "<=", 1.0, 0.5),
        ("WNF-2 quality", "macro-F1 gain (pp)"): (4.5, ">=", 3.0, 1.5),
        ("WNF-2 quality", "macro-F1 loss (pp)"): (0.5, "<=", 1.0, 0.5),
        ("WNF-2 stability", "macro-F1 spread (pp)"): (0.0, "<=", 1.0, 1.0),
    }


def test_the_means_decide(make, judged):
    records = [
        *make.seeds("sdpa", (0.88, 0.90, 0.92)),
        make.baseline(0.85),
    ]  # mean 0.90: 5 pp, but 4 pp between the seeds
    verdict = judged(records, "sdpa")
    assert (state(verdict, "WNF-2 quality"), state(verdict, "WNF-2 stability")) == (PASS, FAIL)


def test_test_split_has_a_verdict_of_its_own(make, judged):
    records = sweep(make, "performer", time=1.0, base=0.80, test=0.80)  # SDPA has 0.89 on test
    assert judged(records, "performer").state == PASS
    verdict = judged(records, "performer", split="test")
    assert state(verdict, "WNF-1 cost") == FAIL and verdict.state == FAIL


def test_missing_seeds(make, judged):
    records = [*make.seeds("sdpa", SDPA), *make.seeds("performer", (0.90, 0.90), time=1.0), make.baseline(0.80)]
    verdict = judged(records, "performer")
    assert [claim.state for claim in verdict.claims] == [MISSING] * 3
    assert reason(verdict, "WNF-2 quality") == "2 of 3 seeds have completed"


def test_missing_seeds_of_the_reference(make, judged):
    records = [*make.seeds("sdpa", (0.90, 0.90)), *make.seeds("performer", SDPA, time=1.0), make.baseline(0.80)]
    verdict = judged(records, "performer")
    assert (state(verdict, "WNF-1 cost"), state(verdict, "WNF-2 quality"), verdict.state) == (MISSING, MISSING, MISSING)
    assert "2 of 3 seeds of sdpa" in reason(verdict, "WNF-1 cost")


def test_missing_baseline(make, judged):
    verdict = judged([*make.seeds("sdpa", SDPA)], "sdpa")
    assert verdict.state == MISSING
    assert reason(verdict, "WNF-2 quality") == "no baseline was trained on these rows"


def test_a_baseline_of_other_rows_does_not_count(make, judged):
    other = make.baseline(0.10, data={"name": "demo", "fingerprint": "f" * 64, "train_rows_hash": "other"})
    verdict = judged([*make.seeds("sdpa", SDPA), other], "sdpa")
    assert state(verdict, "WNF-2 quality") == MISSING


def test_of_several_baselines_the_strictest_decides(make, judged):
    weak = make.baseline(0.50, run="demo/weak", config={"dataset.name": "demo", "baseline.max_iter": 10})
    verdict = judged([*make.seeds("sdpa", SDPA), weak, make.baseline(0.86)], "sdpa")
    assert state(verdict, "WNF-2 quality") == FAIL


@pytest.mark.parametrize(
    "change",
    [{"name": "another CPU"}, {"dtype": "bf16"}, {"compile": True}, {"micro_batch": 8}],
    ids=lambda change: next(iter(change)),
)
def test_a_reference_on_another_device_does_not_count(make, judged, change):
    records = [*make.seeds("sdpa", SDPA, device=change), *make.seeds("performer", SDPA, time=1.0), make.baseline(0.80)]
    verdict = judged(records, "performer")
    assert state(verdict, "WNF-1 cost") == MISSING
    assert next(iter(change)) in reason(verdict, "WNF-1 cost")


def test_a_reference_with_another_setting_does_not_count(make, judged):
    records = [
        *make.seeds("sdpa", SDPA, config={"finetuning.lr": 1e-3}),
        *make.seeds("performer", SDPA),
        make.baseline(0.80),
    ]
    verdict = judged(records, "performer")
    assert state(verdict, "WNF-1 cost") == MISSING and "finetuning.lr" in reason(verdict, "WNF-1 cost")


def test_another_length_is_no_claim(make, judged):
    records = [*make.seeds("sdpa", SDPA, seq_len=1024), make.baseline(0.80)]
    verdict = judged(records, "sdpa", seq_len=1024)
    assert [claim.state for claim in verdict.claims] == [MISSING, MISSING]
    assert "1024" in reason(verdict, "WNF-2 quality")


def test_a_shared_device_makes_only_the_cost_missing(make, judged):
    records = [
        *make.seeds("sdpa", SDPA),
        *make.seeds("performer", SDPA, time=1.0, device={"shared": True}),
        make.baseline(0.80),
    ]
    verdict = judged(records, "performer")
    assert (state(verdict, "WNF-1 cost"), state(verdict, "WNF-2 quality"), verdict.state) == (MISSING, PASS, MISSING)


@pytest.mark.parametrize(
    "cause", ["NaN: the loss at step 12", "OOM: CUDA out of memory", "torch.OutOfMemoryError: tried to allocate"]
)
def test_nan_and_oom_fail_stability_however_many_completed(make, judged, cause):
    broken = make.finetune("sdpa", 3, status="failed", cause=cause, metrics={}, costs={})
    verdict = judged([*make.seeds("sdpa", SDPA), broken, make.baseline(0.80)], "sdpa")
    assert (state(verdict, "WNF-2 stability"), verdict.state) == (FAIL, FAIL)
    assert cause in reason(verdict, "WNF-2 stability")


def test_nan_fails_also_where_seeds_are_missing_for_it(make, judged):
    broken = make.finetune(
        "sdpa", 2, status="failed", cause="NaN", metrics={}, device={"micro_batch": None}, data={"name": "demo"}
    )
    verdict = judged([*make.seeds("sdpa", (0.90, 0.90)), broken, make.baseline(0.80)], "sdpa")
    assert (state(verdict, "WNF-2 stability"), state(verdict, "WNF-2 quality"), verdict.state) == (FAIL, MISSING, FAIL)


def test_an_interruption_fails_nothing(make, judged):
    stopped = make.finetune("sdpa", 3, status="interrupted", cause="SIGTERM", metrics={})
    assert judged([*make.seeds("sdpa", SDPA), stopped, make.baseline(0.80)], "sdpa").state == PASS


def test_against_the_fused_kernel(make, judged):
    records = [*sweep(make, "performer", time=8.0), *make.seeds("sdpa_fused", SDPA, time=6.0, memory=50.0)]
    assert judged(records, "performer").state == PASS
    verdict = judged(records, "performer", reference="sdpa_fused")
    assert state(verdict, "WNF-1 cost") == FAIL
    assert judged(records, "sdpa_fused").state == PASS  # of the family sdpa


def test_gpu_memory_on_cuda(make, judged):
    device = {"kind": "cuda", "name": "a test GPU"}

    def costs(gpu):
        return {"time_per_epoch": 10.0, "max_gpu_mem_MiB": gpu, "rss_growth_MiB": 1.0}

    records = [*make.seeds("sdpa", SDPA, device=device, costs=costs(1000.0)), make.baseline(0.80)]
    records += make.seeds("performer", SDPA, device=device, costs=costs(700.0))
    verdict = judged(records, "performer")
    assert state(verdict, "WNF-1 cost") == PASS and verdict.claims[0].measured[1].value == 0.7


def test_no_claim_is_made_for_other_mechanisms(make, judged):
    verdict = judged(sweep(make, "identity"), "identity")
    assert (verdict.state, verdict.reason, verdict.claims) == (MISSING, "no claim is made for it", ())


def test_of_two_references_the_one_with_the_same_settings(make, judged):
    records = [
        *make.seeds("sdpa", SDPA, config={"attention.dropout": 0.1}, time=10.0),
        *list(make.seeds("sdpa", SDPA, config={"attention.dropout": 0.0}, time=1.0)),
        *make.seeds("performer", SDPA, config={"attention.dropout": 0.1}, time=5.0),
        make.baseline(0.80),
    ]
    for record in records[3:6]:
        record.run += "-b"
    verdict = judged(records, "performer")
    assert verdict.claims[0].measured[0].value == 0.5


def test_thresholds_come_from_the_settings(make, judged):
    records = sweep(make, "performer", time=9.0)
    assert judged(records, "performer").state == FAIL
    assert judged(records, "performer", changed={"families.performer.max_time_ratio": 0.95}).state == PASS


def test_an_experiment_may_state_its_own_claims(make, judged):
    own = {"claims.families.sdpa.min_gain_pp": 12.0}
    verdict = judged([*make.seeds("sdpa", SDPA, config=own), make.baseline(0.80)], "sdpa")
    assert state(verdict, "WNF-2 quality") == FAIL and verdict.claims[0].measured[0].threshold == 12.0


def test_an_experiment_with_a_misspelt_claim_has_no_verdict(make, judged):
    own = {"claims.families.sdpa.min_gian_pp": 0.0}
    verdict = judged([*make.seeds("sdpa", SDPA, config=own), make.baseline(0.80)], "sdpa")
    assert verdict.state == MISSING and "min_gain_pp" in verdict.reason


@pytest.mark.parametrize(
    ("states", "of_all", "of_any"),
    [
        ([PASS, PASS], PASS, PASS),
        ([PASS, FAIL], FAIL, PASS),
        ([PASS, MISSING], MISSING, PASS),
        ([FAIL, MISSING], FAIL, MISSING),
        ([PASS, UNDECIDED], UNDECIDED, PASS),
        ([FAIL, UNDECIDED], FAIL, UNDECIDED),
        ([MISSING, UNDECIDED], MISSING, UNDECIDED),
    ],
)
def test_how_states_combine(states, of_all, of_any):
    assert (every(states), some(states)) == (of_all, of_any)


def test_families_by_name():
    claims = Claims(families={"sdpa": FamilyClaims(min_gain_pp=5.0), "performer": FamilyClaims(min_gain_pp=3.0)})
    found = [claims.family(name) for name in ("sdpa", "sdpa_fused", "performer_relu", "performers", "linformer")]
    assert [None if f is None else f.min_gain_pp for f in found] == [5.0, 5.0, 3.0, None, None]


@pytest.mark.parametrize(
    ("flat", "said"),
    [
        ({"min_sedes": 3}, "min_seeds"),
        ({"families.performer.max_los_pp": 1}, "max_loss_pp"),
        ({"seq_len": 0}, "at least 1"),
        ({"families.performer.max_loss_pp": float("nan")}, "a number is needed"),
        ({"references": []}, "a list of attention names"),
    ],
)
def test_impossible_claims_are_refused(flat, said):
    with pytest.raises(UserError, match=said):
        claims_from(flat)

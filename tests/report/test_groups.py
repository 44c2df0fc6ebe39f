"""Which runs make a group, what is computed over them, and how they rank."""

from __future__ import annotations

import pytest

from tests.report.examples import sized, study_of


def grouped(make, records, root):
    return study_of(make, root, records).groups


def test_mean_best_and_sample_deviation(make, tmp_path):
    (group,) = grouped(make, make.seeds("sdpa", (0.90, 0.92, 0.97)), tmp_path)
    stat = group.stat("macro_f1")
    assert (stat.n, stat.best, stat.low, stat.high) == (3, 0.97, 0.90, 0.97) and stat.mean == pytest.approx(0.93)
    assert stat.sd == pytest.approx(0.0360555, abs=1e-6)  # sqrt((0.03² + 0.01² + 0.04²) / 2)
    (alone,) = grouped(make, [make.finetune()], tmp_path / "b")
    assert (alone.stat("macro_f1").n, alone.stat("macro_f1").sd) == (1, None)


def test_the_best_on_test_is_chosen_on_validation(make, tmp_path):
    records = [make.finetune(seed=0, macro_f1=0.92, test=0.80), make.finetune(seed=1, macro_f1=0.90, test=0.95)]
    (group,) = grouped(make, records, tmp_path)
    assert group.stat("test_macro_f1").best == 0.80


@pytest.mark.parametrize(
    ("options", "alike"),
    [
        ({"config": {"exp": "x", "wandb.mode": "online", "dataset.path": "/elsewhere", "sweep": "b"}}, True),
        ({"config": {"finetuning.checkpoint_every_minutes": 3.0}}, True),
        ({"config": {"finetuning.lr": 1.0}}, False),
        ({"config": {"attention.features": 9}}, False),
        ({"config": {"hardware.gradient_checkpointing": True}}, False),
        ({"device": {"dtype": "bf16"}}, False),
        ({"seq_len": 64}, False),
        ({"code": {"attention": "a" * 64}}, False),
    ],
    ids=str,
)
def test_what_shapes_a_result_or_a_cost_separates_runs(make, tmp_path, options, alike):
    groups = grouped(make, [make.finetune(seed=0), make.finetune(seed=1, **options)], tmp_path)
    assert [len(group.runs) for group in groups] == ([2] if alike else [1, 1])
    assert len({group.label for group in groups}) == len(groups)


def test_runs_that_did_not_complete_are_in_no_mean_and_no_ranking(make, tmp_path):
    bad = [
        make.finetune(seed=seed, macro_f1=0.1, status=status, cause=cause)
        for seed, status, cause in [(3, "failed", "NaN"), (4, "interrupted", "SIGTERM"), (5, "running", None)]
    ]
    other = make.finetune("reformer", status="failed", cause="OOM", metrics={})
    records = [*make.seeds("sdpa"), *make.seeds("performer", (0.95, 0.95)), other, *bad]
    (results,) = study_of(make, tmp_path, records).datasets
    assert [(group.label, group.rank) for group in results.groups] == [
        ("performer", 1),
        ("sdpa", 2),
        ("reformer", None),
    ]
    sdpa = results.groups[1]
    assert sdpa.seeds == [0, 1, 2] and sdpa.stat("macro_f1").low == 0.90
    assert [run.record.seed for run in sdpa.others] == [3, 4, 5]


def test_costs_rank_from_low_to_high_within_a_device(make, tmp_path):
    records = [make.finetune(name, time=time) for name, time in (("sdpa", 9.0), ("performer", 5.0))]
    records.append(make.finetune("sdpa", 1, time=1.0, device={"name": "B"}))
    (results,) = study_of(make, tmp_path, records, rank_by="time_per_epoch").datasets
    ranks = {(group.device["name"], group.record.choices["attention"]): group.rank for group in results.groups}
    assert ranks == {("B", "sdpa"): 1, ("a test CPU", "performer"): 1, ("a test CPU", "sdpa"): 2}


def test_pretraining_settings_decide_and_not_its_hash(make, tmp_path):
    def parent(lr, seed):
        config = {"mode": "pretrain", "pretraining.lr": lr, "seed": seed}
        return make.finetune("sdpa", seed, mode="pretrain", run=f"p-{lr}-{seed}", config=config, metrics={})

    parents = [parent(1e-3, 0), parent(1e-3, 1), parent(9e-3, 0)]
    make.save(parents, tmp_path, "elsewhere")  # found where their children say
    where = [{"folder": f"multirun/elsewhere/{one.run}", "hash": one.hash} for one in parents]
    groups = grouped(make, [make.finetune(seed=seed, pretrain=one) for seed, one in enumerate(where)], tmp_path)
    assert sorted(group.seeds for group in groups if group.record.mode == "finetune") == [[0, 1], [2]]


def test_labels_say_what_differs_and_data_sets_are_told_apart(make, tmp_path):
    records = [*sized(make, "sdpa", "tiny"), *sized(make, "sdpa", "mini"), make.finetune("performer", seq_len=64)]
    more = make.finetune(
        run="demo/more", data={"fingerprint": "f" * 64, "train_rows_hash": "x", "rows": {"train": 200}}
    )
    datasets = study_of(make, tmp_path, [*records, more]).datasets
    assert [results.name for results in datasets] == ["demo (100 training rows)", "demo (200 training rows)"] or [
        results.name for results in datasets
    ] == ["demo (200 training rows)", "demo (100 training rows)"]
    labels = {group.label for results in datasets for group in results.groups}
    assert len(labels) == 4 and any("mini" in label for label in labels) and any("n64" in label for label in labels)

"""Which runs make a group, and what is computed over them."""

from __future__ import annotations

import random

import pytest

from xcls.report.groups import group_runs, results_by_dataset, without_attention
from xcls.report.load import collect


def grouped(make, records, root):
    found = collect([make.save(records, root)], root)
    return group_runs(found)


def test_mean_best_and_sample_deviation(make, tmp_path):
    (group,) = grouped(make, make.seeds("sdpa", (0.90, 0.92, 0.97)), tmp_path)
    stat = group.stat("macro_f1")
    assert (stat.n, stat.best, stat.low, stat.high) == (3, 0.97, 0.90, 0.97)
    assert stat.mean == pytest.approx(0.93)
    assert stat.sd == pytest.approx(0.0360555, abs=1e-6)  # sqrt((0.03² + 0.01² + 0.04²) / 2)
    assert group.stat("time_per_epoch").best == 10.0 and group.stat("auroc").mean == pytest.approx(0.95)


def test_one_run_has_no_deviation(make, tmp_path):
    (group,) = grouped(make, [make.finetune()], tmp_path)
    assert (group.stat("macro_f1").n, group.stat("macro_f1").sd) == (1, None)


def test_the_best_on_test_is_chosen_on_validation(make, tmp_path):
    records = [make.finetune(seed=0, macro_f1=0.92, test=0.80), make.finetune(seed=1, macro_f1=0.90, test=0.95)]
    (group,) = grouped(make, records, tmp_path)
    assert group.stat("test_macro_f1").best == 0.80


@pytest.mark.parametrize(
    "config",
    [
        {"exp": "x"},
        {"wandb.mode": "online"},
        {"dataset.path": "/elsewhere"},
        {"finetuning.checkpoint_every_minutes": 3.0},
        {"sweep": "b"},
    ],
    ids=lambda config: next(iter(config)),
)
def test_what_shapes_nothing_keeps_runs_together(make, tmp_path, config):
    groups = grouped(make, [make.finetune(seed=0), make.finetune(seed=1, config=config)], tmp_path)
    assert [len(group.runs) for group in groups] == [2]


@pytest.mark.parametrize(
    "options",
    [
        {"config": {"finetuning.lr": 1.0}},
        {"config": {"attention.features": 9}},
        {"device": {"dtype": "bf16"}},
        {"seq_len": 64},
        {"code": {"attention": "a" * 64}},
        {"code": {"position": "b" * 64}},
        {"config": {"hardware.gradient_checkpointing": True}},
    ],
    ids=str,
)
def test_what_shapes_a_result_or_a_cost_separates_runs(make, tmp_path, options):
    groups = grouped(make, [make.finetune(seed=0), make.finetune(seed=1, **options)], tmp_path)
    assert [len(group.runs) for group in groups] == [1, 1]
    assert len({group.label for group in groups}) == 2


def test_equal_hashes_count_once(make, tmp_path):
    make.save([make.finetune(seed=0)], tmp_path, "first")
    make.save([make.finetune(seed=0), make.finetune(seed=1, macro_f1=0.8)], tmp_path, "second")
    found = collect([tmp_path / "multirun"], tmp_path)
    (group,) = group_runs(found)
    assert len(found.runs) == 3 and group.stat("macro_f1").n == 2


def test_runs_that_did_not_complete_are_in_no_mean(make, tmp_path):
    bad = [
        make.finetune(seed=3, macro_f1=0.1, status="failed", cause="NaN"),
        make.finetune(seed=4, macro_f1=0.1, status="interrupted", cause="SIGTERM"),
        make.finetune(seed=5, macro_f1=0.1, status="running"),
    ]
    (group,) = grouped(make, [*make.seeds("sdpa"), *bad], tmp_path)
    assert group.seeds == [0, 1, 2] and group.stat("macro_f1").low == 0.90
    assert [run.record.seed for run in group.others] == [3, 4, 5] and [run.record.seed for run in group.broken] == [3]


def test_ranking_leaves_out_what_failed(make, tmp_path):
    records = [
        *make.seeds("sdpa"),
        *make.seeds("performer", (0.95, 0.95)),
        make.finetune("reformer", status="failed", cause="OOM", metrics={}),
    ]
    (board,) = results_by_dataset(grouped(make, records, tmp_path), "macro_f1")
    assert [(group.label, group.rank) for group in board.groups] == [("performer", 1), ("sdpa", 2), ("reformer", None)]


def test_costs_rank_from_low_to_high_within_a_device(make, tmp_path):
    records = [
        make.finetune("sdpa", time=9.0),
        make.finetune("performer", time=5.0),
        make.finetune("sdpa", 1, time=1.0, device={"name": "B"}),
    ]
    (board,) = results_by_dataset(grouped(make, records, tmp_path), "time_per_epoch")
    assert [(g.device["name"], g.attention, g.rank) for g in board.groups] == [
        ("B", "sdpa", 1),
        ("a test CPU", "performer_favor", 1),
        ("a test CPU", "sdpa", 2),
    ]


def pretrained(make, attention, seed, parent, **options):
    return make.finetune(attention, seed, pretrain={"folder": f"pretrain/{attention}", "hash": parent.hash}, **options)


def test_pretraining_settings_decide_and_not_its_hash(make, tmp_path):
    def parent(attention, lr, seed=0):
        config = {"mode": "pretrain", "attention.name": attention, "pretraining.lr": lr, "seed": seed}
        return make.finetune(
            attention, seed, mode="pretrain", run=f"pretrain-{attention}-{lr}-{seed}", config=config, metrics={}
        )

    one, two, other = parent("sdpa", 1e-3, 0), parent("sdpa", 1e-3, 1), parent("sdpa", 9e-3, 0)
    records = [one, two, other, pretrained(make, "sdpa", 0, one), pretrained(make, "sdpa", 1, two)]
    records.append(pretrained(make, "sdpa", 2, other))
    groups = [group for group in grouped(make, records, tmp_path) if group.record.mode == "finetune"]
    assert sorted(group.seeds for group in groups) == [[0, 1], [2]]


def test_the_pretraining_run_is_found_in_its_own_folder(make, tmp_path):
    parent = make.finetune("sdpa", 0, mode="pretrain", run="x", metrics={})
    make.save([parent], tmp_path, "elsewhere")
    child = make.finetune(seed=0, pretrain={"folder": "multirun/elsewhere/x", "hash": parent.hash})
    found = collect([make.save([child], tmp_path)], tmp_path)
    assert len(found.runs) == 1 and list(found.parents) == [parent.hash]


def test_groups_do_not_depend_on_the_order(make, tmp_path):
    records = [
        *make.seeds("sdpa"),
        *make.seeds("performer"),
        make.baseline(),
        make.finetune("reformer", status="running", metrics={}),
    ]
    found = collect([make.save(records, tmp_path)], tmp_path)
    expected = [(g.id, g.label, g.seeds, len(g.others)) for g in group_runs(found)]
    random.Random(0).shuffle(records)
    again = [(g.id, g.label, g.seeds, len(g.others)) for g in grouped(make, records, tmp_path)]
    assert again == expected and len(expected) == 4


def test_boards_of_one_data_set_are_told_apart_by_their_rows(make, tmp_path):
    def data(rows, count):
        return {"name": "demo", "fingerprint": "f" * 64, "train_rows_hash": rows, "rows": {"train": count}}

    records = [
        make.finetune(seed=seed, data=data(*rows)) for seed, rows in enumerate([("a", 10), ("b", 20), ("c", 20)])
    ]
    boards = results_by_dataset(grouped(make, records, tmp_path), "macro_f1")
    names = [board.name for board in boards]
    assert names[0] == "demo (10 training rows)" and len(set(names)) == 3
    assert all(name.startswith("demo (20 training rows) (") for name in names[1:])


def test_two_versions_of_a_mechanism_are_two_groups_with_one_reference(make, tmp_path):
    def of(attention, seed, code):
        return make.finetune(attention, seed=seed, code={"attention": code * 64, "position": "d" * 64})

    records = [of("performer", 0, "a"), of("performer", 1, "b"), of("sdpa", 0, "c"), make.finetune("mean")]
    groups = {group.label: group for group in grouped(make, records, tmp_path)}
    assert set(groups) == {"mean", "performer code=aaaaaaaaaaaa", "performer code=bbbbbbbbbbbb", "sdpa"}
    keys = {
        label: without_attention({k: v for k, v in group.key.items() if k != "rows"}) for label, group in groups.items()
    }
    assert keys["sdpa"] == keys["performer code=aaaaaaaaaaaa"] == keys["performer code=bbbbbbbbbbbb"] != keys["mean"]

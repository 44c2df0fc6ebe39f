"""bench=training at a tiny size: our trainings, one that fails, and transformers' where it is installed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.samples import make_encoded
from xcls.bench.cases import OURS
from xcls.bench.training_meter import Enough, Meter
from xcls.bench.training_plan import TRANSFORMERS, Contender, StageText, TrainingPlan, installed, plan_training
from xcls.bench.training_results import COLUMNS, compare
from xcls.bench.training_run import run_training_bench
from xcls.config.schema import Bench, Config, Hardware, Size, Training, UserError
from xcls.runs.allocator import RETAIN

pytestmark = pytest.mark.slow

VOCAB, SEQ_LEN, STEPS, ROUNDS = 40, 24, 2, 3
ATTENTIONS = {
    "performer": {"_target_": "xcls.attention.favor.Performer", "name": "performer_favor", "num_features": 8},
    "broken": {"_target_": "xcls.attention.favor.Performer", "name": "broken", "num_features": -1},
}
POSITIONS = {"rope": {"_target_": "xcls.position.rope.Rotary", "name": "rope"}}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def config(**changes: Any) -> Config:
    settings: dict[str, Any] = {
        "what": "training",
        "name": "training",
        "attentions": ["performer"],
        "references": [],
        "positions": ["rope"],
        "dtypes": ["fp32"],
        "others": False,
        "rounds": ROUNDS,
        "seconds": 60.0,
        "steps_per_segment": STEPS,
    }
    training = Training(batch_size=8)
    return Config(
        seq_len=SEQ_LEN,
        size=Size(num_layers=1, width=16, num_heads=2, feed_forward=32),
        finetuning=training,
        pretraining=training,
        hardware=Hardware(threads=1),
        bench=Bench(**{**settings, **changes}),
    )


def planned(settings: Config) -> TrainingPlan:
    return plan_training(settings, attentions=ATTENTIONS, positions=POSITIONS)


def bench(folder: Path, settings: Config) -> list[dict[str, str]]:
    encoded, labels = make_encoded(48, seed=0, vocab_size=VOCAB, longest=SEQ_LEN)
    texts = {"finetune": StageText(encoded, labels, 3), "pretrain": StageText(encoded)}
    given = {"texts": texts, "vocab_size": VOCAB, "continues": np.zeros(VOCAB, bool), "device": "cpu"}
    assert run_training_bench(settings, planned(settings), **given, folder=folder, progress=False) == folder
    return list(csv.DictReader((folder / "results.csv").open()))


def check_row(row: dict[str, str]) -> None:
    assert row["status"] == "completed" and row["rounds"] == str(ROUNDS), row["cause"]
    assert 0 < float(row["tokens_per_s_min"]) <= float(row["tokens_per_s"]) <= float(row["tokens_per_s_max"])
    assert 0 <= float(row["padding_share"]) < 1 and float(row["memory_MiB"]) > 0 and float(row["share_of_peak"]) > 0
    for part in ("data", "forward", "backward", "optimizer", "rest"):
        assert float(row[f"{part}_ms"]) > 0, part


def test_our_trainings_and_one_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = bench(tmp_path, config(attentions=["performer", "broken"], stages=["pretrain"]))
    assert [(row["stage"], row["contender"], row["status"]) for row in rows] == [
        ("pretrain", "performer", "completed"),
        ("pretrain", "broken", "failed"),
    ]
    check_row(rows[0])
    assert rows[1]["cause"] and rows[0]["vs_transformers"] == ""
    shown = capsys.readouterr().out
    assert "| pretrain | performer" in shown and "## Failed" in shown
    about = json.loads((tmp_path / "bench.json").read_text())
    assert about["status"] == "completed" and about["machine"]["fp32"] > 0 and len(about["rows"]) == 2
    assert len(about["rows"][0]["speeds"]) == ROUNDS


@pytest.mark.parametrize(("others_allocator", "same"), [("plain", False), ("same", True)])
def test_each_is_run_as_its_users_run_it(
    others_allocator: str, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours with freed memory retained, as run.py has it; transformers with glibc's own settings, unless told otherwise."""
    given: dict[str, dict[str, str]] = {}

    class Refused:
        ready, cause = None, "not started"

        def __init__(self, job: dict[str, Any], variables: dict[str, str]) -> None:
            given[job["contender"]["origin"]] = variables

        def close(self) -> None:
            pass

    def both(settings: Config) -> TrainingPlan:
        plan = plan_training(settings, attentions=ATTENTIONS, positions=POSITIONS)
        plan.contenders["finetune"].append(Contender("BERT sdpa", TRANSFORMERS, True, attention="sdpa"))
        return plan

    monkeypatch.setattr("xcls.bench.training_run.TrainingProcess", Refused)
    monkeypatch.setitem(globals(), "planned", both)
    for name, value in RETAIN.items():
        monkeypatch.setenv(name, value)
    rows = bench(tmp_path, config(others_allocator=others_allocator, stages=["finetune"]))
    assert [row["cause"] for row in rows] == ["not started", "not started"]
    assert given[OURS].items() >= RETAIN.items()
    assert [name in given[TRANSFORMERS] for name in RETAIN] == [same] * len(RETAIN)
    about = json.loads((tmp_path / "bench.json").read_text())
    assert (about["environment"] == about["others_environment"]) == same


@pytest.mark.skipif(not installed(), reason="transformers and accelerate (the extra `bench`) are not installed")
def test_beside_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xcls.bench.training_plan.IMPLEMENTATIONS", ("sdpa",))
    rows = bench(tmp_path, config(others=True, stages=["finetune"]))
    assert [(row["contender"], row["origin"], row["group_by_length"]) for row in rows] == [
        ("performer", OURS, "True"),
        ("BERT sdpa", TRANSFORMERS, "False"),
        ("BERT sdpa", TRANSFORMERS, "True"),
    ]
    for row in rows:
        check_row(row)
    best = max(rows[1:], key=lambda row: float(row["tokens_per_s"]))
    assert float(best["vs_transformers"]) == 1.0 and float(rows[0]["vs_transformers"]) > 0
    assert 0.3 < int(rows[0]["parameters"]) / int(rows[1]["parameters"]) < 1.5


@pytest.mark.skipif(not installed(), reason="transformers and accelerate (the extra `bench`) are not installed")
def test_transformers_collates_the_same_rows_and_masks_them(tmp_path: Path) -> None:
    from xcls.bench.training_bert import Rows, make_collator
    from xcls.bench.training_plan import make_recipe, write_texts

    encoded, _ = make_encoded(6, seed=0, vocab_size=VOCAB, longest=SEQ_LEN)
    files = write_texts(StageText(encoded), tmp_path / "t", vocab_size=VOCAB, continues=np.zeros(VOCAB, bool))
    recipe = make_recipe(config(), "pretrain", device="cpu", dtype="fp32", texts=files)
    meter = Meter(words=io.StringIO(), emit=lambda event, details: None, device="cpu", dtype="fp32")
    rows = Rows(encoded=recipe.texts.read()[0], labels=None, meter=meter)
    batch = make_collator(recipe)([rows[number] for number in range(len(rows))])
    ids = torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
    for number, length in enumerate(encoded.lengths):
        np.testing.assert_array_equal(ids[number, :length], encoded[number])
        assert batch["attention_mask"][number].sum() == length
    chosen = ids[batch["labels"] != -100]
    assert len(chosen) and (chosen >= 5).all()


def test_a_segment_is_so_many_steps_of_the_optimizer() -> None:
    words = io.StringIO('{"word": "peak"}\n{"word": "time"}\n{"word": "parts"}\n')
    told: list[tuple[str, dict[str, Any]]] = []
    meter = Meter(words=words, emit=lambda event, details: told.append((event, details)), device="cpu", dtype="fp32")
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    meter.watch(torch.nn.ParameterList([weight]), optimizer, STEPS)
    ids = torch.ones(2, 5, dtype=torch.int64)
    real = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])

    def train() -> None:
        meter.begin()
        while True:
            meter.batch(ids, real)
            meter.enter("forward")
            loss = weight.sum()
            meter.enter("backward")
            loss.backward()
            optimizer.step()
            done.append(len(told))

    done: list[int] = []
    with pytest.raises(Enough):
        train()
    assert done == [1] * STEPS + [2] * (STEPS + 1), "a step more in each segment, before the clock starts"
    assert [event for event, _ in told] == ["peak", "segment", "segment"] and told[0][1]["flops_per_s"] > 0
    for _, segment in told[1:]:
        assert (segment["steps"], segment["tokens"], segment["computed"]) == (STEPS, 7 * STEPS, 10 * STEPS)
    assert told[1][1]["parts"] == {}
    parts = told[2][1]["parts"]
    assert set(parts) == {"forward", "backward", "optimizer", "rest"}
    assert sum(parts.values()) == pytest.approx(told[2][1]["seconds"], rel=0.2, abs=1e-3)


def test_ratios_are_to_the_best_of_transformers_round_by_round() -> None:
    common = {"stage": "finetune", "dtype": "bf16"}
    rows = [
        {**common, "origin": origin, "speeds": speeds, "tokens_per_s": sorted(speeds)[1]}
        for origin, speeds in (
            (OURS, [8.0, 4.0, 9.0]),
            (TRANSFORMERS, [4.0, 1.0, 3.0]),
            (TRANSFORMERS, [1.0, 1.0, 1.0]),
        )
    ]
    compare([*rows, {**common, "dtype": "fp32", "origin": TRANSFORMERS, "speeds": [99.0], "tokens_per_s": 99.0}])
    assert [row["vs_transformers"] for row in rows] == [3.0, 1.0, 1 / 3]
    assert (rows[0]["vs_transformers_min"], rows[0]["vs_transformers_max"]) == (2.0, 4.0)
    assert len(set(COLUMNS)) == len(COLUMNS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": ["finetun"]}, "Did you mean 'finetune'"),
        ({"stages": []}, "at least one"),
        ({"attentions": ["x"]}, "no such file"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        planned(config(**changes))


def test_without_transformers_ours_alone_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xcls.bench.training_plan.installed", lambda: False)
    plan = planned(config(others=True))
    assert {c.origin for contenders in plan.contenders.values() for c in contenders} == {OURS}
    assert "make setup-bench" in plan.notes[0]

"""How many steps a training has, and at which rates, where the configuration leaves it open."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.samples import make_classifier
from tests.stages.test_stages import run_finetune
from xcls.config.rates import settle_rates, steps_between, total_steps
from xcls.config.schema import Config, Size, Training
from xcls.train.optim import parameter_groups

DEFAULTS = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text(encoding="utf-8"))["finetuning"]


@pytest.mark.parametrize(
    ("changes", "steps_per_epoch", "total"),
    [
        ({}, 34, 400),  # 540 rows
        ({}, 1, 400),
        ({}, 1407, 4221),  # IMDb: three epochs, as if there were no minimum
        ({"epochs": 2.0}, 34, 68),  # a number that is set wins
        ({"epochs": 0.001}, 34, 1),
        ({"max_steps": 7}, 34, 7),
        ({"max_steps": 7, "epochs": 2.0}, 34, 7),
        ({"min_steps": 0}, 34, 102),
    ],
)
def test_little_text_gets_more_epochs_unless_they_are_set(changes: dict, steps_per_epoch: int, total: int) -> None:
    assert total_steps(Training(**{**DEFAULTS, **changes}), steps_per_epoch) == total


@pytest.mark.parametrize(
    ("changes", "interval"), [({}, 40), ({"epochs": 600.0}, 1), ({"max_steps": 600}, 1), ({"min_steps": 0}, 1)]
)
def test_short_epochs_do_not_evaluate_hundreds_of_times(changes: dict, interval: int) -> None:
    assert steps_between(Training(**{**DEFAULTS, **changes}), 1) == interval


@pytest.mark.parametrize(("width", "lr"), [(128, 1e-3), (256, 5e-4), (512, 2.5e-4), (768, 1.67e-4)])
@pytest.mark.parametrize(("pretrain", "factor"), [(None, 10.0), ("auto", 1.0), ("base", 1.0)])
def test_the_rates_follow_from_the_width_and_the_start(
    width: int, lr: float, pretrain: str | None, factor: float
) -> None:
    training = Training(**DEFAULTS)
    settle_rates(Config(size=Size(width=width), finetuning=training, pretrain=pretrain))
    assert (training.lr, training.embedding_lr_factor) == (lr, factor)


def test_a_rate_that_is_set_stays() -> None:
    training = Training(lr=0.3, embedding_lr_factor=2.0)
    settle_rates(Config(finetuning=training, pretrain="base"))
    assert (training.lr, training.embedding_lr_factor) == (0.3, 2.0)


def test_the_token_embedding_alone_has_a_rate_of_its_own() -> None:
    model = make_classifier("sdpa", "learned")
    *others, apart = parameter_groups(model, Training(embedding_lr_factor=10.0))
    assert [id(p) for p in apart["params"]] == [id(model.encoder.token_embedding.weight)] and apart["lr_factor"] == 10.0
    assert all("lr_factor" not in group for group in others)
    assert sum(len(group["params"]) for group in (*others, apart)) == len(list(model.parameters()))


def test_a_training_runs_its_minimum_and_says_so(tmp_path: Path) -> None:
    record = run_finetune(tmp_path, epochs=None, min_epochs=1.0, min_steps=11, embedding_lr_factor=3.0)
    assert (record.steps, record.step) == (11, 11) and record.epoch == pytest.approx(11 / 5, abs=1e-3)

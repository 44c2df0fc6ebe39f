"""Optimizers, weight decay, schedules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.samples import make_classifier
from xcls.config.schema import Training, UserError
from xcls.train.optim import Lion, make_optimizer, parameter_groups, rate


def test_lion_is_algorithm_2_of_the_paper() -> None:
    weight = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    optimizer = Lion([weight], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    w, m = weight.detach().clone(), torch.zeros(3)
    for gradient in (torch.tensor([1.0, -1.0, 0.0]), torch.tensor([-20.0, 5.0, 1.0])):
        weight.grad = gradient.clone()
        optimizer.step()
        update = torch.sign(0.9 * m + 0.1 * gradient)
        w = w - 0.1 * (update + 0.5 * w)
        m = 0.99 * m + 0.01 * gradient
        assert_close(weight.detach(), w)
        assert_close(optimizer.state[weight]["momentum"], m)


@pytest.mark.parametrize("name", ["adafactor", "adamw", "lion"])
def test_every_optimizer_lowers_a_loss_and_resumes(name: str) -> None:
    if name == "adafactor" and not hasattr(torch.optim, "Adafactor"):
        pytest.skip("this torch has no Adafactor")

    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        return model, make_optimizer(model, Training(optimizer=name, lr=0.02, weight_decay=0.01))

    x, y = torch.randn(8, 4, generator=torch.Generator().manual_seed(1)), torch.ones(8, 3)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> float:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
        return loss.item()

    model, optimizer = build()
    first = train(model, optimizer, 3)
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other, other_optimizer = build()
    other.load_state_dict(state[0])
    other_optimizer.load_state_dict(state[1])
    last = train(model, optimizer, 20)
    assert last < first
    assert train(other, other_optimizer, 20) == last


def test_adafactor_without_torch_2_5_names_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Adafactor", raising=False)
    with pytest.raises(UserError, match=f"needs torch 2.5 or newer.*{torch.__version__.split('+')[0]}"):
        make_optimizer(nn.Linear(2, 2), Training(optimizer="adafactor", lr=0.02))


@pytest.mark.parametrize("position", ["learned", "relative"])
def test_decay_spares_norms_biases_embeddings_and_positions(position: str) -> None:
    model = make_classifier("sdpa", position)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = (
        sorted(names[id(p)] for p in group["params"]) for group in parameter_groups(model, Training(weight_decay=0.3))
    )
    assert len(decayed) + len(spared) == len(names)
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)
    assert {"encoder.token_embedding.weight", "encoder.position.table", "head.linear.bias"} <= set(spared)
    assert "encoder.blocks.0.attention.q_proj.weight" in decayed


@pytest.mark.parametrize(
    ("schedule", "halfway", "end"),
    [("linear", 0.5, 0.0125), ("cosine", 0.5, 0.000385), ("constant", 1.0, 1.0), ("wsd", 1.0, 0.0625)],
)
def test_schedules(schedule: str, halfway: float, end: float) -> None:
    training = Training(lr=2.0, schedule=schedule, warmup=0.2)
    rates = [rate(step, 100, training) / 2.0 for step in range(100)]
    assert_close(rates[:20], [(step + 1) / 21 for step in range(20)])
    assert rates[20] == 1.0 and max(rates) == 1.0
    assert_close(rates[60], halfway)
    assert_close(rates[99], end, atol=1e-5, rtol=0)
    assert min(rates) > 0

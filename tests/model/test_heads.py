"""Heads, pooling, dropout, first weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from tests.samples import make_batch, make_classifier, make_encoder, make_mlm
from xcls.data.batching import chosen_rows
from xcls.model.dropout import Dropout
from xcls.model.heads import POOLINGS, Classifier
from xcls.train.cost import count_parameters


def test_logits_only_where_masked_equal_the_whole_computation() -> None:
    model = make_mlm()
    ids, mask = make_batch([9, 12])
    chosen = mask & (torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.3)
    labels = torch.where(chosen, ids, -100)
    loss = model(ids, mask, *chosen_rows(labels))
    hidden = model.encoder(ids, mask)
    whole = model.head(hidden, model.encoder.token_embedding.weight)
    expected = F.cross_entropy(whole.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    assert loss.dtype == torch.float32
    assert_close(loss, expected)


def test_logits_of_cls_alone_equal_the_whole_computation() -> None:
    model = make_classifier("performer", pooling="cls", dropout=0.2, seed=3)
    ids, mask = make_batch([9, 12])
    found = []
    for logits in (lambda: model(ids, mask), lambda: model.head(model.encoder(ids, mask), mask)):
        torch.manual_seed(5)  # dropout falls on the same elements
        model.zero_grad()
        out = logits()
        out.square().sum().backward()
        found.append([out.detach(), *(parameter.grad for parameter in model.parameters())])
    assert_close(*found)


def test_no_chosen_token_gives_zero_and_a_backward_pass() -> None:
    model = make_mlm()
    ids, mask = make_batch([4, 6])
    loss = model(ids, mask, *chosen_rows(torch.full_like(ids, -100)))
    loss.backward()
    assert loss.item() == 0.0


@pytest.mark.parametrize("pooling", sorted(POOLINGS))
def test_pooling_ignores_whatever_padding_holds(pooling: str) -> None:
    head = Classifier(embed_dim=4, num_classes=2, pooling=pooling, dropout=0.0)
    hidden = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    garbage = hidden.clone()
    garbage[0, 3], garbage[0, 4] = float("nan"), float("inf")
    garbage.requires_grad_()
    out = head(garbage, mask)
    out.sum().backward()
    assert_close(out[:1], head(hidden[:1, :3], None))
    assert_close(garbage.grad[0, 3:], torch.zeros(2, 4))
    assert torch.isfinite(garbage.grad).all()


def test_poolings_are_what_they_are_called() -> None:
    hidden = torch.tensor([[[1.0, -2.0], [3.0, -4.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    assert_close(POOLINGS["cls"](hidden, mask), torch.tensor([[1.0, -2.0]]))
    assert_close(POOLINGS["mean"](hidden, mask), torch.tensor([[2.0, -3.0]]))
    assert_close(POOLINGS["max"](hidden, mask), torch.tensor([[3.0, -2.0]]))
    assert_close(POOLINGS["max"](hidden, torch.zeros_like(mask)), torch.zeros(1, 2))


def test_dropout_keeps_the_mean_and_drops_its_rate() -> None:
    layer = Dropout(rate=0.1)
    torch.manual_seed(0)
    x = torch.ones(200, 501, requires_grad=True)  # not a multiple of eight
    y = layer(x)
    y.sum().backward()
    dropped = (y == 0).float().mean().item()
    assert abs(dropped - 26 / 256) < 0.005
    assert abs(y.mean().item() - 1) < 0.006
    assert_close(x.grad, y.detach())
    rows, columns = (y == 0).float().mean(1), (y == 0).float().mean(0)
    assert rows.std() < 0.02 and columns.std() < 0.04  # no pattern along either axis
    torch.manual_seed(0)
    assert torch.equal(layer(x), y)
    assert layer.eval()(x) is x


def test_impossible_settings_are_refused() -> None:
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"rate={rate}"):
            Dropout(rate=rate)
    with pytest.raises(ValueError, match="pooling=sum"):
        Classifier(embed_dim=4, num_classes=2, pooling="sum", dropout=0.0)


def test_first_weights_are_those_of_bert() -> None:
    model = make_encoder(vocab_size=4000, sharpness=1.0)
    assert abs(model.token_embedding.weight.std().item() - 0.02) < 3e-4
    assert abs(model.token_embedding.weight.mean().item()) < 3e-4
    assert not model.blocks[0].attention.q_proj.bias.any()
    q = [block.attention.q_proj.weight for block in model.blocks]
    assert not torch.equal(q[0], q[1])
    other = make_encoder(vocab_size=4000, seed=1)
    assert not torch.equal(model.token_embedding.weight, other.token_embedding.weight)


def test_parameter_counts_are_those_of_the_formula() -> None:
    counts = count_parameters(make_classifier("sdpa", "learned", classes=3))
    attention = 2 * 4 * (16 * 16 + 16)
    feed_forward = 2 * (16 * 32 + 32 + 32 * 16 + 16)
    norms = (1 + 2 * 2 + 1) * 32
    embeddings = 40 * 16 + 24 * 16
    assert counts == {
        "total": attention + feed_forward + norms + embeddings + 3 * 16 + 3,
        "trainable": attention + feed_forward + norms + embeddings + 3 * 16 + 3,
        "embeddings": embeddings,
        "attention": attention,
    }


def test_a_tied_mechanism_has_no_key_projection_and_geglu_as_many_parameters_as_gelu() -> None:
    tied, plain = (count_parameters(make_classifier(name))["attention"] for name in ("reformer", "sdpa"))
    assert plain - tied == 2 * (16 * 16 + 16)
    for feed_forward in (32, 33, 512):
        models = [make_classifier(activation=name, feed_forward=feed_forward) for name in ("gelu", "geglu")]
        ungated, gated = (count_parameters(model)["total"] for model in models)
        assert abs(ungated - gated) < 0.02 * ungated

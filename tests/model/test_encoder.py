"""The encoder's contract, over every attention and position of `conf/`."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tests.pairwise import pairwise, spread
from tests.samples import ATTENTIONS, POSITIONS, SEQ_LEN, make_batch, make_classifier, make_encoder, make_mlm
from xcls.config.schema import UserError
from xcls.data.batching import chosen_rows

PAIRS = spread(ATTENTIONS, POSITIONS)  # all of them in the slow suite


@pytest.mark.parametrize(("attention", "position"), PAIRS)
def test_padding_and_batch_mates_are_invisible(attention: str, position: str) -> None:
    model = make_encoder(attention, position).eval()
    ids, mask = make_batch([9, 14, 5], width=20)
    together = model(ids, mask)
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = model(ids[row : row + 1, :length])
        assert_close(together[row : row + 1, :length], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("attention", "position"), PAIRS)
def test_garbage_in_padding_changes_neither_values_nor_gradients(attention: str, position: str) -> None:
    ids, mask = make_batch([9, 12], width=14)
    results = []
    for garbage in (False, True):
        model = make_encoder(attention, position)
        if garbage:
            with torch.no_grad():
                model.token_embedding.weight[0] = float("nan")
        hidden = model(ids, mask)
        hidden[mask].square().sum().backward()
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        results.append((hidden[mask].detach(), gradients))
        assert torch.isfinite(hidden).all()
    assert_close(results[0], results[1], atol=0, rtol=0)


@pytest.mark.parametrize(("attention", "position", "norm"), spread(ATTENTIONS, POSITIONS, ["pre", "post"]))
def test_every_parameter_gets_a_gradient(attention: str, position: str, norm: str) -> None:
    ids, mask = make_batch([SEQ_LEN, 20])
    model = make_mlm(attention, position, norm=norm, activation="geglu")
    labels = torch.where(mask & (torch.arange(SEQ_LEN) % 3 == 1), ids, -100)
    model(ids, mask, *chosen_rows(labels)).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    # a key bias shifts all logits of a softmax row alike, so its gradient is zero by right
    still = [name for name, p in model.named_parameters() if not p.grad.any() and not name.endswith("k_proj.bias")]
    assert still == []


@pytest.mark.parametrize("position", [name for name in POSITIONS if name != "none"])
def test_position_is_not_a_no_op(position: str) -> None:
    ids, mask = make_batch([11])
    plain, placed = make_encoder("sdpa", "none").eval(), make_encoder("sdpa", position).eval()
    placed.load_state_dict(plain.state_dict(), strict=False)
    assert not torch.allclose(plain(ids, mask), placed(ids, mask), atol=1e-5)
    shuffled = ids[:, torch.randperm(11, generator=torch.Generator().manual_seed(0))]
    assert_close(plain(shuffled).mean(1), plain(ids).mean(1), atol=1e-5, rtol=1e-4)  # none: a bag of words
    assert not torch.allclose(placed(shuffled).mean(1), placed(ids).mean(1), atol=1e-5)


def test_options_have_an_effect_and_evaluation_is_still() -> None:
    ids, mask = make_batch([11, 8])
    reference = make_encoder().eval()(ids, mask)
    for change in ({"norm": "post"}, {"activation": "geglu"}, {"num_layers": 1}, {"feed_forward": 48}):
        assert not torch.allclose(make_encoder(**change).eval()(ids, mask), reference, atol=1e-5), change
    model = make_encoder(dropout=0.3)
    assert not torch.equal(model(ids, mask), model(ids, mask))
    model.eval()
    assert torch.equal(model(ids, mask), model(ids, mask))
    assert torch.equal(model(ids, mask), reference)


def test_attn_mask_reaches_every_layer() -> None:
    ids, mask = make_batch([10])
    causal = torch.ones(10, 10, dtype=torch.bool).triu(1)
    model = make_encoder().eval()
    changed = ids.clone()
    changed[0, 9] = 7
    assert_close(model(ids, mask, causal)[:, :9], model(changed, mask, causal)[:, :9])
    assert not torch.allclose(model(ids, mask)[:, :9], model(changed, mask)[:, :9], atol=1e-6)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_gradient_checkpointing_gives_the_same_gradients(attention: str) -> None:
    ids, mask = make_batch([9, 12])
    found = []
    for gradient_checkpointing in (False, True):
        model = make_encoder(attention, dropout=0.2, gradient_checkpointing=gradient_checkpointing)
        torch.manual_seed(9)
        model(ids, mask)[mask].square().sum().backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert_close(found[0], found[1], atol=0, rtol=0)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_shared_weights_have_the_same_names_and_first_values(attention: str) -> None:
    reference, model = make_classifier("sdpa").state_dict(), make_classifier(attention).state_dict()
    buffers = {name for name in model if ".attention.attention." in name}
    missing = {name for name in reference if name not in model}
    assert set(model) - set(reference) <= buffers
    assert all(".k_proj." in name or ".q_proj." in name for name in missing)
    shared = sorted(set(model) & set(reference) - buffers)
    assert len(shared) > 20
    for name in shared:
        assert torch.equal(reference[name], model[name]), name


def test_a_longer_input_names_limit_length_and_setting() -> None:
    ids, mask = make_batch([SEQ_LEN + 1])
    with pytest.raises(UserError, match=rf"{SEQ_LEN + 1}.*{SEQ_LEN}.*seq_len={SEQ_LEN + 1}"):
        make_encoder()(ids, mask)


def test_redraw_changes_random_features_and_is_a_function_of_the_generator() -> None:
    ids, mask = make_batch([SEQ_LEN])
    first, second = make_encoder("performer").eval(), make_encoder("performer").eval()
    before = first(ids, mask)
    for model in (first, second):
        model.redraw(torch.Generator().manual_seed(5))
    assert not torch.equal(first(ids, mask), before)
    assert torch.equal(first(ids, mask), second(ids, mask))
    layers = [block.attention.attention.state_dict() for block in first.blocks]
    assert any(not torch.equal(layers[0][name], layers[1][name]) for name in layers[0])


@pytest.mark.parametrize(
    ("attention", "norm", "checkpointing"), pairwise(["sdpa", "performer", "reformer"], ["pre", "post"], [False, True])
)
def test_the_rows_that_are_asked_for_are_those_of_all(attention: str, norm: str, checkpointing: bool) -> None:
    """With the same dropout, forward and gradient."""
    ids, mask = make_batch([9, 14, 5], width=14)
    rows = torch.tensor([3, 0, 17, 17, 30])
    found = []
    for asked in (None, rows):
        model = make_encoder(attention, norm=norm, dropout=0.3, gradient_checkpointing=checkpointing).double()
        torch.manual_seed(1)
        hidden = model(ids, mask, rows=asked)
        hidden = hidden.flatten(0, 1)[rows] if asked is None else hidden
        hidden.square().sum().backward()
        found.append((hidden.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}))
    assert found[0][0].shape == (5, 16)
    assert_close(found[0], found[1], atol=1e-9, rtol=1e-9)  # in fp64: sharp attention makes much of fp32's rounding


def test_an_attention_that_changes_the_shape_is_named() -> None:
    encoder = make_encoder("sdpa")
    attention = encoder.blocks[0].attention.attention
    attend = attention.forward
    attention.forward = lambda *given: attend(*given).transpose(1, 2)
    with pytest.raises(ValueError, match=r"xcls\.attention\.softmax\.Sdpa.*\[2, 5, 2, 8\].*\[2, 2, 5, 8\]"):
        encoder(torch.ones(2, 5, dtype=torch.long))

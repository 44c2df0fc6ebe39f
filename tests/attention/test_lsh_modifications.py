"""The modifications of LSH attention: a local round, buckets shared across layers, trained rotations."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from tests.attention.oracles import lsh_over
from tests.attention.test_lsh import inputs
from tests.samples import make_batch, make_encoder
from xcls.attention import lsh
from xcls.attention.base import Masks
from xcls.attention.lsh import Reformer, lsh_attention
from xcls.attention.lsh_learned import ReformerLearned
from xcls.attention.lsh_local import ReformerLocal
from xcls.attention.lsh_shared import ReformerShared

FACTS = {"num_heads": 2, "head_dim": 4, "seed": 1, "bucket_size": 4}


def test_the_local_round_sees_neighbours_in_position_whatever_the_hashes() -> None:
    qk, v = inputs(23)
    pads = torch.zeros(2, 23, dtype=torch.bool)
    pads[0, 19:] = True
    pads[1, [3, 8, 22]] = True  # real tokens are counted, wherever the pads are
    reformer, masks = ReformerLocal(**FACTS, layer=0, max_buckets=2), Masks(pads)
    order = reformer.order(qk, masks)
    only = lsh_attention(qk, v, order[:, :, -1:], masks, chunk=4).masked_fill(pads[:, None, :, None], 0.0)
    one_bucket = torch.zeros(2, 2, 1, 23, dtype=torch.int64)
    expected = lsh_over(qk, v, one_bucket, masks, chunk=4, before=1, after=0)
    torch.testing.assert_close(only, expected.masked_fill(pads[:, None, :, None], 0.0))
    assert torch.equal(order[:, :, :-1], Reformer(**FACTS, layer=0, max_buckets=2).order(qk, Masks(pads)))


def test_shared_orders_are_those_of_the_layer_that_hashed() -> None:
    qk, v = inputs(40)
    other = qk.flip(2)
    layers = [ReformerShared(**FACTS, layer=layer, share_layers=2) for layer in range(4)]
    masks = Masks()
    found = [layer.order(x, masks) for layer, x in zip(layers, (qk, other, other, qk))]
    own = [Reformer(**FACTS, layer=layer).order(x, Masks()) for layer, x in enumerate((qk, other, other, qk))]
    for order, expected in zip(found, (own[0], own[0], own[2], own[2])):
        assert torch.equal(order, expected)
    assert torch.equal(layers[1].order(other, Masks()), own[1])  # alone, a layer hashes for itself
    assert torch.equal(layers[0](qk, qk, v), Reformer(**FACTS, layer=0)(qk, qk, v))


@pytest.mark.parametrize(("share_layers", "hashed"), [(1, 4), (2, 2), (4, 1)])
def test_gradient_checkpointing_sees_the_order_of_the_forward_pass(share_layers: int, hashed: int) -> None:
    ids, mask = make_batch([20, 15])
    found, changes = [], {"bucket_size": 4, "share_layers": share_layers}
    for checkpointing in (False, True):
        model = make_encoder(
            "reformer_shared", attention_changes=changes, num_layers=4, gradient_checkpointing=checkpointing
        ).double()
        with mock.patch.object(lsh, "hash_buckets", wraps=lsh.hash_buckets) as hashing:
            out = model(ids, mask)
            assert hashing.call_count == hashed
            out.square().mean().backward()
        found.append([out, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(found[1], found[0])


def test_codes_agree_as_hashes_do_and_turn_the_rotations() -> None:
    qk, v = inputs(24)
    covering = {**FACTS, "bucket_size": 8, "chunks_before": 3, "chunks_after": 3}
    reformer = ReformerLearned(**covering, layer=0, num_hashes=2, agreement=0.7).double()
    codes = [F.normalize(torch.einsum("bhnd,hdk->bhnk", qk, r[..., :2]), dim=-1) for r in reformer.rotations]
    similar = sum(code @ code.transpose(-1, -2) for code in codes) / 2
    logits = qk @ F.normalize(qk, dim=-1).transpose(-1, -2) + 0.7 * similar
    expected = logits.masked_fill(torch.eye(24, dtype=torch.bool), -torch.inf).softmax(dim=-1) @ v
    out = reformer(qk, qk, v)
    torch.testing.assert_close(out, expected)
    (found,) = torch.autograd.grad(out.cos().sum(), reformer.rotations)
    (dense,) = torch.autograd.grad(expected.cos().sum(), reformer.rotations)
    torch.testing.assert_close(found, dense)
    assert found[..., :2].any(dim=-1).all() and not found[..., 2:].any()  # 24 / 8 tokens: 4 buckets, 2 columns


def test_trained_rotations_are_not_redrawn() -> None:
    reformer = ReformerLearned(**FACTS, layer=0)
    before = reformer.rotations.detach().clone()
    assert torch.equal(before, Reformer(**FACTS, layer=0, max_buckets=64).rotations)
    reformer.redraw(torch.Generator().manual_seed(9))
    assert torch.equal(reformer.rotations, before)

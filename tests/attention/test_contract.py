"""The attention contract, over every file in conf/attention and conf/position: a new one is tested once it exists.

Pairs of mechanism, position and mask here; every combination in the slow suite.
"""

from __future__ import annotations

import pytest
import torch

from tests.attention.layers import (
    ATTENTIONS,
    MASKS,
    PATHS,
    POSITIONS,
    WIDTH,
    Layer,
    inputs,
    masks_of,
    padding,
    weight_like,
)
from tests.pairwise import pairwise, spread
from tests.samples import from_yaml

LENGTHS = [1, 2, 31, 64, 65, 129, 257]
every_path_somewhere = pytest.mark.parametrize(("attention_file", "position_file"), spread(PATHS, POSITIONS))
every_attention_somewhere = pytest.mark.parametrize(("attention_file", "position_file"), spread(ATTENTIONS, POSITIONS))


@pytest.mark.parametrize(("attention_file", "position_file", "kind"), pairwise(PATHS, POSITIONS, MASKS))
def test_equals_the_dense_kernel(attention_file: str, position_file: str, kind: str) -> None:
    layer, x = Layer(attention_file, position_file), inputs(21)
    masks = masks_of(kind, 21)
    torch.testing.assert_close(layer.outputs(x, **masks), layer.outputs(x, oracle=True, **masks))


@pytest.mark.parametrize(
    ("attention_file", "position_file", "garbage"), pairwise(PATHS, POSITIONS, [0.0, 1e4, float("nan"), float("inf")])
)
def test_padding_is_invisible(attention_file: str, position_file: str, garbage: float) -> None:
    layer, x = Layer(attention_file, position_file), inputs(13)
    longer = torch.cat((x, torch.full((2, 10, x.shape[-1]), garbage, dtype=x.dtype)), dim=1)
    for mask in (None, masks_of("random", 23)["attn_mask"]):
        alone = layer.outputs(x, key_padding_mask=None, attn_mask=None if mask is None else mask[:, :, :13, :13])
        x2 = longer.clone().requires_grad_()
        out = layer(x2, key_padding_mask=padding(23, 13, 13), attn_mask=mask)
        loss = (out * weight_like(out))[:, :, :13].sum()
        grads = torch.autograd.grad(loss, [x2, *layer.position.parameters()], allow_unused=True, materialize_grads=True)
        torch.testing.assert_close([out[:, :, :13].detach(), grads[0][:, :13], *grads[1:]], alone)
        assert not out[:, :, 13:].any() and not grads[0][:, 13:].any()


@pytest.mark.parametrize(
    ("attention_file", "position_file", "garbage", "place"),
    spread(PATHS, ["none", "relative"], [float("nan"), float("inf")], [(0, 0), (0, 16), (1, 0), (1, 8)], times=3),
)
def test_batch_mates_are_invisible_nan_too(
    attention_file: str, position_file: str, garbage: float, place: tuple[int, int]
) -> None:
    layer, x, lengths, (broken, token) = Layer(attention_file, position_file), inputs(17), (17, 9), place
    pads, mask, sound = padding(17, *lengths), masks_of("random", 17)["attn_mask"], 1 - broken
    mask[broken, :, :, token] = False
    x[broken, token] = garbage
    real = slice(lengths[sound])
    for attn_mask in (None, mask):
        out, grad, *_ = layer.outputs(x, key_padding_mask=pads, attn_mask=attn_mask)
        own = None if attn_mask is None else attn_mask[sound : sound + 1, :, real, real]
        alone, alone_grad, *_ = layer.outputs(x[sound : sound + 1, real], attn_mask=own)
        torch.testing.assert_close((out[sound, :, real], grad[sound, real]), (alone[0], alone_grad[0]))
        assert not out[broken].isfinite().all(), "a loss of the broken example has to be NaN"
        with torch.no_grad():
            evaluated = layer(x, key_padding_mask=pads, attn_mask=attn_mask)
        torch.testing.assert_close(evaluated[sound], out[sound])
        assert not evaluated[broken].isfinite().all()


@every_path_somewhere
def test_rows_with_nothing_to_attend_to_are_zero(attention_file: str, position_file: str) -> None:
    layer, x = Layer(attention_file, position_file), inputs(11)
    attn_mask = torch.zeros(11, 11, dtype=torch.bool)
    attn_mask[[0, 7]] = True
    out, *grads = layer.outputs(x, attn_mask=attn_mask, key_padding_mask=padding(11, 8, 0))  # one example: all pads
    assert not out[0, :, [0, 7, 8, 9, 10]].any() and not out[1].any()
    assert out[0, :, 1:7].all()
    assert all(grad.isfinite().all() for grad in grads)


@every_attention_somewhere
def test_two_evaluations_and_a_loaded_copy_are_bit_equal(attention_file: str, position_file: str) -> None:
    layer, x = Layer(attention_file, position_file), inputs(19)
    pads = padding(19, 19, 6)
    out = layer(x, key_padding_mask=pads)
    assert torch.equal(out, layer(x, key_padding_mask=pads))
    copy = Layer(attention_file, position_file)
    copy.attention.redraw(torch.Generator().manual_seed(77))
    copy.load_state_dict(layer.state_dict())
    assert torch.equal(out, copy(x, key_padding_mask=pads))


@pytest.mark.parametrize(
    ("attention_file", "position_file", "dtype", "width"),
    spread(PATHS, POSITIONS, [torch.bfloat16, torch.float16], [WIDTH, 64], times=3),
)
def test_half_precision_is_finite_at_a_hundred_times_the_scale(
    attention_file: str, position_file: str, dtype: torch.dtype, width: int
) -> None:
    layer = Layer(attention_file, position_file, width=width).float()
    for kind in ("none", "padding+causal", "padding+per head"):
        x = (inputs(21, width=width) * 100).float().requires_grad_()
        with torch.autocast(layer.device.type, dtype):
            out = layer(x, **masks_of(kind, 21))
        assert out.isfinite().all()
        (grad,) = torch.autograd.grad(out.float().mean(), x)
        assert grad.isfinite().all()


@pytest.mark.parametrize(("attention_file", "position_file", "length"), spread(ATTENTIONS, POSITIONS, LENGTHS, times=6))
def test_any_length_padded_and_masked(attention_file: str, position_file: str, length: int) -> None:
    mask = torch.rand(2, 1, length, length, generator=torch.Generator().manual_seed(length)) < 0.5
    causal = torch.ones(length, length, dtype=torch.bool).triu(1)
    cases = [
        (length, length, None),
        (length, max(0, length - 3), None),
        (length, 1, mask),
        (length // 2, length, causal),
    ]
    layer, x = Layer(attention_file, position_file, seq_len=length, small=False), inputs(length)
    for first, second, attn_mask in cases:
        masks = {"key_padding_mask": padding(length, first, second), "attn_mask": attn_mask}
        torch.testing.assert_close(layer.outputs(x, **masks), layer.outputs(x, oracle=True, **masks))


@every_path_somewhere
def test_gradients_are_those_of_the_function(attention_file: str, position_file: str) -> None:
    layer = Layer(attention_file, position_file)
    x = inputs(6).requires_grad_()
    masks = {"key_padding_mask": padding(6, 5, 6), "attn_mask": masks_of("causal", 6)["attn_mask"]}
    for arguments in ({}, masks):
        again = 0.0 if layer.device.type == "cpu" else 1e-9  # on a GPU sums need not repeat to the bit
        assert torch.autograd.gradcheck(lambda x: layer(x, **arguments), (x,), fast_mode=True, nondet_tol=again)


CHANGED = {"seed": 2, "layer": 1, "num_features": 10, "orthogonal": False, "epsilon": 0.1, "chunk_size": 7, "window": 5}
CHANGED |= {"num_hashes": 3, "bucket_size": 5, "chunks_before": 0, "chunks_after": 1, "max_buckets": 2}
CHANGED |= {"hash_rotated": True, "share_layers": 3, "agreement": 2.0}


@pytest.mark.parametrize(
    ("attention_file", "setting"),
    [(name, setting) for name in ATTENTIONS for setting in ("seed", "layer", *from_yaml("attention", name)[1])],
)
def test_a_setting_has_an_effect(attention_file: str, setting: str) -> None:
    """But chunk_size, which changes the cost alone, and share_layers, which changes what later layers do."""
    layer, x = Layer(attention_file, "rope"), inputs(40)
    same = (
        setting in ("chunk_size", "share_layers") or setting in ("seed", "layer") and not layer.attention.state_dict()
    )
    changed = Layer(attention_file, "rope", **{setting: CHANGED[setting]})
    assert torch.allclose(layer(x), changed(x), atol=1e-4) == same


@pytest.mark.parametrize(
    ("attention_file", "setting", "value"),
    [
        ("performer", "num_features", 0),
        ("performer", "epsilon", -1.0),
        ("performer", "chunk_size", 0),
        ("performer_hyperbolic", "num_features", 15),
        ("reformer", "num_hashes", 0),
        ("reformer", "bucket_size", 0),
        ("reformer", "chunks_after", -1),
        ("reformer", "max_buckets", 3),
        ("reformer_local", "num_hashes", 1),
        ("reformer_shared", "share_layers", 0),
        ("reformer_learned", "agreement", 0.0),
        ("smyrf", "bucket_size", 0),
        ("window", "window", 0),
    ],
)
def test_an_impossible_setting_is_refused(attention_file: str, setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting):
        Layer(attention_file, "none", **{setting: value})


@pytest.mark.slow
@pytest.mark.parametrize(("attention_file", "position_file"), spread(ATTENTIONS, POSITIONS, times=2))
def test_the_longest_sequence_padded_is_the_shorter_one(attention_file: str, position_file: str) -> None:
    layer = Layer(attention_file, position_file, seq_len=16384, small=False).float()
    x, real = inputs(16384, batch=1).float(), 16200
    short = layer(x[:, :real])
    x[:, real:] = torch.nan
    out, *grads = layer.outputs(x, key_padding_mask=padding(16384, real))
    torch.testing.assert_close(out[:, :, :real], short, rtol=1e-3, atol=1e-4)
    assert not out[:, :, real:].any() and all(grad.isfinite().all() for grad in grads)

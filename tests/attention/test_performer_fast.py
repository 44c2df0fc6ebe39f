"""The quick way through FAVOR+ against the readable one, forward and backward."""

from __future__ import annotations

import pytest
import torch

from tests.attention.kernels import drawn
from xcls.attention.kernel import kernel_attention
from xcls.attention.performer_fast import fast_attention, slots
from xcls.attention.performer_features import Exponential

BATCH, HEADS, LENGTH, WIDTH, FEATURES = 3, 2, 21, 4, 8
PADS = torch.arange(LENGTH) >= torch.tensor([17, LENGTH, 3])[:, None]
BLOCKS = [10**6, 2 * HEADS * LENGTH * FEATURES, 5 * HEADS * FEATURES, 1]  # all, two examples, 5 tokens, one token


class Readable(Exponential):
    """The same features without the quick way."""

    def attend(self, *inputs: torch.Tensor | None) -> None:
        return None


def leaves(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, LENGTH, HEADS, WIDTH)  # as projections leave them
    drawn = [torch.randn(shape, dtype=torch.float64, generator=generator) * scale for _ in range(3)]
    return [x.to(dtype).transpose(1, 2).detach().requires_grad_() for x in drawn]


def maps(kind: str) -> list[torch.Tensor | None]:
    """Directions and offset: one for all, or one for each head of each example."""
    if kind == "shared":
        return [drawn(FEATURES, WIDTH, 0)[None, None] * WIDTH**-0.25, None]
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(BATCH, HEADS, FEATURES, WIDTH, dtype=torch.float64, generator=generator)
    offset = torch.randn(BATCH, HEADS, 1, FEATURES, dtype=torch.float64, generator=generator)
    return [directions.requires_grad_(), offset.requires_grad_()]


def results(out: torch.Tensor, inputs: list[torch.Tensor | None]) -> list[torch.Tensor]:
    weights = torch.arange(out.numel(), dtype=torch.float64).cos().view(out.shape)
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), wanted)]


@pytest.mark.parametrize("kind", ["shared", "per head"])
@pytest.mark.parametrize("pads", [None, PADS], ids=["whole", "padded"])
@pytest.mark.parametrize("block_entries", BLOCKS)
def test_equals_the_readable_version(kind: str, pads: torch.Tensor | None, block_entries: int) -> None:
    inputs = leaves() + maps(kind)
    fast = fast_attention(*inputs, key_padding_mask=pads, epsilon=1e-3, block_entries=block_entries)
    slow = kernel_attention(*inputs[:3], Readable(*inputs[3:], epsilon=1e-3), key_padding_mask=pads)
    torch.testing.assert_close(results(fast, inputs), results(slow, inputs))


@pytest.mark.parametrize("pads", [None, PADS], ids=["whole", "padded"])
@pytest.mark.parametrize("block_entries", BLOCKS[1:])
def test_gradients_are_those_of_the_function(pads: torch.Tensor | None, block_entries: int) -> None:
    inputs = leaves() + maps("per head")

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        return fast_attention(*inputs, key_padding_mask=pads, epsilon=0.0, block_entries=block_entries)

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_examples_without_keys_and_features_without_mass() -> None:
    inputs = leaves(scale=50.0) + maps("shared")  # without epsilon most features underflow for every key
    pads = PADS.clone()
    pads[2] = True
    out, *grads = results(fast_attention(*inputs, key_padding_mask=pads, epsilon=0.0), inputs)
    assert not out[2].any() and out[:2].isfinite().all()
    assert all(grad.isfinite().all() and not grad[2].any() for grad in grads)


def test_bf16_products_are_close_and_features_are_fp32() -> None:
    whole, rounded = leaves(torch.float32), leaves(torch.bfloat16)
    directions = maps("shared")[0].float()
    exact = kernel_attention(*(x.bfloat16().float() for x in whole), Readable(directions))
    with torch.autocast("cpu", torch.bfloat16):
        out = fast_attention(*rounded, directions, None, epsilon=1e-12)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=2**-7, atol=2**-7)
    ones = [*rounded[:2], torch.ones_like(rounded[2])]
    mean = fast_attention(*ones, directions, None, epsilon=1e-12).float()
    torch.testing.assert_close(mean, torch.ones_like(mean), rtol=2**-8, atol=0)  # the normaliser fits the weights


def test_blocks_cover_everything_once() -> None:
    for block_entries in BLOCKS:
        met = torch.zeros(BATCH, LENGTH)
        for group in slots(torch.Size((BATCH, HEADS, LENGTH, WIDTH)), FEATURES, block_entries):
            assert len({block[0].start for block in group}) == 1
            for block in group:
                met[block] += 1
        assert met.eq(1).all()


def test_output_and_gradients_lie_as_projections_do() -> None:
    inputs = leaves()
    out = fast_attention(*inputs, *maps("shared"), epsilon=0.0)
    grads = torch.autograd.grad(out.transpose(1, 2).flatten(2).sum(), inputs)
    assert all(x.transpose(1, 2).is_contiguous() for x in (out, *grads))

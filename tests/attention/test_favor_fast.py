"""The quick ways through FAVOR+ against the readable one, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from tests.attention.kernels import attend, drawn
from xcls.attention.kernels import favor_cpu, favor_products
from xcls.attention.kernels.favor_cpu import slots

BATCH, HEADS, LENGTH, WIDTH, FEATURES = 3, 2, 21, 4, 8
PADS = torch.arange(LENGTH) >= torch.tensor([17, LENGTH, 3])[:, None]
BLOCKS = [10**6, 2 * HEADS * LENGTH * FEATURES, 5 * HEADS * FEATURES, 1]  # all, two examples, 5 tokens, one token
WAYS = {
    "products": favor_products.favor,
    **{f"blocks of {n}": partial(favor_cpu.favor, block_entries=n) for n in BLOCKS},
}
every_way = pytest.mark.parametrize("favor", WAYS.values(), ids=WAYS)
one_way_each = pytest.mark.parametrize("favor", [favor_products.favor, favor_cpu.favor], ids=["products", "cpu"])


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
@every_way
def test_equals_the_readable_version(favor: Callable, kind: str, pads: torch.Tensor | None) -> None:
    inputs = leaves() + maps(kind)
    real = (
        1.0 if pads is None else ~pads[:, None, :, None]
    )  # pads hold what they like, and so does what comes out there
    fast = real * favor(*inputs, pads, 1e-3)
    slow = real * attend(inputs[3:], *inputs[:3], key_padding_mask=pads, epsilon=1e-3)
    torch.testing.assert_close(results(fast, inputs), results(slow, inputs))


@pytest.mark.parametrize("pads", [None, PADS], ids=["whole", "padded"])
@every_way
def test_gradients_are_those_of_the_function(favor: Callable, pads: torch.Tensor | None) -> None:
    inputs = leaves() + maps("per head")
    assert torch.autograd.gradcheck(lambda *inputs: favor(*inputs, pads, 0.0), inputs, fast_mode=True)


@one_way_each
def test_examples_without_keys_and_features_without_mass(favor: Callable) -> None:
    inputs = leaves(scale=50.0) + maps("shared")  # without epsilon most features underflow for every key
    pads = PADS.clone()
    pads[2] = True
    out, *grads = results(favor(*inputs, pads, 0.0) * ~pads[:, None, :, None], inputs)
    assert out.isfinite().all() and out[:2].any()
    assert all(grad.isfinite().all() and not grad[2].any() for grad in grads)


@one_way_each
def test_a_broken_sequence_meets_no_other(favor: Callable) -> None:
    inputs, directions = leaves(), maps("shared")
    found = []
    for broken in (False, True):
        own = [x.detach().clone().requires_grad_() for x in inputs]
        with torch.no_grad():
            for x in own if broken else []:
                x[1] = torch.nan
        out = favor(*own, *directions, PADS, 1e-12)
        found.append([x[[0, 2]] for x in (out.detach(), *torch.autograd.grad(out.sum(), own))])
        assert not broken or out[1].isnan().any()
    assert all(torch.equal(x, y) for x, y in zip(*found))


@pytest.mark.parametrize(
    ("dtype", "limit", "grad_limit"), [(torch.bfloat16, 0.006, 0.012), (torch.float16, 8e-4, 2e-3)]
)
@one_way_each
def test_half_precision_is_close(favor: Callable, dtype: torch.dtype, limit: float, grad_limit: float) -> None:
    rounded = [x.to(dtype).detach().requires_grad_() for x in leaves(torch.float32)]
    whole = [x.detach().float().requires_grad_() for x in rounded]
    directions = [maps("shared")[0].float(), None]
    out, *grads = results(favor(*rounded, *directions, None, 1e-12), rounded)
    exact, *exact_grads = results(attend(directions, *whole), whole)
    assert out.dtype == dtype and all(grad.dtype == dtype for grad in grads)
    assert (out.float() - exact).norm() < limit * exact.norm()
    assert all((x.float() - y).norm() < grad_limit * y.norm() for x, y in zip(grads, exact_grads))
    ones = [*rounded[:2], torch.ones_like(rounded[2])]
    mean = favor(*ones, *directions, None, 1e-12).float()
    torch.testing.assert_close(mean, torch.ones_like(mean), rtol=torch.finfo(dtype).eps, atol=0)  # weights sum to one


@one_way_each
def test_fp16_is_finite_at_a_hundred_times_the_scale_and_for_long_sequences(favor: Callable) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [(300 * torch.randn(1, 1, 3000, WIDTH, generator=generator)).half().requires_grad_() for _ in range(3)]
    out = favor(*inputs, maps("shared")[0].float(), None, None, 1e-12)
    assert out.isfinite().all()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.float().mean(), inputs))


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
    out = favor_cpu.favor(*inputs, *maps("shared"), None, 0.0)
    grads = torch.autograd.grad(out.transpose(1, 2).flatten(2).sum(), inputs)
    assert all(x.transpose(1, 2).is_contiguous() for x in (out, *grads))

"""The quick way through FAVOR+ against the readable one, forward and backward."""

from __future__ import annotations

import pytest
import torch

from tests.attention.kernels import attend, drawn
from xcls.attention.kernels import favor_products
from xcls.attention.kernels.favor_products import favor

BATCH, HEADS, LENGTH, WIDTH, FEATURES = 3, 2, 21, 4, 8
PADS = torch.arange(LENGTH) >= torch.tensor([17, LENGTH, 3])[:, None]
GROUPS = [2**20, 2 * HEADS * LENGTH * FEATURES, 1]  # features of a group: all examples, two, one


@pytest.fixture(params=GROUPS)
def grouped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples are worked on all at once, or some at a time."""
    monkeypatch.setattr(favor_products, "CACHED", request.param)


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
def test_equals_the_readable_version(grouped: None, kind: str, pads: torch.Tensor | None) -> None:
    inputs = leaves() + maps(kind)
    real = 1.0 if pads is None else ~pads[:, None, :, None]  # the output of pads means nothing
    fast = real * favor(*inputs, pads, 1e-3)
    slow = real * attend(inputs[3:], *inputs[:3], key_padding_mask=pads, epsilon=1e-3)
    torch.testing.assert_close(results(fast, inputs), results(slow, inputs))


def test_examples_without_keys_and_features_without_mass() -> None:
    inputs = leaves(scale=50.0) + maps("shared")  # without epsilon most features underflow for every key
    pads = PADS.clone()
    pads[2] = True
    out, *grads = results(favor(*inputs, pads, 0.0) * ~pads[:, None, :, None], inputs)
    assert out.isfinite().all() and out[:2].any()
    assert all(grad.isfinite().all() and not grad[2].any() for grad in grads)


@pytest.mark.parametrize(
    ("dtype", "limit", "grad_limit"), [(torch.bfloat16, 0.006, 0.012), (torch.float16, 8e-4, 2e-3)]
)
def test_half_precision_is_close(dtype: torch.dtype, limit: float, grad_limit: float) -> None:
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


def test_fp16_is_finite_at_a_hundred_times_the_scale_and_for_long_sequences() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [(300 * torch.randn(1, 1, 3000, WIDTH, generator=generator)).half().requires_grad_() for _ in range(3)]
    out = favor(*inputs, maps("shared")[0].float(), None, None, 1e-12)
    assert out.isfinite().all()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.float().mean(), inputs))

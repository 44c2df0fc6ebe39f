"""The implementations of others, where the extra `bench` is installed."""

from __future__ import annotations

import pytest
import torch

from xcls.bench.cases import make
from xcls.bench.rivals import Rival, rivals


@pytest.mark.parametrize("rival", rivals(), ids=lambda rival: rival.name)
def test_other_implementations_are_built_and_have_gradients(rival: Rival) -> None:
    if not rival.installed:
        pytest.skip(f"{rival.package} is not installed (extra `bench`)")
    for part, node in rival.parts.items():
        model = make(node, width=16, num_heads=2)
        shape = (1, 128, 16) if part == "module" else (1, 2, 128, 8)
        x = torch.randn(shape, requires_grad=True)
        out = model(x) if part == "module" else model(x, x, x)
        out.square().sum().backward()
        assert x.grad is not None and torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0
        assert out.shape == x.shape

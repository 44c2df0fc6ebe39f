"""Dropout under the compiler draws what it draws without."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from xcls.model.dropout import Dropout, drawn_whole


class _LastBlock(nn.Module):
    """Two rows of `whole` are dropped twice, as the last block does it for a head that reads few tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = Dropout(rate=0.5)

    def forward(self, x: Tensor, rows: Tensor, whole: Tensor) -> Tensor:
        return self.dropout(self.dropout(x, rows, whole) + 1.0, rows, whole)


@pytest.mark.skipif(drawn_whole is None, reason="needs torch 2.4: before it the compiler draws by itself")
def test_two_draws_of_a_compiled_block_stay_two() -> None:
    whole, rows = torch.ones(3, 4, 16, requires_grad=True), torch.tensor([2, 7])
    plain, compiled = _LastBlock(), torch.compile(_LastBlock(), backend="aot_eager_decomp_partition")
    found = []
    for block in (plain, compiled):
        torch.manual_seed(0)
        dropped = block(whole.flatten(0, 1)[rows], rows, whole)
        (gradient,) = torch.autograd.grad(dropped.sum(), whole)
        found.append((dropped.detach(), gradient))
    assert_close(found[0], found[1])
    assert (found[0][0] == 2.0).any()  # dropped by the first draw and kept by the second

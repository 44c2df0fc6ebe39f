"""torch.compile by config: the same numbers, the same names, its time set aside."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tests.samples import ATTENTIONS, make_batch, make_encoder, make_mlm
from xcls.data.batching import chosen_rows
from xcls.model.dropout import drawn_whole
from xcls.train.amp import compile_blocks
from xcls.train.cost import compiled_graphs

pytestmark = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_compiled_blocks_compute_the_same(attention: str) -> None:
    torch._dynamo.reset()
    rate = 0.0 if drawn_whole is None else 0.1  # the same draws in both
    plain, compiled = make_mlm(attention, dropout=rate), make_mlm(attention, dropout=rate)
    compile_blocks(compiled)
    graphs = compiled_graphs()
    for lengths in ([9, 12], [15, 7]):
        ids, mask = make_batch(lengths)
        found = []
        for model in (plain, compiled):
            model.zero_grad()
            torch.manual_seed(7)
            loss = model(ids, mask, *chosen_rows(torch.where(mask, ids, -100)))
            loss.backward()
            found.append((loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}))
        assert_close(found[0], found[1], atol=1e-4, rtol=1e-3)
    assert compiled_graphs() > graphs
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert len(make_encoder(attention).blocks) == 2
